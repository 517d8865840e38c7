"""Reading audio: any rate and any number of channels in, 16 kHz mono float32 out, or the reason why
a file cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from pipeline.errors import UserError
from pipeline.files import writing
from preprocess.speech2unit.features import SAMPLE_RATE

LEAST_RATE, MOST_RATE = 1_000, 1_000_000  # Hz
MOST_SAMPLES = 1 << 29  # read at once, of all channels: 9 hours at 16 kHz, 2 GiB
HEADERLESS = "has no header that says its rate and format; convert it to wav or flac"


class BadAudio(Exception):
    """A file that cannot become units; its text is the reason."""


def length_and_rate(path: Path, at_once: bool = True) -> tuple[int, int]:
    """Samples a channel and samples a second, from the header. Raises ``BadAudio`` (missing, empty,
    not audio; too long to be read ``at_once``).
    """
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise BadAudio(_reason(path, error)) from None
    except TypeError:  # of a name that ends with .raw
        raise BadAudio(HEADERLESS) from None
    if header.frames == 0:
        raise BadAudio("holds no samples")
    _check_header(header.frames if at_once else 1, header.channels, header.samplerate)
    return header.frames, header.samplerate


def _check_header(frames: int, channels: int, rate: int) -> None:
    """Raises ``BadAudio`` for what would take more memory than any utterance."""
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise BadAudio(f"declares {rate} Hz, expected {LEAST_RATE} to {MOST_RATE}")
    if max(frames * channels, frames * SAMPLE_RATE // rate) > MOST_SAMPLES:
        raise BadAudio(f"declares {frames:,} samples of {channels} channels; cut it")


class Waveform(NamedTuple):
    """``samples`` (T,) float32 at 16 kHz; ``notes`` say what had to be converted."""

    samples: np.ndarray
    notes: tuple[str, ...]


def read_audio(path: Path, start: int, frames: int) -> Waveform:
    """Read samples ``start`` to ``start + frames`` (at the file's own rate), mixed to one channel
    and resampled to 16 kHz.

    Raises ``BadAudio``: unreadable, shorter than the manifest says, or values that are not finite.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            _check_header(frames, file.channels, rate)
            file.seek(start)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadAudio(_reason(path, error)) from None
    except TypeError:
        raise BadAudio(HEADERLESS) from None
    except MemoryError:
        raise BadAudio(f"declares {frames} samples, more than fit into memory") from None
    if len(samples) < frames:
        raise BadAudio(f"ends early: the manifest says {frames} samples, found {len(samples)}")
    if not np.isfinite(samples).all():
        raise BadAudio("holds values that are not finite (NaN or infinity)")
    notes = []
    if samples.shape[1] > 1:
        notes.append(f"{samples.shape[1]} channels mixed to one")
    mono = samples.mean(axis=1)  # (T,) of (T, C)
    if rate != SAMPLE_RATE:
        notes.append(f"{rate} Hz resampled to {SAMPLE_RATE} Hz")
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return Waveform(mono, tuple(notes))


def mono_blocks(path: Path, size: int) -> Iterator[np.ndarray]:
    """Read a file of any length in blocks (``size``,) float32 at its own rate, mixed to one
    channel; the last may be shorter. Raises ``BadAudio``: unreadable, or it ends too early.
    """
    try:
        with soundfile.SoundFile(path) as file:
            left = file.frames
            while left:
                samples = file.read(min(size, left), dtype="float32", always_2d=True)  # (T, C)
                if len(samples) < min(size, left):
                    raise BadAudio(f"ends {left - len(samples):,} samples before its header says")
                left -= len(samples)
                yield samples.mean(axis=1)
    except soundfile.LibsndfileError as error:
        raise BadAudio(_reason(path, error)) from None


def report_bad_audio(bad: dict[Path, str], report: Path, skip: bool = False) -> None:
    """Write path and reason of each bad file to ``report``; with none, remove an old report.

    Raises ``UserError`` when there are any, unless they are to be skipped.
    """
    if not bad:
        report.unlink(missing_ok=True)
        return
    with writing(report) as handle:
        handle.writelines(f"{path}\t{reason}\n" for path, reason in bad.items())
    named = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    what = "left out" if skip else "repair them, or leave them out with --skip_bad"
    message = f"{len(bad)} audio file(s) cannot be used: {named}{more}; {what} (list: {report})"
    if not skip:
        raise UserError(message)
    print(message)


def _reason(path: Path, error: soundfile.LibsndfileError) -> str:
    if not path.exists():
        return "does not exist"
    if path.stat().st_size == 0:
        return "is an empty file"
    return f"is not readable audio: {error.error_string.rstrip('.')}"
