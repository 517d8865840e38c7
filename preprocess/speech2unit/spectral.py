"""Kaldi's log-mel filter banks (``LogMel``) and MFCCs (``Mfcc``). LogMel uses torch, for all frames
of a batch together and also on a GPU. It is two to three times as fast as kaldi-native-fbank, which
takes one file at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import kaldi_native_fbank as kaldi
import numpy as np
import torch

from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, Source

_WINDOW, _SHIFT, _FFT = 400, 160, 512  # samples: 25 ms, 10 ms, the next power of two
_PREEMPHASIS = 0.97
_LOWEST_HZ, _HIGHEST_HZ = 20.0, SAMPLE_RATE / 2
_EPSILON = torch.finfo(torch.float32).eps
_FRAMES_AT_ONCE = 1024  # temporaries that stay in the cache are twice as fast
_SAMPLES_AT_ONCE = 60 * SAMPLE_RATE  # a list takes eight times the memory of a waveform
# Chosen with 100 units and a linear classifier on other speakers (docs/speech_to_units.md)
_CEPSTRA = 13
_DELTAS = 1  # HuBERT has 2
_STACKED, _SPACING = 5, 3  # 5 frames become one; they are 3 frames (30 ms) apart
_LEAST_DEVIATION = 1e-3  # of log energies; a coefficient below it is constant (silence)


class _Spectral(FeatureReader):
    """One frame per 10 ms: T samples have 1 + (T - 400) // 160 frames (Kaldi's ``snip_edges``)."""

    frame_rate = SAMPLE_RATE / _SHIFT
    min_samples = _WINDOW


class LogMel(_Spectral):
    """80 log mel energies per frame, as ``torchaudio.compliance.kaldi.fbank(waveform,
    num_mel_bins=80, dither=0)`` computes them from samples in [-1, 1]. Kaldi's own programs read
    16-bit integers, so their values are higher by 2 ln 32768.
    """

    dim = 80
    pieces = 10 * _FRAMES_AT_ONCE * _SHIFT, _WINDOW - _SHIFT

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        window = torch.hann_window(_WINDOW, periodic=False) ** 0.85  # Kaldi's "povey" window
        self._window = window.to(source.device)
        self._mel = _mel_banks(self.dim).to(source.device)  # (257, 80)

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map waveforms (T_i,) to log energies (frames_i, 80), or (frames_i, 1, 80)."""
        windows = [waveform.unfold(0, _WINDOW, _SHIFT) for waveform in waveforms]
        frames = torch.cat(windows).to(self._device)  # (N, 400), N = all frames of the batch
        blocks = frames.split(_FRAMES_AT_ONCE)
        energies = torch.cat([self._energies(block) for block in blocks])  # (N, 80)
        energies = energies.unsqueeze(1) if self._all_layers else energies
        return list(energies.split([len(window) for window in windows]))

    def _energies(self, frames: torch.Tensor) -> torch.Tensor:
        """Map (N, 400) samples to (N, 80) log energies."""
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)  # Kaldi repeats the first sample
        frames = torch.sub(frames, before, alpha=_PREEMPHASIS).mul_(self._window)
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=_FFT))  # (N, 257, 2)
        power = spectrum.square().sum(dim=2)  # (N, 257)
        return (power @ self._mel).clamp_min_(_EPSILON).log_()


def _mel_banks(bins: int) -> torch.Tensor:
    """Return triangles evenly spaced on the mel scale, (257, bins). Kaldi's Nyquist row is zero."""
    hertz = torch.arange(_FFT // 2, dtype=torch.float64) * SAMPLE_RATE / _FFT
    ends = torch.tensor([_LOWEST_HZ, _HIGHEST_HZ], dtype=torch.float64)
    mel, (lowest, highest) = (1127 * torch.log1p(f / 700) for f in (hertz, ends))  # (256,)
    width = (highest - lowest) / (bins + 1)
    left = lowest + width * torch.arange(bins)  # (bins,)
    rising = (mel.unsqueeze(1) - left) / width
    falling = (left + 2 * width - mel.unsqueeze(1)) / width
    banks = torch.minimum(rising, falling).clamp_min(0.0).float()
    return torch.nn.functional.pad(banks, (0, 0, 0, 1))


class Mfcc(_Spectral):
    """130 numbers per frame, modelled on HuBERT's first iteration (arXiv 2106.07447). 13 MFCCs
    (Kaldi's defaults, no energy, no dither) and their deltas get mean 0 and deviation 1 over the
    file. They are joined with the frames 30 and 60 ms before and after; beyond the file's ends, the
    first or last frame is repeated. The units then tell words of new speakers apart.
    """

    dim = _CEPSTRA * (1 + _DELTAS) * _STACKED

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._options = kaldi.MfccOptions()
        self._options.frame_opts.dither = 0
        self._options.use_energy = False
        self._options.num_ceps = _CEPSTRA
        self._deltas = kaldi.DeltaOptions(order=_DELTAS)

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, 130)."""
        mfcc = kaldi.OnlineMfcc(self._options)
        for start in range(0, len(samples), _SAMPLES_AT_ONCE):
            piece = samples[start : start + _SAMPLES_AT_ONCE]
            mfcc.accept_waveform(SAMPLE_RATE, piece.tolist())  # an array takes 5 times as long
        mfcc.input_finished()
        frames = np.stack([mfcc.get_frame(index) for index in range(mfcc.num_frames_ready)])
        frames = kaldi.compute_deltas(self._deltas, frames)  # (T, 26)
        frames = frames - frames.mean(axis=0)
        frames /= np.maximum(frames.std(axis=0), _LEAST_DEVIATION)
        offsets = _SPACING * (np.arange(_STACKED) - _STACKED // 2)
        rows = np.arange(len(frames))[:, None] + offsets  # (T, 5)
        return frames[rows.clip(0, len(frames) - 1)].reshape(len(frames), -1)  # (T, 130)
