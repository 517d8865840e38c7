"""CPC's five convolutions: waveforms to one vector every 160 samples, in batches of any lengths.

Each kernel is twice its stride, so cutting the input into chunks of one stride makes a convolution
``y[t] = x[t] A + x[t + 1] B``: matrix products over chunks, with no copy. All stretches of a batch
lie one after another in one long sequence, so that lengths need no padding to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from preprocess.speech2unit.fairseq_checkpoint import Weights
from preprocess.speech2unit.features import grouped

HOP = 160  # samples a frame
KERNELS = (10, 8, 4, 4, 4)
STRIDES = (5, 4, 2, 2, 2)  # the padding is 3, 2, 1, 1, 1
_EPSILON = 1e-5

# Of each layer's output: vectors a frame, and how many before a frame's first that frame sees
_RATES = (32, 8, 4, 2, 1)
_LEADS = (30, 7, 3, 1, 0)
_LEAD = 153  # the same in samples; after its first sample a frame sees 311 more
_MARGIN = 2  # a stretch of n frames sees less than (n + 2) * 160 samples
_MOST_FRAMES = {"cpu": 200}  # at once; the first layer holds 64 KiB a frame


class Stretch(NamedTuple):
    """``count`` frames from frame ``first`` of ``waveform`` (T,), with silence beyond its ends."""

    waveform: torch.Tensor
    first: int
    count: int


def frames_in(samples: int) -> int:
    """Frames of a waveform: (T - kernel + 2 padding) // stride + 1, through all five layers."""
    return (samples + 1) // HOP


class ConvEncoder:
    """Convolution, norm over channels, ReLU, five times. The first layer's products are float32."""

    def __init__(
        self, weights: Weights, channels: int, device: torch.device, products: torch.dtype
    ) -> None:
        self._layers = [
            _Layer(weights, index, channels, products if index else torch.float32)
            for index in range(len(KERNELS))
        ]
        self._device = device
        self._most = _MOST_FRAMES.get(device.type, 20_000)

    def __call__(self, stretches: Sequence[Stretch]) -> list[torch.Tensor]:
        """Map stretches to (count, C) each, on the device."""
        parts = [  # no longer than the most frames at once
            (index, Stretch(waveform, start, min(self._most, first + count - start)))
            for index, (waveform, first, count) in enumerate(stretches)
            for start in range(first, first + count, self._most)
        ]
        features: list[list[torch.Tensor]] = [[] for _ in stretches]
        for group in grouped(parts, lambda part: part[1].count, self._most):
            encoded = self._encode([part for _, part in group])
            for (index, _), frames in zip(group, encoded, strict=True):
                features[index].append(frames)
        return [part[0] if len(part) == 1 else torch.cat(part) for part in features]

    def _encode(self, stretches: Sequence[Stretch]) -> list[torch.Tensor]:
        starts, total = [], 0
        for stretch in stretches:
            starts.append(total)
            total += stretch.count + _MARGIN
        sequence = torch.zeros((total + -total % 3) * HOP)  # a layer computes vectors in threes
        for start, (waveform, first, count) in zip(starts, stretches, strict=True):
            begin = first * HOP - _LEAD
            seen = waveform[max(begin, 0) : begin + (count + _MARGIN) * HOP]
            at = start * HOP + max(-begin, 0)
            sequence[at : at + len(seen)] = seen
        hidden = sequence.to(self._device).unsqueeze(1)  # (samples, 1)
        lengths = [len(stretch.waveform) + 1 for stretch in stretches]
        for layer, stride, rate, lead in zip(self._layers, STRIDES, _RATES, _LEADS, strict=True):
            hidden = layer(hidden)  # (rate * total, C)
            lengths = [length // stride for length in lengths]
            for start, stretch, length in zip(starts, stretches, lengths, strict=True):
                rows = hidden[start * rate : (start + stretch.count + _MARGIN) * rate]
                before = lead - stretch.first * rate  # vectors that lie before the waveform
                if before > 0:
                    rows[:before] = 0
                rows[max(length + before, 0) :] = 0
        return [hidden[start : start + one.count] for start, one in zip(starts, stretches)]


class _Layer:
    """One convolution, its norm and ReLU, without padding."""

    def __init__(self, weights: Weights, index: int, channels: int, products: torch.dtype) -> None:
        conv, norm, stride = f"gEncoder.conv{index}", f"gEncoder.batchNorm{index}", STRIDES[index]
        inputs = channels if index else 1
        kernel = weights.take(f"{conv}.weight", channels, inputs, KERNELS[index])
        first, second = (
            half.permute(2, 1, 0).reshape(-1, channels).to(products)
            for half in kernel.split(stride, dim=2)
        )  # A and B, (stride * C_in, C)
        self._stride, self._channels = stride, channels
        self._first, self._second = first, second
        self._sum, self._difference = (first + second) / 2, (first - second) / 2
        self._bias = weights.take(f"{conv}.bias", channels).to(products)
        # layer_norm divides the variance by C, the published norm by C - 1
        ratio = (channels - 1) / channels
        self._norm = weights.take(f"{norm}.weight", 1, channels, 1).flatten() * ratio**0.5
        self._shift = weights.take(f"{norm}.bias", 1, channels, 1).flatten()
        self._epsilon = _EPSILON * ratio

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (n * stride, C_in), n divisible by 3, to (n, C); the last lacks what would follow it.

        Three outputs y0 = x0 A + x1 B, y1 = x1 A + x2 B, y2 = x2 A + x3 B need four products, not
        six (Winograd's F(3, 2), the products being nearly all of the time). In
        bfloat16 their sums would lose too many bits: six products.
        """
        if self._first.dtype != torch.float32:
            rows = hidden.to(self._first.dtype).view(-1, len(self._first))  # (n, stride * C_in)
            output = torch.addmm(self._bias, rows, self._first)
            output[:-1].addmm_(rows[1:], self._second)
            return self._normalised(output.float())
        chunks = hidden.reshape(-1, 3, self._stride * hidden.shape[1])  # (n / 3, 3, stride * C_in)
        x0, x1, x2 = chunks.unbind(dim=1)
        last = -x1
        last[:-1] += x0[1:]  # x3 - x1
        product = torch.addmm(self._bias, x1 + x2, self._sum)  # (n / 3, C)
        other = torch.mm(x2 - x1, self._difference)
        both = product + other  # x1 B + x2 A
        output = torch.empty(len(x0), 3, self._channels, device=hidden.device)
        torch.addmm(both, x0 - x2, self._first, out=output[:, 0])
        torch.sub(product, other, out=output[:, 1])
        torch.addmm(both, last, self._second, out=output[:, 2])
        return self._normalised(output.view(-1, self._channels))

    def _normalised(self, output: torch.Tensor) -> torch.Tensor:
        shape = (self._channels,)
        return F.layer_norm(output, shape, self._norm, self._shift, self._epsilon).relu_()
