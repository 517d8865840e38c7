"""The demo's voices: espeak-ng turns text into a corpus of recordings. A seed gives the same bytes.

A speaker is an espeak-ng variant (timbre) with an accent, a pace and a pitch. The library comes
from the PyPI wheel ``espeakng-loader`` and is called through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import espeakng_loader
import numpy as np
import soundfile
import soxr

from pipeline.errors import UserError
from pipeline.files import replacing_folder, write_json
from pipeline.rows import SPLITS
from pipeline.runs import progress_bar

SAMPLE_RATE = 16_000
ACCENT = "en-us"
# These variants sound different in each run, because espeak-ng reads uninitialised memory for them
# (with glibc, MALLOC_PERTURB_ changes the samples).
LEFT_OUT = {"Alicia", "Demonic", "f2", "f3", "f5", "sandro", "victor", "whisper", "whisperf"}
SHARES = {"train": 0.65, "valid": 0.15, "test": 0.2}  # of the variants
SPEAKERS = {"train": 124, "valid": 28, "test": 38}  # about two speakers per variant
SPEECH_LEVEL = (-22.0, -18.0)  # dB relative to full scale
NOISE_BELOW_SPEECH = (44.0, 48.0)  # dB
NOISE_EXPONENTS = (0.0, 0.5, 1.0)  # white, pink, brown: amplitude is 1 / frequency ** exponent
# constants of espeak-ng's speak_lib.h
SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback; no sound card, no thread
DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a failure instead of ending the process
UTF8 = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER


class Speaker(NamedTuple):
    name: str
    voice: str  # accent+variant
    rate: int  # words per minute
    pitch: int  # 0..100, 50 is the variant's default


Clips = dict[Speaker, dict[str, str]]  # speaker -> path below the corpus -> text


def variants() -> list[str]:
    """Return the sorted names of all installed espeak-ng variants except ``LEFT_OUT``."""
    folder = Path(espeakng_loader.get_data_path(), "voices", "!v")
    return sorted(path.name for path in folder.iterdir() if path.name not in LEFT_OUT)


def speakers(seed: int) -> dict[str, list[Speaker]]:
    """Return the speakers of each split. No variant is in two splits."""
    rng = np.random.default_rng(seed)
    remaining = rng.permutation(variants()).tolist()
    by_split: dict[str, list[Speaker]] = {}
    for split in SPLITS:
        share = round(SHARES[split] * len(variants()))
        chosen, remaining = remaining[:share], remaining[share:]
        by_split[split] = [
            Speaker(
                name=hashlib.sha1(f"{seed} {split} {number}".encode()).hexdigest()[:16],
                voice=f"{ACCENT}+{chosen[number % share]}",
                rate=int(rng.integers(175, 236)),
                pitch=int(rng.integers(42, 59)),
            )
            for number in range(SPEAKERS[split])
        ]
    return by_split


class Espeak:
    """The only synthesiser of a process, because the library has a global state.

    The samples depend on all earlier calls (phases and noise continue). So only the same sequence
    of calls in a new process gives the same samples.
    """

    def __init__(self, voice: str) -> None:
        """``voice``: accent and variant, such as ``en-us+m4``."""
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path())
        self.sample_rate: int = self._library.espeak_Initialize(
            SYNCHRONOUS, 0, data.encode(), DONT_EXIT
        )
        self._pieces: list[np.ndarray] = []
        shorts = ctypes.POINTER(ctypes.c_short)
        callback = ctypes.CFUNCTYPE(ctypes.c_int, shorts, ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._receive)  # stored, because ctypes keeps no reference
        self._library.espeak_SetSynthCallback(self._callback)
        if self.sample_rate <= 0 or self._library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"{data}: found no voice {voice}; reinstall espeakng-loader")

    def _receive(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0  # continue

    def speak(self, text: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Return ``text`` as (T,) float32 in [-1, 1] at ``sample_rate``.

        ``rate`` is in words per minute (80-450), ``pitch`` and ``pitch_range`` are in 0..100.
        """
        parameters = {RATE: rate, VOLUME: 100, PITCH: pitch, RANGE: pitch_range}
        for parameter, value in parameters.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces = []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, UTF8, None, None)
        return np.concatenate(self._pieces).astype(np.float32) / 32768


