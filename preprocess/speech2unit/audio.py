"""Reading audio: any rate and any number of channels in, 16 kHz mono float32 out, or the reason why
a file cannot be used. What was converted or is remarkable is noted and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch

from pipeline.errors import UserError
from pipeline.files import writing
from preprocess.speech2unit.features import SAMPLE_RATE
from preprocess.speech2unit.lengths import UNKNOWN, BadAudio, opened

LEAST_RATE, MOST_RATE = 1_000, 1_000_000  # Hz
MOST_SAMPLES = 3600 * SAMPLE_RATE  # at 16 kHz, of one utterance: an hour
MOST_IN_PIECES = 9 * MOST_SAMPLES  # for a reader that computes a waveform in pieces
AT_ONCE = 1 << 24  # samples of all channels that are read at once, 64 MiB
MOST_PEAK = 8.0  # of float samples: some recordings exceed 1, none so far
KEPT = 0.1  # the least power of a mix, as a share of what unrelated channels would keep
FULL_SCALE = 0.99  # 127 of 8 bits; a recording with more than CLIPPED of its samples there is noted
CLIPPED = 0.1


def measured(path: Path, at_once: bool = True) -> tuple[int, int, tuple[str, ...]]:
    """Samples a channel, samples a second, and what is remarkable, as a rule without decoding.
    Raises ``BadAudio`` for what cannot be used, or is too long to be read ``at_once``.
    """
    with opened(path) as recording:
        file, frames = recording.file, recording.length()
        _check_size(frames if at_once else 1, file.samplerate, MOST_IN_PIECES)
        channels = [f"{file.channels} channels"] if file.channels > 1 else []
        notes = *channels, *_notes(Counter(sound=1), 1, file.samplerate), *recording.notes
        return frames, file.samplerate, notes


def length_and_rate(path: Path, at_once: bool = False) -> tuple[int, int]:
    """Samples a channel and samples a second. Raises ``BadAudio`` as ``measured`` does."""
    return measured(path, at_once)[:2]


def _check_size(frames: int, rate: int, most: int) -> None:
    """Raises ``BadAudio`` for what would take more memory than any utterance."""
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise BadAudio(f"has an unusual rate: {rate} Hz, expected {LEAST_RATE} to {MOST_RATE}")
    if frames * SAMPLE_RATE // rate > most:
        hours = f"{frames / rate / 3600:.2f} h, expected at most {most / SAMPLE_RATE / 3600:.2f} h"
        raise BadAudio(f"is too long for one utterance: {hours}; cut it")


class Waveform(NamedTuple):
    """``samples`` (T,) float32 at 16 kHz; ``notes`` say what was converted or is remarkable."""

    samples: np.ndarray
    notes: tuple[str, ...]


def read_audio(
    path: Path, start: int, frames: int, whole: bool = False, most: int | None = None
) -> Waveform:
    """Read samples ``start`` to ``start + frames`` (at the file's own rate), mixed to one channel
    and resampled to 16 kHz, 64 MiB at once. ``whole``: a longer file is noted. ``most``: samples at
    16 kHz, by default an hour. Raises ``BadAudio``: unreadable, shorter, longer, or impossible
    values.
    """
    with opened(path) as recording:
        file, rate = recording.file, recording.file.samplerate
        _check_size(frames, rate, most or MOST_SAMPLES)
        recording.skip(start)
        size, heard = max(1, AT_ONCE // file.channels), Counter()
        blocks = _mono(file, frames, size, heard)
        if rate != SAMPLE_RATE and frames <= size:  # faster than a stream
            blocks = (soxr.resample(block, rate, SAMPLE_RATE) for block in blocks)
        elif rate != SAMPLE_RATE:
            blocks = _resampled(blocks, rate)
        samples, filled = np.empty(frames * SAMPLE_RATE // rate + 2, np.float32), 0
        for block in blocks:
            samples[filled : filled + len(block)] = block
            filled += len(block)
    notes = *_notes(heard, file.channels, rate), *recording.notes
    if whole and frames < recording.frames != UNKNOWN:
        notes = *notes, "longer than the manifest says, cut there"
    return Waveform(samples[:filled], notes)


def mono_blocks(path: Path, size: int, frames: int | None = None) -> Iterator[np.ndarray]:
    """Read a file of any length (``frames``, if measured already) in blocks (``size``,) float32 at
    its own rate, mixed to one channel; the last may be shorter. Raises ``BadAudio``.
    """
    frames = length_and_rate(path)[0] if frames is None else frames
    with opened(path) as recording:
        yield from _mono(recording.file, frames, size, Counter())


def array_waveform(array: np.ndarray | torch.Tensor) -> Waveform:
    """Take samples (T,) at 16 kHz: float in [-1, 1], or integers, scaled. Raises ``BadAudio``."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    try:
        array = np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise BadAudio(f"expected samples (T,): {error}") from None
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiu" or kind in "iu" and size > 4:
        expected = "expected samples of float or of integers up to 32 bits"
        raise BadAudio(f"{expected}: found {array.dtype}; convert them")
    if array.ndim != 1:
        raise BadAudio(f"expected samples (T,): found {array.shape}; pass one channel")
    samples = array.astype(np.float32)
    if kind in "iu":
        scale = 2 ** (8 * size - 1)
        samples = (samples - (scale if kind == "u" else 0)) / np.float32(scale)
    heard = Counter()
    _hear(samples, heard)
    return Waveform(samples, _notes(heard, 1, SAMPLE_RATE))


def _mono(
    file: soundfile.SoundFile, frames: int, size: int, heard: Counter[str]
) -> Iterator[np.ndarray]:
    """The next ``frames`` in blocks (``size``,), mixed; ``heard`` counts what is in them."""
    left = frames
    while left:
        samples = file.read(min(size, left), dtype="float32", always_2d=True)  # (T, C)
        if len(samples) < min(size, left):
            there = frames - left + len(samples)
            raise BadAudio(f"ends early: expected {frames} samples, found {there}")
        left -= len(samples)
        _hear(samples, heard)
        yield _mixed(samples, heard)


def _resampled(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    yield from (stream.resample_chunk(block) for block in blocks)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _mixed(samples: np.ndarray, heard: Counter[str]) -> np.ndarray:
    """Map (T, C) to (T,): the channels' mean, or the loudest channel where the mean would lose
    them, as in opposite phase: where its power is below a tenth of what unrelated channels keep.
    """
    if samples.shape[1] == 1:
        return samples[:, 0]
    mono = samples.mean(axis=1)
    powers = samples.var(axis=0)  # (C,), without an offset
    if mono.var() < KEPT * powers.mean() / len(powers):
        heard["cancelling"] += 1
        loud = powers >= 0.99 * powers.max()  # the first of equals, in every block of a file
        return samples[:, loud.argmax()].copy()
    heard["mixed"] += 1
    return mono


def _hear(samples: np.ndarray, heard: Counter[str]) -> None:
    """Count samples at full scale and others than 0. Raises ``BadAudio`` for impossible values."""
    level = np.abs(samples)
    peak = level.max(initial=0.0)
    if not np.isfinite(peak):
        raise BadAudio("holds values that are not finite (NaN or infinity)")
    if peak > MOST_PEAK:
        found = f"its float peak is {peak:,.5g}, far above 1; divide it (16 bits: by 32768)"
        raise BadAudio(f"is not scaled to [-1, 1]: {found}, or store it as integers")
    heard["samples"] += level.size
    heard["full"] += np.count_nonzero(level >= FULL_SCALE)
    heard["sound"] += bool(peak)


def _notes(heard: Counter[str], channels: int, rate: int) -> tuple[str, ...]:
    mean = ", their mean" if channels > 2 else ""
    notes = {
        f"{channels} channels mixed to one{mean}": heard["mixed"],
        f"the loudest of {channels} channels taken, which cancel each other": heard["cancelling"],
        f"{rate} Hz resampled to {SAMPLE_RATE} Hz": rate != SAMPLE_RATE,
        "silent (all zeros)": not heard["sound"],
        "clipped (over a tenth at full scale)": heard["full"] > CLIPPED * heard["samples"],
    }
    return tuple(note for note, is_so in notes.items() if is_so)


class Tally:
    """How many recordings were read, what was noted about them, and which cannot be used."""

    def __init__(self) -> None:
        self.read = 0
        self.notes: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()  # by kind of reason
        self.bad: dict[Path | None, str] = {}  # with the reason

    def add(self, outcome: Iterable[str] | BadAudio, path: Path | None = None) -> None:
        """Count a recording's notes, or the reason why it cannot be used."""
        if isinstance(outcome, BadAudio):
            self.left_out[str(outcome).partition(":")[0]] += 1
            self.bad[path] = str(outcome)
        else:
            self.read += 1
            self.notes.update(tuple(outcome))

    def record(self) -> dict[str, object]:
        """The counts for a provenance.json."""
        return {"read": self.read, "notes": dict(self.notes), "left_out": dict(self.left_out)}

    def __str__(self) -> str:
        """``audio: 180 recordings read (8000 Hz resampled to 16000 Hz: 40); 1 left out (...)``."""
        parts = [f"audio: {self.read:,} recordings read", f"{self.left_out.total():,} left out"]
        for number, counts in enumerate((self.notes, self.left_out)):
            if counts:
                listed = "; ".join(f"{words}: {count:,}" for words, count in counts.items())
                parts[number] += f" ({listed})"
        return "; ".join(parts if self.left_out else parts[:1])

    def report(self, listed: Path, skip: bool = False, say: Callable[[str], None] = print) -> None:
        """Say the counts; list the bad files in ``listed``, or remove an old list. Raises
        ``UserError`` where there are any, unless they are to be skipped.
        """
        say(str(self))
        if not self.bad:
            listed.unlink(missing_ok=True)
            return
        with writing(listed) as handle:
            handle.writelines(f"{path}\t{reason}\n" for path, reason in self.bad.items())
        reasons = [f"{path} ({reason})" for path, reason in self.bad.items()]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        what = "left out" if skip else "repair them, or leave them out with --skip_bad"
        message = f"{len(reasons)} audio file(s) cannot be used: {'; '.join(reasons[:3])}{more}"
        if not skip:
            raise UserError(f"{message}; {what} (list: {listed})")
        print(f"{message}; {what} (list: {listed})")
