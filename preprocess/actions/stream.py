"""A stream from audio files to one result per file: read ahead in threads, batched by length, in
order. The manifest alone decides how the work is cut into *blocks* of neighbouring entries and into
batches. So results depend neither on threads nor on processes.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from pipeline.devices import torch_threads
from pipeline.files import read_json
from pipeline.runs import progress_bar
from preprocess.actions.manifest import Entry
from preprocess.speech2unit.audio import (
    MOST_IN_PIECES,
    MOST_SAMPLES,
    BadAudio,
    Waveform,
    read_audio,
)
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, grouped

Result = TypeVar("Result")
LONG = 600 * SAMPLE_RATE  # samples; a reader with ``pieces`` computes longer audio piece by piece
BATCHES_PER_BLOCK = 4  # a block is sorted by length, so that a batch has similar lengths


class Block(NamedTuple):
    """Neighbouring entries in the manifest of one split; ``name`` is unique in a run."""

    name: str
    root: Path
    entries: Sequence[Entry]
    seconds: float = 0.0  # of audio


class Encoded(NamedTuple, Generic[Result]):
    """The outcome of a block: for each entry a result, or the reason why its audio is bad."""

    block: Block
    results: list[Result | BadAudio]
    seconds: float  # of good audio
    notes: list[Sequence[str]]  # per entry: what was converted or is remarkable


def file_rates(manifest: Path) -> Mapping[str, int]:
    """Return each file's samples per second, as generate_manifest measured them, else 16 kHz."""
    record = manifest / "provenance.json"
    rates = read_json(record, "generate_manifest").get("rates") if record.exists() else None
    if not isinstance(rates, dict):
        rates = {"most": SAMPLE_RATE, "others": {}}
    return defaultdict(lambda: rates["most"], rates["others"])


def rates_record(rates: Mapping[str, int]) -> dict[str, object]:
    """Return what ``file_rates`` reads: the rate of ``most`` files, and ``others`` by path."""
    most = Counter(rates.values()).most_common(1)[0][0] if rates else SAMPLE_RATE
    return {"most": most, "others": {path: rate for path, rate in rates.items() if rate != most}}


def cut_blocks(
    name: str,
    root: Path,
    entries: Sequence[Entry],
    batch_seconds: float,
    rates: Mapping[str, int] | None = None,
) -> list[Block]:
    """Cut ``entries`` into blocks of about four batches, by seconds (no ``rates``: 16 kHz)."""
    rates = defaultdict(lambda: SAMPLE_RATE) if rates is None else rates
    enough = BATCHES_PER_BLOCK * batch_seconds * SAMPLE_RATE
    blocks, start, samples = [], 0, 0.0
    for index, entry in enumerate(entries):
        samples += entry.frames * SAMPLE_RATE / rates[entry.path]
        if samples >= enough or index == len(entries) - 1:
            neighbours, seconds = entries[start : index + 1], samples / SAMPLE_RATE
            blocks.append(Block(f"{name}-{len(blocks):06d}", root, neighbours, seconds))
            start, samples = index + 1, 0.0
    return blocks


