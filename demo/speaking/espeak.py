"""The demo's speakers: espeak-ng variants (timbre) with an accent, a pace and a pitch, split by
variant.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile

from pipeline.errors import UserError
from pipeline.files import replacing_folder, write_json
from pipeline.rows import SPLITS

ACCENT = "en-us"
# These speak differently each time: espeak-ng reads unset memory in them (with glibc, the
# variable
# MALLOC_PERTURB_ changes their samples).
LEFT_OUT = frozenset(
    ("Alicia", "Demonic", "f2", "f3", "f5", "sandro", "victor", "whisper", "whisperf")
)
_SHARES = {"train": 0.65, "valid": 0.15, "test": 0.2}  # of the variants
_SPEAKERS = {"train": 124, "valid": 28, "test": 38}  # two or so with each variant


@dataclass(frozen=True)
class Speaker:
    """One voice."""

    name: str
    voice: str  # accent+variant
    rate: int  # words a minute
    pitch: int  # 0..100, 50 is the variant's own


def variants() -> list[str]:
    """Every variant that the installed espeak-ng has, but ``LEFT_OUT``, by name."""
    folder = Path(str(espeakng_loader.get_data_path())) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if path.name not in LEFT_OUT)


def speakers(seed: int) -> dict[str, list[Speaker]]:
    """The speakers of each split. No variant is in two splits."""
    rng = np.random.default_rng(seed)
    left = rng.permutation(variants()).tolist()
    by_split: dict[str, list[Speaker]] = {}
    for split in SPLITS:
        share = round(_SHARES[split] * len(variants()))
        heard, left = left[:share], left[share:]
        by_split[split] = [
            Speaker(
                name=hashlib.sha1(f"{seed} {split} {number}".encode()).hexdigest()[:16],
                voice=f"{ACCENT}+{heard[number % share]}",
                rate=int(rng.integers(175, 236)),
                pitch=int(rng.integers(42, 59)),
            )
            for number in range(_SPEAKERS[split])
        ]
    return by_split


# Speech from text with the espeak-ng library that the PyPI wheel ``espeakng-loader`` carries
# (ctypes, no sound card).


_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, no sound card, no thread
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a failure instead of ending the process
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """The synthesiser of this process. The library has one global state: make one instance a
    process.

    What it returns depends on what it spoke before (phases and noise run on), so the same sequence
    of calls in a fresh process gives the same samples.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate: int = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, data_path, _DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise UserError(
                f"{data_path.decode()}: espeak-ng could not read its data; "
                "reinstall the package espeakng-loader"
            )
        self._pieces: list[np.ndarray] = []
        self._callback = _Callback(self._receive)  # kept: ctypes does not hold it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0  # go on

    def set_voice(self, name: str) -> None:
        """Choose a voice such as ``en-us+m4`` (accent + variant). Raises ``UserError`` for an
        unknown one.
        """
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {name!r}")

    def speak(self, text: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Return ``text`` as (T,) float32 in [-1, 1] at ``sample_rate``.

        ``rate`` in words a minute (80-450), ``pitch`` and ``pitch_range`` in 0..100 (50 is the
        voice's own).
        """
        for parameter, value in (
            (_RATE, rate),
            (_VOLUME, 100),
            (_PITCH, pitch),
            (_RANGE, pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces = []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        if not self._pieces:
            raise UserError(f"espeak-ng spoke nothing for {text!r}")
        return np.concatenate(self._pieces).astype(np.float32) / 32768


# Noise, levels and 16-bit files for the demo's speech.


SAMPLE_RATE = 16_000
NOISE_COLOURS = {
    "white": 0.0,
    "pink": 0.5,
    "brown": 1.0,
}  # amplitude falls as 1 / frequency ** exponent


def amplitude(decibels: float | np.ndarray) -> float | np.ndarray:
    """What a level in dB relative to full scale multiplies a signal of amplitude 1 with."""
    return 10 ** (decibels / 20)


def coloured_noise(rng: np.random.Generator, colour: str, samples: int) -> np.ndarray:
    """(samples,) float32 noise of root mean square 1."""
    length = 1 << (samples - 1).bit_length()  # a power of two is many times faster than a prime
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.arange(len(spectrum)) * SAMPLE_RATE / length  # Hz
    spectrum /= np.maximum(frequency, 50.0) ** NOISE_COLOURS[colour]
    return at_level(np.fft.irfft(spectrum)[:samples], 0.0)


def at_level(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Scale ``samples`` to a root mean square of ``decibels`` relative to full scale."""
    return (samples * (amplitude(decibels) / np.sqrt(np.mean(samples**2)))).astype(np.float32)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Cut what lies more than 40 dB below the peak off both ends."""
    loud = np.flatnonzero(np.abs(samples) > amplitude(-40) * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write (T,) samples in [-1, 1] as 16-bit mono at ``SAMPLE_RATE``: WAV or FLAC by the name;
    louder ones are clipped.
    """
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


# A corpus that the demo speaks or unpacks: whole or not at all.


def at_least(least: int) -> Callable[[str], int]:
    """What a flag is read by: an integer that is no less."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {text}")
        return int(text)

    return integer


@contextlib.contextmanager
def new_corpus(folder: Path, about: dict[str, object]) -> Iterator[Path]:
    """Yield a folder to write into, which becomes ``folder`` at the end. ``about``: what
    demo.json there says of it.

    Raises ``UserError`` when the corpus exists already.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it or choose another --out")
    with replacing_folder(folder) as unfinished:
        yield unfinished
        write_json(unfinished / "demo.json", about)
    print(f"wrote {folder}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
