"""The convolutions of HuBERT and wav2vec 2.0: over the waveform, and over 128 frames for positions.

The waveform's convolutions are matrix products over frames that are neighbours in memory, in pieces
that fit the processor's cache. The positional convolution runs in the frequency domain: computed
directly, it costs as much as the attention projections of a Transformer layer. Products are in
``weights.dtype``. Norms, the positional transform and the first layer (on samples) stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.devices import in_float64
from preprocess.speech2unit.fairseq_checkpoint import Settings, Weights
from preprocess.speech2unit.features import tf32

_EPSILON = 1e-5  # of every norm
_FRAMES_PER_PIECE = {"cpu": 64}  # 1.3 s: activations of 8 MB; other devices: whole waveforms


class ConvExtractor:
    """fairseq's ``ConvFeatureExtractionModel`` in its two modes (``default``, ``layer_norm``)."""

    def __init__(self, settings: Settings, weights: Weights) -> None:
        self._group_norm = settings.extractor_mode == "default"
        self._shape = settings.conv_feature_layers
        self.dim = self._shape[-1][0]
        self._layers: list[_Conv] = []
        channels = 1
        for index, (out, kernel, stride) in enumerate(self._shape):
            name, exact = f"feature_extractor.conv_layers.{index}", index == 0
            weight = weights.take(f"{name}.0.weight", out, channels, kernel, exact=exact)
            bias = weights.take(f"{name}.0.bias", out, exact=exact) if settings.conv_bias else None
            norm = None
            if exact or not self._group_norm:
                norm = weights.norm(f"{name}.2" if self._group_norm else f"{name}.2.1", out)
            self._layers.append(_Conv(weight, bias, norm, stride))
            channels = out

    def frames(self, samples: int) -> int:
        """Return the number of frames of a waveform; 0 if it is too short for one frame."""
        for _, kernel, stride in self._shape:
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def samples(self, frames: int) -> int:
        """Return the smallest number of samples that gives ``frames`` frames."""
        for _, kernel, stride in reversed(self._shape):
            frames = (frames - 1) * stride + kernel
        return frames

    def __call__(self, waveforms: Tensor) -> Tensor:
        """Map waveforms of one length, (B, samples), to (B, T, C)."""
        total = self.frames(waveforms.shape[1])
        piece = _FRAMES_PER_PIECE.get(waveforms.device.type, total)
        hop = self.samples(2) - self.samples(1)
        first = _Scaled(self._layers[0], waveforms) if self._group_norm else self._layers[0]
        pieces = []
        for start in range(0, total, piece):
            length = self.samples(min(piece, total - start))
            frames = waveforms[:, start * hop : start * hop + length].unsqueeze(2)
            for layer in (first, *self._layers[1:]):
                frames = layer(frames)  # (B, T', C)
            pieces.append(frames)
        return torch.cat(pieces, dim=1)