def speak(folder: Path, clips: Clips, seed: tuple[int, int], title: str, workers: int) -> None:
    """Write the clips below ``folder``. Each speaker gets a new process, because espeak-ng's state
    must not carry over to another speaker.
    """
    jobs = [(folder, speaker, texts, seed) for speaker, texts in clips.items() if texts]
    with multiprocessing.Pool(workers, maxtasksperchild=1) as pool:
        finished = pool.imap_unordered(_record, jobs)
        list(progress_bar(finished, desc=title, total=len(jobs), unit="voice"))


def _record(job: tuple[Path, Speaker, dict[str, str], tuple[int, int]]) -> None:
    folder, speaker, texts, seed = job
    rng = np.random.default_rng((*seed, *speaker.name.encode()))
    espeak = Espeak(speaker.voice)
    for path, text in texts.items():
        spoken = espeak.speak(
            text,
            rate=round(speaker.rate * rng.uniform(0.9, 1.1)),
            pitch=int(np.clip(speaker.pitch + rng.integers(-4, 5), 0, 100)),
            pitch_range=int(rng.integers(20, 46)),
        )
        loud = np.flatnonzero(np.abs(spoken) > _amplitude(-40) * np.abs(spoken).max())
        spoken = spoken[loud[0] : loud[-1] + 1]
        speech = soxr.resample(spoken, espeak.sample_rate, SAMPLE_RATE)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_audio(folder / path, _add_noise(speech, rng))


def _add_noise(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale ``speech`` to a random level, add two short pauses, and add noise of a random colour
    and level.
    """
    before, after = (int(rng.uniform(0.03, 0.12) * SAMPLE_RATE) for _ in range(2))
    decibels = rng.uniform(*SPEECH_LEVEL)
    noise = _noise(rng, rng.choice(NOISE_EXPONENTS), before + len(speech) + after)
    noise = _at_level(noise, decibels - rng.uniform(*NOISE_BELOW_SPEECH))
    return np.pad(_at_level(speech, decibels), (before, after)) + noise


def _noise(rng: np.random.Generator, exponent: float, samples: int) -> np.ndarray:
    """Return (samples,) float32 noise with a root mean square of 1."""
    length = 1 << (samples - 1).bit_length()  # the FFT of a power of two is many times faster
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.arange(len(spectrum)) * SAMPLE_RATE / length  # Hz
    spectrum /= np.maximum(frequency, 50.0) ** exponent
    return _at_level(np.fft.irfft(spectrum)[:samples], 0.0)


def _at_level(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Scale ``samples`` to a root mean square of ``decibels`` relative to full scale."""
    return (samples * (_amplitude(decibels) / np.sqrt(np.mean(samples**2)))).astype(np.float32)


def _amplitude(decibels: float) -> float:
    return 10 ** (decibels / 20)


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write (T,) samples in [-1, 1] as 16-bit mono WAV or FLAC, as the suffix of ``path`` says."""
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


@contextlib.contextmanager
def new_corpus(folder: Path, about: Mapping[str, object]) -> Iterator[Path]:
    """Yield a temporary folder to write into. It is renamed to ``folder`` when it is complete.

    ``about`` is saved in it as demo.json. Raises ``UserError`` if ``folder`` already exists.
    """
    if folder.exists():
        raise UserError(f"{folder}: already exists; remove it or choose another --out")
    with replacing_folder(folder) as unfinished:
        yield unfinished
        write_json(unfinished / "demo.json", about)
    print(f"wrote {folder}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
