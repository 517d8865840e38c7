"""The network that HuBERT and wav2vec 2.0 share, computed for a batch as for each waveform alone.

Convolutions map the waveform to a frame every 20 ms, a grouped convolution over 128 frames adds
positions, Transformer layers follow. fairseq pads a batch, and HuBERT's first norm then sees the
zeros. Here nothing is padded. Why it is written this way:

- Waveforms of one length share the convolutions. These are matrix products over frames that are
  neighbours in memory, in pieces that fit the processor's cache.
- The convolution for the positions runs in the frequency domain: directly it costs as much as a
  Transformer layer's attention projections.
- The Transformer's products run over all frames of the batch, attention inside each waveform.
- Layers above the one asked for are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F

from preprocess.speech2unit.fairseq_checkpoint import Settings, Weights
from preprocess.speech2unit.wav2vec_convolutions import (
    ConvExtractor,
    PositionalConv,
    linear,
    norm,
)

_TOGETHER = {"cpu": 1}  # waveforms that share the convolutions; one by one stays in the cache


class TransformerLayer:
    """One layer, pre-norm or post-norm. Matrix products run over all frames of the batch at once,
    attention inside each waveform.
    """

    def __init__(self, settings: Settings, weights: Weights, index: int) -> None:
        dim, hidden = settings.encoder_embed_dim, settings.encoder_ffn_embed_dim
        name = f"encoder.layers.{index}"
        projections = [weights.linear(f"{name}.self_attn.{part}_proj", dim, dim) for part in "qkv"]
        self._qkv = [torch.cat(tensors) for tensors in zip(*projections)]  # (3D, D), (3D,)
        self._out = weights.linear(f"{name}.self_attn.out_proj", dim, dim)
        self._fc1 = weights.linear(f"{name}.fc1", hidden, dim)
        self._fc2 = weights.linear(f"{name}.fc2", dim, hidden)
        self._attention_norm = weights.norm(f"{name}.self_attn_layer_norm", dim)
        self._final_norm = weights.norm(f"{name}.final_layer_norm", dim)
        self._heads = settings.encoder_attention_heads
        self._norm_first = settings.layer_norm_first

    def __call__(self, frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Map (N, D) to (N, D); ``lengths`` are the waveforms' frames, N in all."""
        if self._norm_first:
            frames = frames + self._attention(norm(frames, self._attention_norm), lengths)
            return frames + self._feed_forward(norm(frames, self._final_norm))
        frames = norm(frames + self._attention(frames, lengths), self._attention_norm)
        return norm(frames + self._feed_forward(frames), self._final_norm)

    def _attention(self, frames: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        qkv = linear(frames, self._qkv)  # (N, 3D)
        mixed = torch.empty_like(frames, dtype=qkv.dtype)
        for start, count, length in runs(lengths):
            rows = slice(start, start + count * length)
            parts = qkv[rows].view(count, length, 3, self._heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
            heads = F.scaled_dot_product_attention(query, key, value)  # (B, H, T, D / H)
            mixed[rows] = heads.transpose(1, 2).reshape(count * length, -1)
        return linear(mixed, self._out)

    def _feed_forward(self, frames: torch.Tensor) -> torch.Tensor:
        return linear(F.gelu(linear(frames, self._fc1)), self._fc2)


def runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours of one length, as (first frame, waveforms, length)."""
    neighbours, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        neighbours.append((start, count, length))
        start += count * length
    return neighbours


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
        if self.conv.dim != dim or "post_extract_proj.weight" in weights:
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
            frames = linear(frames, self._project).float()  # (N, D)
        for start, count, length in runs(lengths):
            batch = frames[start : start + count * length].view(count, length, -1)  # (B, T, D)
            batch += self._positions(batch)
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
        return [features[rank] for rank in sorted(range(len(order)), key=order.__getitem__)]

    def _convolve(self, waveforms: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map waveforms, sorted by length, to their frames one after the other, (N, C)."""
        together = _TOGETHER.get(waveforms[0].device.type, len(waveforms))
        frames = []
        for _, group in groupby(waveforms, key=len):
            for batch in torch.stack(list(group)).split(together):  # (B, samples)
                frames.append(self.conv(batch).flatten(0, 1))
        return torch.cat(frames)
