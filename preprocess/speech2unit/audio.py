"""Reading audio: any rate and any number of channels in, 16 kHz mono float32 out; what cannot be
read is said why.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pipeline.errors import UserError
from pipeline.files import writing
from preprocess.speech2unit.features import SAMPLE_RATE


class BadAudio(Exception):
    """A file that cannot become units; its text is the reason."""


def length_and_rate(path: Path) -> tuple[int, int]:
    """Samples a channel and samples a second, from the header. Raises ``BadAudio`` (missing, empty,
    not audio).
    """
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise BadAudio(_reason(path, error)) from None
    if header.frames == 0:
        raise BadAudio("holds no samples")
    return header.frames, header.samplerate


class AudioReader:
    """Reads files or crops of files; ``notes`` counts what had to be converted."""

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()

    def read(self, path: Path, start: int, frames: int) -> np.ndarray:
        """Return samples ``start`` to ``start + frames`` (at the file's own rate) as (T,) float32,
        16 kHz, mono.

        Raises ``BadAudio``: unreadable, shorter than the manifest says, or values that are not
        finite.
        """
        try:
            samples, rate = soundfile.read(
                path, frames, start, dtype="float32", always_2d=True
            )  # (T, C)
        except soundfile.LibsndfileError as error:
            raise BadAudio(_reason(path, error)) from None
        if len(samples) < frames:
            raise BadAudio(f"ends early: the manifest says {frames} samples, found {len(samples)}")
        if not np.isfinite(samples).all():
            raise BadAudio("holds values that are not finite (NaN or infinity)")
        if samples.shape[1] > 1:
            self.notes[f"{samples.shape[1]} channels mixed to one"] += 1
        mono = samples.mean(axis=1)  # (T,)
        if rate != SAMPLE_RATE:
            self.notes[f"{rate} Hz resampled to {SAMPLE_RATE} Hz"] += 1
            mono = soxr.resample(mono, rate, SAMPLE_RATE)
        return mono


def fail_on_bad_audio(bad: dict[Path, str], report: Path) -> None:
    """Write path and reason of each bad file to ``report`` and raise ``UserError``; with none,
    remove an old report.
    """
    if not bad:
        report.unlink(missing_ok=True)
        return
    with writing(report) as handle:
        handle.writelines(f"{path}\t{reason}\n" for path, reason in bad.items())
    named = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise UserError(
        f"{len(bad)} audio file(s) cannot be used: {named}{more}; "
        f"repair or remove them (all are listed in {report})"
    )


def _reason(path: Path, error: soundfile.LibsndfileError) -> str:
    if not path.exists():
        return "does not exist"
    if path.stat().st_size == 0:
        return "is an empty file"
    return f"is not readable audio: {error.error_string.rstrip('.')}"
