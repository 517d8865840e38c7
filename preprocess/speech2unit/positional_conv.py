"""The grouped convolution over 128 frames that gives wav2vec 2.0 and HuBERT their positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from preprocess.speech2unit.fairseq_checkpoint import Settings
from preprocess.speech2unit.weights import Weights


class PositionalConv:
    """``gelu(conv(x))`` with zeros beyond both ends, computed in the frequency domain.

    Directly it costs as much as a Transformer layer has in its attention's projections, and on one
    second most of its taps lie on zeros. Blocks of frames go through one transform length, twice
    the kernel's.
    """

    def __init__(self, settings: Settings, weights: Weights) -> None:
        dim, kernel, groups = (
            settings.encoder_embed_dim,
            settings.conv_pos,
            settings.conv_pos_groups,
        )
        shape = (dim, dim // groups, kernel)
        direction = weights.take("encoder.pos_conv.0.weight_v", *shape)
        length = weights.take("encoder.pos_conv.0.weight_g", 1, 1, kernel)
        weight = direction * (length / direction.norm(dim=(0, 1), keepdim=True))  # weight norm
        self._bias = weights.take("encoder.pos_conv.0.bias", dim)
        self._kernel, self._groups, self._size = kernel, groups, 2 * kernel
        spectrum = torch.fft.rfft(weight, n=self._size).conj()  # correlation, not convolution
        spectrum = spectrum.reshape(groups, dim // groups, dim // groups, -1)
        self._spectrum = spectrum.permute(3, 0, 2, 1).contiguous()  # (F, G, C_in, C_out)

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, length, dim = frames.shape
        hop = self._size - self._kernel + 1  # outputs of a block that no wrap-around touches
        blocks = -(-length // hop)
        left = self._kernel // 2
        padded = F.pad(frames, (0, 0, left, blocks * hop + self._kernel - 1 - left - length))
        windows = padded.unfold(1, self._size, hop)  # (B, N, C, S)
        spectrum = torch.fft.rfft(windows)  # (B, N, C, F)
        spectrum = spectrum.reshape(batch * blocks, self._groups, dim // self._groups, -1)
        product = spectrum.permute(3, 1, 0, 2) @ self._spectrum  # (F, G, B * N, C_out)
        product = product.permute(2, 1, 3, 0).reshape(batch, blocks, dim, -1)
        out = torch.fft.irfft(product, n=self._size)[..., :hop]  # (B, N, C, hop)
        out = out.transpose(2, 3).reshape(batch, blocks * hop, dim)[:, :length]
        return F.gelu(out + self._bias)
