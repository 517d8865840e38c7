"""HuBERT features as GSLM's reader gives them, for batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from preprocess.speech2unit.fairseq_checkpoint import load_fairseq_checkpoint
from preprocess.speech2unit.features import SAMPLE_RATE, Source
from preprocess.speech2unit.wav2vec_encoder import Wav2VecEncoder

_PIECE = 1_600_000  # samples; a longer file is encoded in pieces that do not see each other


class Hubert:
    """The output of layer ``source.layer``, counted from 1, of a fairseq HuBERT checkpoint.

    50 frames/s. The waveform is layer-normed over the whole file where the checkpoint says so (or
    ``source.normalize``), then cut into pieces of 100 s. What is left after the last piece and too
    short for a frame has none (the published reader fails there).
    """

    models = ("hubert",)
    first_layer = 1  # the number of the first layer's output

    def __init__(self, source: Source) -> None:
        settings, weights = load_fairseq_checkpoint(source.ckpt_path, self.models, source.device)
        last = settings.encoder_layers - 1 + self.first_layer
        if source.layer is None or not self.first_layer <= source.layer <= last:
            raise UserError(
                f"fairseqrc.layer={source.layer}: {source.ckpt_path} has the layers "
                f"{self.first_layer} to {last}"
            )
        self._encoder = Wav2VecEncoder(settings, weights, source.layer + 1 - self.first_layer)
        self._device = source.device
        self._normalize = settings.normalize if source.normalize is None else source.normalize
        self.dim = self._encoder.dim
        conv = self._encoder.conv
        self.min_samples = conv.samples(1)
        self.frame_rate = SAMPLE_RATE / (conv.samples(2) - conv.samples(1))

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map B waveforms (samples_i,) to B features (T_i, D)."""
        pieces, owners = [], []
        for owner, waveform in enumerate(waveforms):
            waveform = waveform.to(self._device)
            if self._normalize:
                waveform = F.layer_norm(waveform, waveform.shape)
            for piece in waveform.split(_PIECE):
                if len(piece) >= self.min_samples:
                    pieces.append(piece)
                    owners.append(owner)
        features: list[list[torch.Tensor]] = [[] for _ in waveforms]
        for owner, feature in zip(owners, self._encoder(pieces), strict=True):
            features[owner].append(feature)
        return [torch.cat(parts) for parts in features]
