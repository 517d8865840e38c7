"""Noise, levels and 16-bit files for the demo's speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

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
