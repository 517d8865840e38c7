"""Audio files to a result each, as a stream: read ahead in threads, batched by length, in order.

The manifest alone decides how the work is cut into *blocks* of neighbouring entries, and into
batches inside a block. So a block's results depend neither on the number of threads nor on the
process that computes it, nor on what was computed before.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from pipeline.runs import torch_threads
from preprocess.actions.manifest import Entry
from preprocess.speech2unit.audio import BadAudio, Waveform, read_audio
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, grouped

Result = TypeVar("Result")
BATCHES_A_BLOCK = 4  # sorted by length together, so that a batch holds similar lengths


class Block(NamedTuple):
    """Neighbours in the manifest of one split; ``name`` is unique in a run."""

    name: str
    root: Path
    entries: Sequence[Entry]


class Encoded(NamedTuple, Generic[Result]):
    """What a block gave: for each entry a result, or the reason why there is none."""

    block: Block
    results: list[Result | BadAudio]
    seconds: float  # of good audio
    notes: Counter[str]  # what had to be converted, and in how many files


def cut_blocks(
    name: str, root: Path, entries: Sequence[Entry], batch_seconds: float
) -> list[Block]:
    """Cut ``entries`` into blocks of about four batches, by the manifest's samples."""
    most = BATCHES_A_BLOCK * batch_seconds * SAMPLE_RATE
    blocks, start, samples = [], 0, 0
    for index, entry in enumerate(entries):
        samples += entry.frames
        if samples >= most or index == len(entries) - 1:
            blocks.append(Block(f"{name}-{len(blocks):06d}", root, entries[start : index + 1]))
            start, samples = index + 1, 0
    return blocks


class Encoder(Generic[Result]):
    """Runs ``finish(features)`` on every entry of the blocks.

    On a CPU the threads that torch would give to one operation each take a block of their own,
    which keeps them busy where operations are small; a GPU is fed by one. The caller's thread only
    hands out work.
    """

    def __init__(
        self,
        reader: FeatureReader,
        finish: Callable[[torch.Tensor], Result],
        device: torch.device,
        batch_seconds: float,
    ) -> None:
        self._reader, self._finish = reader, finish
        self._batch_samples = int(batch_seconds * SAMPLE_RATE)
        self._on_cpu = device.type == "cpu"
        self._reading = min(8, os.cpu_count() or 1)

    def __call__(self, blocks: Sequence[Block]) -> Iterator[Encoded[Result]]:
        """Yield each block's results, in the order of ``blocks``; memory holds a few of them."""
        pending: deque[Future[Encoded[Result]]] = deque()
        at_once = torch.get_num_threads() if self._on_cpu else 1
        with (
            torch_threads(1 if self._on_cpu else None),
            ThreadPoolExecutor(self._reading) as reading,
            ThreadPoolExecutor(at_once) as computing,
        ):
            try:
                for block in blocks:
                    loads = [reading.submit(self._load, block.root, e) for e in block.entries]
                    pending.append(computing.submit(self._encode, block, loads))
                    if len(pending) > at_once + 1:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for pool in (reading, computing):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, root: Path, entry: Entry) -> Waveform | BadAudio:
        try:
            loaded = read_audio(root / entry.path, entry.start, entry.frames)
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
        for batch in grouped(order, lengths.__getitem__, self._batch_samples):
            waveforms = [torch.from_numpy(loaded[index].samples) for index in batch]
            with torch.inference_mode():
                for index, features in zip(batch, self._reader(waveforms), strict=True):
                    results[index] = self._finish(features)
        notes = Counter(note for index in good for note in loaded[index].notes)
        return Encoded(block, results, sum(lengths.values()) / SAMPLE_RATE, notes)
