"""MFCCs, which HuBERT's first iteration clusters (arXiv 2106.07447), by kaldi-native-fbank;
normalised and stacked, so that units tell words of new speakers apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import kaldi_native_fbank as kaldi
import numpy as np
import torch

from pipeline.errors import UserError
from preprocess.speech2unit.features import SAMPLE_RATE, Source

_WINDOW, _SHIFT = 400, 160  # samples: 25 ms, 10 ms
_BLOCK = 60 * SAMPLE_RATE  # samples at a time: a list takes eight times a waveform's memory
# Measured with 100 units and a linear classifier on speakers not heard (docs/speech_to_units.md)
_CEPSTRA = 13
_DELTAS = 1  # HuBERT has 2
_STACKED, _SPACING = 5, 3  # frames side by side, each 3 frames (30 ms) from the next
_LEAST_DEVIATION = 1e-3  # of log energies; below it a coefficient does not change (silence)


class Mfcc:
    """130 numbers every 10 ms; a waveform of T samples has 1 + (T - 400) // 160 frames.

    13 MFCCs (no energy, Kaldi's defaults, no dither) and their deltas. Over the file, the mean
    is 0 and the deviation 1. Then a frame is joined with those 30 and 60 ms before and after it;
    the first and last frames repeat at the file's ends.
    """

    dim = _CEPSTRA * (1 + _DELTAS) * _STACKED
    frame_rate = SAMPLE_RATE / _SHIFT
    min_samples = _WINDOW

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for a checkpoint or a layer."""
        if (source.ckpt_path, source.layer, source.normalize) != (None, None, None):
            raise UserError(
                "fairseqrc: mfcc has no checkpoint; leave ckpt_path, layer and normalize empty"
            )
        self._device = source.device
        self._frame = (1, self.dim) if source.all_layers else (self.dim,)
        self._options = kaldi.MfccOptions()
        self._options.frame_opts.dither = 0
        self._options.use_energy = False
        self._options.num_ceps = _CEPSTRA
        self._deltas = kaldi.DeltaOptions(order=_DELTAS)

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map waveforms (T_i,) to features (frames_i, 130), or (frames_i, 1, 130), one by one."""
        features = [torch.from_numpy(self._features(waveform)) for waveform in waveforms]
        return [frames.to(self._device).view(-1, *self._frame) for frames in features]

    def _features(self, waveform: torch.Tensor) -> np.ndarray:
        """Map (T,) to (frames, 130)."""
        mfcc = kaldi.OnlineMfcc(self._options)
        for piece in waveform.split(_BLOCK):
            mfcc.accept_waveform(SAMPLE_RATE, piece.tolist())  # an array takes 5 times as long
        mfcc.input_finished()
        frames = np.stack([mfcc.get_frame(index) for index in range(mfcc.num_frames_ready)])
        frames = kaldi.compute_deltas(self._deltas, frames)  # (T, 26)
        frames = frames - frames.mean(axis=0)
        frames /= np.maximum(frames.std(axis=0), _LEAST_DEVIATION)
        offsets = _SPACING * (np.arange(_STACKED) - _STACKED // 2)
        rows = np.arange(len(frames))[:, None] + offsets  # (T, 5)
        return frames[rows.clip(0, len(frames) - 1)].reshape(len(frames), -1)  # (T, 130)
