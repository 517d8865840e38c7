"""Read audio of any rate and any number of channels as 16 kHz mono float32. A file that cannot be
used raises ``BadAudio`` with the reason. Conversions, silence and clipping are noted and counted.
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
MOST_SAMPLES = 3600 * SAMPLE_RATE  # the longest utterance: an hour at 16 kHz
MOST_IN_PIECES = 9 * MOST_SAMPLES  # the longest for a reader that computes a waveform in pieces
AT_ONCE = 1 << 24  # samples read at once, over all channels: 64 MiB
MOST_PEAK = 8.0  # the highest float sample: some recordings exceed 1, but not by this much
LEAST_MIX_POWER = 0.1  # of a mix, as a share of the power that unrelated channels would keep
FULL_SCALE = 0.99  # a sample above this is at full scale: 127 of 8 bits is
CLIPPED = 0.1  # a recording with a larger share of samples at full scale is noted as clipped


def measured(path: Path, is_one_utterance: bool = True) -> tuple[int, int, tuple[str, ...]]:
    """Return the number of samples per channel, the rate and notes, usually without decoding.
    Raises ``BadAudio`` if the file cannot be used, or ``is_one_utterance`` of over nine hours.
    """
    with opened(path) as recording:
        file, frames = recording.file, recording.length()
        _check_size(frames if is_one_utterance else 1, file.samplerate, MOST_IN_PIECES)
        channels = [f"{file.channels} channels"] if file.channels > 1 else []
        notes = *channels, *_notes(Counter(sound=1), 1, file.samplerate), *recording.notes
        return frames, file.samplerate, notes


def length_and_rate(path: Path) -> tuple[int, int]:
    """Return the number of samples per channel and the sample rate. Raises ``BadAudio``."""
    return measured(path, is_one_utterance=False)[:2]


def _check_size(frames: int, rate: int, most: int) -> None:
    """Check the rate and, for memory, the length: at most ``most`` samples at 16 kHz."""
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise BadAudio(f"has an unusual rate: {rate} Hz, expected {LEAST_RATE} to {MOST_RATE}")
    if frames * SAMPLE_RATE // rate > most:
        hours = f"{frames / rate / 3600:.2f} h, expected at most {most / SAMPLE_RATE / 3600:.2f} h"
        raise BadAudio(f"is too long for one utterance: {hours}; cut it")


class Waveform(NamedTuple):
    """``samples`` (T,) float32 at 16 kHz. ``notes`` say what was converted or is unusual."""

    samples: np.ndarray
    notes: tuple[str, ...]


def read_audio(
    path: Path, start: int, frames: int, warn_if_longer: bool = False, most: int | None = None
) -> Waveform:
    """Read samples ``start`` to ``start + frames``, counted at the file's own rate. Mix them to one
    channel and resample them to 16 kHz, 64 MiB at once. ``warn_if_longer``: note that the file has
    more samples. ``most``: the maximum number of samples at 16 kHz (default: an hour). Raises
    ``BadAudio`` if the file is unreadable, too short or too long, or has invalid values.
    """
    with opened(path) as recording:
        file, rate = recording.file, recording.file.samplerate
        _check_size(frames, rate, most or MOST_SAMPLES)
        recording.skip(start)
        size, counts = max(1, AT_ONCE // file.channels), Counter()
        blocks = _mono(file, frames, size, counts)
        if rate != SAMPLE_RATE and frames <= size:  # faster than a stream
            blocks = (soxr.resample(block, rate, SAMPLE_RATE) for block in blocks)
        elif rate != SAMPLE_RATE:
            blocks = _resampled(blocks, rate)
        samples, filled = np.empty(frames * SAMPLE_RATE // rate + 2, np.float32), 0
        for block in blocks:
            samples[filled : filled + len(block)] = block
            filled += len(block)
    notes = *_notes(counts, file.channels, rate), *recording.notes
    if warn_if_longer and frames < recording.frames != UNKNOWN:
        notes = *notes, "longer than the manifest says, cut there"
    return Waveform(samples[:filled], notes)


def mono_blocks(path: Path, size: int, frames: int | None = None) -> Iterator[np.ndarray]:
    """Yield a file of any length (``frames``, if already measured) in blocks (``size``,) float32 at
    the file's own rate, mixed to one channel. The last may be shorter. Raises ``BadAudio``.
    """
    frames = length_and_rate(path)[0] if frames is None else frames
    with opened(path) as recording:
        yield from _mono(recording.file, frames, size, Counter())


def array_waveform(array: np.ndarray | torch.Tensor) -> Waveform:
    """Convert samples (T,) at 16 kHz: floats in [-1, 1], or integers. Raises ``BadAudio``."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    try:
        array = np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise BadAudio(f"expected samples (T,): {error}") from None
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiu" or kind in "iu" and size > 4:
        expected = "expected float samples, or integers of at most 32 bits"
        raise BadAudio(f"{expected}: found {array.dtype}; convert them")
    if array.ndim != 1:
        raise BadAudio(f"expected samples (T,): found {array.shape}; pass one channel")
    samples = array.astype(np.float32)
    if kind in "iu":
        scale = 2 ** (8 * size - 1)
        samples = (samples - (scale if kind == "u" else 0)) / np.float32(scale)
    counts = Counter()
    _check_and_count(samples, counts)
    return Waveform(samples, _notes(counts, 1, SAMPLE_RATE))


