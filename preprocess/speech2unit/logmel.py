"""Log-mel filter banks as ``torchaudio.compliance.kaldi.fbank(waveform, num_mel_bins=80,
dither=0)`` computes them.

In torch, for all frames of a batch together: on a CPU this quantises two to three times as fast as
kaldi-native-fbank, which takes one file at a time from Python numbers, and it runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.errors import UserError
from preprocess.speech2unit.features import SAMPLE_RATE, Source

_WINDOW, _SHIFT, _FFT = 400, 160, 512  # samples: 25 ms, 10 ms, the next power of two
_BLOCK = 1024  # frames at a time: temporaries that stay in the cache are twice as fast
_PREEMPHASIS = 0.97
_LOWEST_HZ, _HIGHEST_HZ = 20.0, SAMPLE_RATE / 2
_EPSILON = torch.finfo(torch.float32).eps


class LogMel:
    """80 log mel energies every 10 ms; a waveform of T samples has 1 + (T - 400) // 160 frames
    (``snip_edges``).

    They are one layer. The waveform stays in [-1, 1], as torchaudio takes it; Kaldi's own programs
    read 16-bit integers, so their values lie 2 ln 32768 higher.
    """

    dim = 80
    frame_rate = SAMPLE_RATE / _SHIFT
    min_samples = _WINDOW
    pieces = 10 * _BLOCK * _SHIFT, _WINDOW - _SHIFT

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for a checkpoint or a layer."""
        if (source.ckpt_path, source.layer, source.normalize) != (None, None, None):
            raise UserError(
                "fairseqrc: logmel has no checkpoint; leave ckpt_path, layer and normalize empty"
            )
        self._device = source.device
        self._frame = (1, self.dim) if source.all_layers else (self.dim,)
        window = torch.hann_window(_WINDOW, periodic=False) ** 0.85  # Kaldi's "povey" window
        self._window = window.to(source.device)
        self._mel = _mel_banks(self.dim).to(source.device)  # (257, 80)

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map waveforms (T_i,) to log energies (frames_i, 80), or (frames_i, 1, 80). No frame sees
        another, so padding is not needed.
        """
        windows = [waveform.unfold(0, _WINDOW, _SHIFT) for waveform in waveforms]
        frames = torch.cat(windows).to(self._device)  # (N, 400), N = frames of the whole batch
        energies = torch.cat([self._energies(block) for block in frames.split(_BLOCK)])  # (N, 80)
        return list(energies.view(-1, *self._frame).split([len(window) for window in windows]))

    def _energies(self, frames: torch.Tensor) -> torch.Tensor:
        """Map (N, 400) samples to (N, 80) log energies."""
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)  # Kaldi repeats the first sample
        frames = torch.sub(frames, before, alpha=_PREEMPHASIS).mul_(self._window)
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=_FFT))  # (N, 257, 2)
        power = spectrum.square().sum(dim=2)  # (N, 257)
        return (power @ self._mel).clamp_min_(_EPSILON).log_()


def _mel_banks(bins: int) -> torch.Tensor:
    """Triangles evenly spaced on the mel scale, (257, bins) float32; the Nyquist row is zero, as
    Kaldi has it.
    """
    hertz = torch.arange(_FFT // 2, dtype=torch.float64) * SAMPLE_RATE / _FFT
    ends = torch.tensor([_LOWEST_HZ, _HIGHEST_HZ], dtype=torch.float64)
    mel, (lowest, highest) = (1127 * torch.log1p(f / 700) for f in (hertz, ends))  # (256,)
    width = (highest - lowest) / (bins + 1)
    left = lowest + width * torch.arange(bins)  # (bins,)
    rising = (mel.unsqueeze(1) - left) / width
    falling = (left + 2 * width - mel.unsqueeze(1)) / width
    banks = torch.minimum(rising, falling).clamp_min(0.0).float()
    return torch.nn.functional.pad(banks, (0, 0, 0, 1))