class _Conv:
    """A convolution, an optional layer norm and GELU, on (B, T, C_in) frames."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, Tensor] | None, stride: int
    ) -> None:
        out, channels, kernel = weight.shape
        self.kernel, self.stride, self.bias, self.norm = kernel, stride, bias, norm
        taps = weight.permute(2, 1, 0).reshape(kernel * channels, out)
        # `stride` taps read frames that are neighbours in memory: each group is one matrix product
        self.taps = [group.contiguous() for group in taps.split(stride * channels)]

    def __call__(self, frames: Tensor) -> Tensor:
        """Map (B, T, C_in) to (B, (T - kernel) // stride + 1, C_out)."""
        frames = frames.to(self.taps[0].dtype)
        batch, length, channels = frames.shape
        count, step = (length - self.kernel) // self.stride + 1, self.stride * channels
        out = None
        for index, weight in enumerate(self.taps):
            shape, strides = (batch, count, len(weight)), (frames.stride(0), step, 1)
            windows = frames.as_strided(shape, strides, frames.storage_offset() + index * step)
            weight = weight.expand(batch, *weight.shape)
            out = torch.bmm(windows, weight) if out is None else out.baddbmm_(windows, weight)
        if self.bias is not None:
            out += self.bias
        if self.norm is not None:
            out = norm(out, self.norm)
        return F.gelu(out)


class _Scaled:
    """The first layer, merged with its group norm over a channel's whole time, for given waveforms.
    Mean and variance follow from the windows x: E[w.x] = w.E[x] and Var[w.x] = w.Cov[x].w. So no
    pass over the 512 channels is needed.
    """

    def __init__(self, conv: _Conv, waveforms: Tensor) -> None:
        weight = in_float64(torch.cat(conv.taps))  # (K, C)
        scale, shift = map(in_float64, conv.norm)
        windows = waveforms.unfold(1, conv.kernel, conv.stride)  # (B, T, K)
        mean, covariance = _moments(windows)  # (B, K), (B, K, K)
        variance = ((covariance @ weight) * weight).sum(dim=1)  # (B, C)
        scale = scale * torch.rsqrt(variance.clamp_min(0) + _EPSILON)  # (B, C)
        self.weight = (weight * scale.unsqueeze(1)).float().to(waveforms.device)  # (B, K, C)
        bias = (shift - (mean @ weight) * scale).float()  # (B, C)
        self.bias = bias.to(waveforms.device).unsqueeze(1)  # (B, 1, C)
        self.kernel, self.stride = conv.kernel, conv.stride

    def __call__(self, frames: Tensor) -> Tensor:
        """Map samples (B, T, 1) to (B, T', C)."""
        windows = frames.squeeze(2).unfold(1, self.kernel, self.stride)  # (B, T', K)
        return F.gelu(torch.baddbmm(self.bias, windows, self.weight))


def _moments(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance over windows (B, T, K) in float64, a million samples at a time."""
    count = windows.shape[1]
    mean = sum(in_float64(part).sum(dim=1) for part in windows.split(100_000, dim=1)) / count
    covariance = 0
    for part in windows.split(100_000, dim=1):
        centred = in_float64(part) - mean.unsqueeze(1)  # (B, T', K)
        covariance = covariance + centred.transpose(1, 2) @ centred / count
    return mean, covariance


def linear(frames: Tensor, weight: Sequence[Tensor]) -> Tensor:
    """Map (..., C_in) to (..., C_out), in the weights' dtype."""
    return F.linear(frames.to(weight[0].dtype), *weight)


def norm(frames: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
    """Apply layer norm over the last dimension, in float32."""
    return F.layer_norm(frames.float(), frames.shape[-1:], *weight, _EPSILON)


class PositionalConv:
    """``gelu(conv(x))``, zero-padded at both ends, by FFTs of twice the kernel's length."""

    def __init__(self, settings: Settings, weights: Weights) -> None:
        dim = settings.encoder_embed_dim
        kernel, groups = settings.conv_pos, settings.conv_pos_groups
        shape = (dim, dim // groups, kernel)
        direction = weights.take("encoder.pos_conv.0.weight_v", *shape, exact=True)
        length = weights.take("encoder.pos_conv.0.weight_g", 1, 1, kernel, exact=True)
        weight = direction * (length / direction.norm(dim=(0, 1), keepdim=True))  # weight norm
        self._bias = weights.take("encoder.pos_conv.0.bias", dim, exact=True)
        self._kernel, self._groups, self._size = kernel, groups, 2 * kernel
        spectrum = torch.fft.rfft(weight, n=self._size).conj()  # correlation, not convolution
        spectrum = spectrum.reshape(groups, dim // groups, dim // groups, -1)
        self._spectrum = spectrum.permute(3, 0, 2, 1).contiguous()  # (F, G, C_in, C_out)

    def __call__(self, frames: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, length, dim = frames.shape
        hop = self._size - self._kernel + 1  # outputs per block that are free of wrap-around
        blocks = -(-length // hop)
        left = self._kernel // 2
        padded = F.pad(frames, (0, 0, left, blocks * hop + self._kernel - 1 - left - length))
        windows = padded.unfold(1, self._size, hop)  # (B, N, C, S)
        spectrum = torch.fft.rfft(windows)  # (B, N, C, F)
        spectrum = spectrum.reshape(batch * blocks, self._groups, dim // self._groups, -1)
        with tf32(False):
            product = spectrum.permute(3, 1, 0, 2) @ self._spectrum  # (F, G, B * N, C_out)
        product = product.permute(2, 1, 3, 0).reshape(batch, blocks, dim, -1)
        out = torch.fft.irfft(product, n=self._size)[..., :hop]  # (B, N, C, hop)
        out = out.transpose(2, 3).reshape(batch, blocks * hop, dim)[:, :length]
        return F.gelu(out + self._bias)