def _mono(
    file: soundfile.SoundFile, frames: int, size: int, counts: Counter[str]
) -> Iterator[np.ndarray]:
    """Yield the next ``frames`` in blocks (``size``,), mixed. Add to ``counts``, see ``_notes``."""
    left = frames
    while left:
        samples = file.read(min(size, left), dtype="float32", always_2d=True)  # (T, C)
        if len(samples) < min(size, left):
            available = frames - left + len(samples)
            raise BadAudio(f"ends early: expected {frames} samples, found {available}")
        left -= len(samples)
        _check_and_count(samples, counts)
        yield _mixed(samples, counts)


def _resampled(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    yield from (stream.resample_chunk(block) for block in blocks)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _mixed(samples: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Map (T, C) to (T,): the mean of the channels, or the loudest channel if they cancel each
    other (opposite phase). Then the mean has under a tenth of the power of unrelated channels.
    """
    if samples.shape[1] == 1:
        return samples[:, 0]
    mono = samples.mean(axis=1)
    powers = samples.var(axis=0)  # (C,), without an offset
    if mono.var() < LEAST_MIX_POWER * powers.mean() / len(powers):
        counts["cancelling"] += 1
        loud = powers >= 0.99 * powers.max()  # the first of equals: the same one in all blocks
        return samples[:, loud.argmax()].copy()
    counts["mixed"] += 1
    return mono


def _check_and_count(samples: np.ndarray, counts: Counter[str]) -> None:
    """Count samples, samples at full scale and blocks with sound. Raises ``BadAudio``."""
    level = np.abs(samples)
    peak = level.max(initial=0.0)
    if not np.isfinite(peak):
        raise BadAudio("contains values that are not finite (NaN or infinity)")
    if peak > MOST_PEAK:
        remedy = "divide the samples (16 bits: by 32768), or store them as integers"
        raise BadAudio(f"is not scaled to [-1, 1]: float peak {peak:,.5g}, far above 1; {remedy}")
    counts["samples"] += level.size
    counts["full"] += np.count_nonzero(level >= FULL_SCALE)
    counts["sound"] += bool(peak)


def _notes(counts: Counter[str], channels: int, rate: int) -> tuple[str, ...]:
    mean = ", their mean" if channels > 2 else ""
    notes = {
        f"{channels} channels mixed to one{mean}": counts["mixed"],
        f"the loudest of {channels} channels taken, which cancel each other": counts["cancelling"],
        f"{rate} Hz resampled to {SAMPLE_RATE} Hz": rate != SAMPLE_RATE,
        "silent (all zeros)": not counts["sound"],
        "clipped (over a tenth at full scale)": counts["full"] > CLIPPED * counts["samples"],
    }
    return tuple(note for note, applies in notes.items() if applies)


class Tally:
    """Counts of the recordings read and of their notes, and the files that cannot be used."""

    def __init__(self) -> None:
        self.read = 0
        self.notes: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()  # by kind of reason
        self.bad: dict[Path | None, str] = {}  # path -> reason

    def add(self, outcome: Iterable[str] | BadAudio, path: Path | None = None) -> None:
        """Count a recording's notes, or the reason why it cannot be used."""
        if isinstance(outcome, BadAudio):
            self.left_out[str(outcome).partition(":")[0]] += 1
            self.bad[path] = str(outcome)
        else:
            self.read += 1
            self.notes.update(tuple(outcome))

    def record(self) -> dict[str, object]:
        """Return the counts for a provenance.json."""
        return {"read": self.read, "notes": dict(self.notes), "left_out": dict(self.left_out)}

    def __str__(self) -> str:
        """Return ``audio: 180 recordings read (8000 Hz resampled ...: 40); 1 left out (...)``."""
        parts = [f"audio: {self.read:,} recordings read", f"{self.left_out.total():,} left out"]
        for number, counts in enumerate((self.notes, self.left_out)):
            if counts:
                details = "; ".join(f"{words}: {count:,}" for words, count in counts.items())
                parts[number] += f" ({details})"
        return "; ".join(parts if self.left_out else parts[:1])

    def report(self, output: Path, skip: bool = False, say: Callable[[str], None] = print) -> None:
        """Print the counts. List the bad files in ``output``; if there are none, remove an old
        list. Raises ``UserError`` for bad files unless ``skip`` is true.
        """
        say(str(self))
        if not self.bad:
            output.unlink(missing_ok=True)
            return
        with writing(output) as handle:
            handle.writelines(f"{path}\t{reason}\n" for path, reason in self.bad.items())
        reasons = [f"{path} ({reason})" for path, reason in self.bad.items()]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        action = "left out" if skip else "repair them, or leave them out with --skip_bad"
        message = f"{len(reasons)} audio file(s) cannot be used: {'; '.join(reasons[:3])}{more}"
        if not skip:
            raise UserError(f"{message}; {action} (list: {output})")
        print(f"{message}; {action} (list: {output})")
