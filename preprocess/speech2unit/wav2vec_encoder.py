"""The network that HuBERT and wav2vec 2.0 share, computed for a batch as for each waveform alone.

fairseq pads a batch, and HuBERT's first norm then sees the zeros. Here nothing is padded: waveforms
of one length share the convolutions, and the Transformer's matrix products run over all frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from preprocess.speech2unit.conv_extractor import ConvExtractor
from preprocess.speech2unit.fairseq_checkpoint import Settings
from preprocess.speech2unit.positional_conv import PositionalConv
from preprocess.speech2unit.transformer import TransformerLayer, norm, runs
from preprocess.speech2unit.weights import Weights

_TOGETHER = {"cpu": 1}  # waveforms that share the convolutions; one by one stays in the cache


class Wav2VecEncoder:
    """Features after the first ``layers`` Transformer layers; the others are never read.

    With ``keep_all`` the first layer's input and every layer's output. The last of a pre-norm model
    is then layer-normed, as the model's own output is.
    """

    def __init__(
        self, settings: Settings, weights: Weights, layers: int, keep_all: bool = False
    ) -> None:
        dim = settings.encoder_embed_dim
        self.dim = dim
        self.conv = ConvExtractor(settings, weights)
        self._conv_norm = weights.norm("layer_norm", self.conv.dim)
        self._project = None
        if self.conv.dim != dim:
            self._project = weights.linear("post_extract_proj", dim, self.conv.dim)
        self._positions = PositionalConv(settings, weights)
        self._norm_first = settings.layer_norm_first
        self._encoder_norm = weights.norm("encoder.layer_norm", dim)
        self._keep_all = keep_all
        self._layers = [TransformerLayer(settings, weights, index) for index in range(layers)]

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map waveforms (samples_i,), each long enough for a frame, to (T_i, D) on their device, or
        (T_i, layers + 1, D).
        """
        order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
        waveforms = [waveforms[index] for index in order]
        lengths = [self.conv.frames(len(waveform)) for waveform in waveforms]
        frames = norm(self._convolve(waveforms), self._conv_norm)  # (N, C), N = sum of lengths
        if self._project is not None:
            frames = torch.nn.functional.linear(frames, *self._project)  # (N, D)
        for start, count, length in runs(lengths):
            here = frames[start : start + count * length].view(count, length, -1)
            here += self._positions(here)
        if not self._norm_first:
            frames = norm(frames, self._encoder_norm)
        kept = [frames]
        for layer in self._layers:
            frames = layer(frames, lengths)
            if self._keep_all:
                kept.append(frames)
        if self._keep_all:
            if self._norm_first:
                kept[-1] = norm(frames, self._encoder_norm)
            frames = torch.stack(kept, dim=1)  # (N, L, D)
        features = frames.split(lengths)
        return [features[place] for place in sorted(range(len(order)), key=order.__getitem__)]

    def _convolve(self, waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map waveforms, sorted by length, to their frames one after the other, (N, C)."""
        together = _TOGETHER.get(waveforms[0].device.type, len(waveforms))
        frames = []
        start = 0
        for _, count, _ in runs([len(waveform) for waveform in waveforms]):
            for first in range(start, start + count, together):
                last = min(first + together, start + count)
                batch = torch.stack(list(waveforms[first:last]))
                frames.append(self.conv(batch).flatten(0, 1))
            start += count
        return torch.cat(frames)
