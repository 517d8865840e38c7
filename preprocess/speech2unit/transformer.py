"""The Transformer of wav2vec 2.0 and HuBERT, up to a layer, on frames packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F

from preprocess.speech2unit.fairseq_checkpoint import Settings
from preprocess.speech2unit.weights import Weights

_EPSILON = 1e-5


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
        qkv = F.linear(frames, *self._qkv)  # (N, 3D)
        mixed = torch.empty_like(frames)
        for start, count, length in runs(lengths):
            here = slice(start, start + count * length)
            parts = qkv[here].view(count, length, 3, self._heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
            heads = F.scaled_dot_product_attention(query, key, value)  # (B, H, T, D / H)
            mixed[here] = heads.transpose(1, 2).reshape(count * length, -1)
        return F.linear(mixed, *self._out)

    def _feed_forward(self, frames: torch.Tensor) -> torch.Tensor:
        return F.linear(F.gelu(F.linear(frames, *self._fc1)), *self._fc2)


def norm(frames: torch.Tensor, weight: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Layer norm over the last dimension."""
    return F.layer_norm(frames, frames.shape[-1:], *weight, _EPSILON)


def runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours of one length, as (first frame, waveforms, length)."""
    found, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        found.append((start, count, length))
        start += count * length
    return found