class AudioStream(Generic[Result]):
    """Reads the audio of every entry of the blocks and runs ``finish(features)``. On a CPU, every
    thread computes one block: if torch shares small operations, its threads are often idle.
    """

    def __init__(
        self,
        reader: FeatureReader,
        finish: Callable[[torch.Tensor], Result],
        device: torch.device,
        batch_seconds: float,
        join: Callable[[list[Result]], Result] | None = None,
    ) -> None:
        """``join`` makes one result of the pieces of a long waveform, if the reader has pieces."""
        self._reader, self._finish = reader, finish
        self._join = join if hasattr(reader, "pieces") else None
        self._batch_samples = int(batch_seconds * SAMPLE_RATE)
        self._on_cpu = device.type == "cpu"

    def __call__(self, blocks: Sequence[Block]) -> Iterator[Encoded[Result]]:
        """Yield each block's results, in the order of ``blocks``. Only a few blocks are in memory,
        and at most an hour more of long recordings.
        """
        pending: deque[tuple[float, Future[Encoded[Result]]]] = deque()  # (seconds, block)
        at_once = torch.get_num_threads() if self._on_cpu else 1
        samples = (at_once + 2) * BATCHES_PER_BLOCK * self._batch_samples
        most = (samples + MOST_SAMPLES) / SAMPLE_RATE  # seconds in memory
        with (
            torch_threads(1 if self._on_cpu else None),
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as reading,
            ThreadPoolExecutor(at_once) as computing,
        ):
            try:
                for block in blocks:
                    ahead = sum(seconds for seconds, _ in pending) + block.seconds
                    while pending and ahead > most:
                        seconds, first = pending.popleft()
                        ahead -= seconds
                        yield first.result()
                    loads = [reading.submit(self._load, block.root, e) for e in block.entries]
                    pending.append((block.seconds, computing.submit(self._encode, block, loads)))
                    if len(pending) > at_once + 1:
                        yield pending.popleft()[1].result()
                while pending:
                    yield pending.popleft()[1].result()
            finally:
                for pool in (reading, computing):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, root: Path, entry: Entry) -> Waveform | BadAudio:
        try:
            is_file = entry.start == 0 and entry.file == entry.path
            most = MOST_IN_PIECES if self._join else MOST_SAMPLES
            loaded = read_audio(root / entry.path, entry.start, entry.frames, is_file, most)
        except BadAudio as error:
            return error
        if len(loaded.samples) < self._reader.min_samples:
            shortest = 1000 * self._reader.min_samples / SAMPLE_RATE
            return BadAudio(f"is shorter than one frame ({shortest:.0f} ms)")
        return loaded

    def _encode(
        self, block: Block, loads: Sequence[Future[Waveform | BadAudio]]
    ) -> Encoded[Result]:
        loaded = [load.result() for load in loads]
        good = [index for index, item in enumerate(loaded) if isinstance(item, Waveform)]
        lengths = {index: len(loaded[index].samples) for index in good}
        results: list[Result | BadAudio] = list(loaded)
        order = sorted(good, key=lengths.__getitem__)
        while self._join and order and lengths[order[-1]] > LONG:
            index = order.pop()
            results[index] = self._in_pieces(torch.from_numpy(loaded[index].samples))
        for batch in grouped(order, lengths.__getitem__, self._batch_samples):
            waveforms = [torch.from_numpy(loaded[index].samples) for index in batch]
            with torch.inference_mode():
                for index, features in zip(batch, self._reader(waveforms), strict=True):
                    results[index] = self._finish(features)
        notes = [item.notes if isinstance(item, Waveform) else () for item in loaded]
        return Encoded(block, results, sum(lengths.values()) / SAMPLE_RATE, notes)

    @torch.inference_mode()
    def _in_pieces(self, waveform: torch.Tensor) -> Result:
        """Map a waveform (T,) to its result, in pieces: its features are never all in memory."""
        size, overlap = self._reader.pieces
        pieces = (waveform[i : i + size + overlap] for i in range(0, len(waveform), size))
        pieces = [piece for piece in pieces if len(piece) >= self._reader.min_samples]
        return self._join([self._finish(self._reader([piece])[0]) for piece in pieces])


def with_bar(
    blocks: Iterable[Encoded[Result]], title: str, files: int, say: Callable[[str], None]
) -> Iterator[Encoded[Result]]:
    """Yield the blocks with a progress bar; then say ``0.42 h of audio, 35x real time``."""
    start, seconds, summary = time.monotonic(), 0.0, ""
    with progress_bar(total=files, desc=title, unit="file") as bar:
        for block in blocks:
            seconds += block.seconds
            speed = seconds / max(time.monotonic() - start, 1e-9)
            summary = f"{seconds / 3600:.2f} h of audio, {speed:.0f}x real time"
            bar.set_postfix_str(summary, refresh=False)
            bar.update(len(block.results))
            yield block
    say(summary)
