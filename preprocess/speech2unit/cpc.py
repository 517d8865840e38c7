"""CPC features (Riviere et al. 2020, arXiv 2002.02848) as GSLM's reader computes them, for batches.

Five convolutions, then an LSTM, cut to the layers asked for. The published reader encodes each
piece of 64,000 samples by itself. For a remainder it encodes the *whole* file again and takes the
last frames. Units must match it, so both are computed here, but together: they share all
convolution outputs but two frames at a piece's ends, and all files of a batch advance together.

Each kernel is twice its stride, so that over chunks of one stride a convolution is ``y[t] = x[t] A
+ x[t + 1] B``: matrix products. All stretches of a batch lie in one long sequence, unpadded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.torch_files import load_torch
from preprocess.speech2unit.fairseq_checkpoint import Weights
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader, Source, grouped, tf32

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
_PIECE = 64_000  # samples of a piece; each piece starts from a fresh LSTM state
_PIECE_FRAMES = _PIECE // HOP


class Cpc(FeatureReader):
    """CPC features, ``dim`` numbers every 10 ms, file by file what the published reader gives.
    ``source.all_layers``: the output of each LSTM layer, after that of the convolutions where it is
    as wide; for one layer the hidden states of SUPERB's toolkit.
    """

    takes = ("ckpt_path", "layer")
    dtypes = ("float32", "bfloat16", "tf32")  # bfloat16: of the convolutions alone
    frame_rate = SAMPLE_RATE / HOP
    min_samples = HOP - 1

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for settings that cannot be, and for a checkpoint without them."""
        super().__init__(source)
        weights, channels, self.dim, levels = _read_checkpoint(source.ckpt_path, source.device)
        layers = levels if source.all_layers else source.layer
        if layers is None or not 1 <= layers <= levels:
            what = "cpc needs the number of LSTM layers to run, for the published units 2"
            there = f"{source.ckpt_path} has {levels} LSTM layer(s)"
            raise UserError(f"fairseqrc.layer={layers}: {what}; {there}")
        products = torch.bfloat16 if source.dtype == "bfloat16" else torch.float32
        self._encoder = ConvEncoder(weights, channels, source.device, products)
        self._tf32, self._count = source.dtype == "tf32", layers
        # as one operation, or layer by layer where every layer's output is wanted
        starts = range(layers) if source.all_layers else [0]
        self._lstms = [
            _lstm(weights, start, layers // len(starts), self.dim if start else channels, self.dim)
            for start in starts
        ]
        self._with_input = channels == self.dim

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map waveforms (T_i,) to features (frames_i, D), or (frames_i, L, D)."""
        shape = (self._count + self._with_input, self.dim) if self._all_layers else (self.dim,)
        fresh = torch.zeros(2, self._count, self.dim, device=self._device)
        tracks = [_Track(waveform, shape, fresh) for waveform in waveforms]
        with tf32(self._tf32):
            for piece in range(max(track.blocks for track in tracks)):
                self._advance([track for track in tracks if piece < track.blocks], piece, fresh)
        return [track.features for track in tracks]

    def _advance(self, tracks: Sequence[_Track], piece: int, fresh: torch.Tensor) -> None:
        """Run one piece of each track: the part of the whole-file run, and the piece by itself."""
        stretches = [stretch for track in tracks for stretch in track.stretches(piece)]
        encoded = iter(self._encoder(stretches))
        rows, states, owners = [], [], []  # of the LSTM
        for track in tracks:
            for whole, frames in track.runs(piece, encoded):
                rows.append(frames)
                states.append(track.state if whole else fresh)
                owners.append((track, whole))
        state = torch.stack(states, dim=2)  # (2, layers, rows, D)
        frames = nn.utils.rnn.pad_sequence(rows)  # (T, rows, C); what is right of a row is unseen
        kept, after = [frames] if self._with_input else [], []
        parts = state.split(self._lstms[0].num_layers, dim=1)
        for lstm, (hidden, cell) in zip(self._lstms, parts, strict=True):
            frames, ended = lstm(frames, (hidden, cell))  # (T, rows, D)
            kept.append(frames)
            after.append(torch.stack(ended))
        output = torch.stack(kept, dim=2) if self._all_layers else frames
        state = torch.cat(after, dim=1)
        for row, (track, whole) in enumerate(owners):
            track.keep(output[: len(rows[row]), row], whole, piece)
            if whole:  # unless it ends here, it fills the piece: no padding is in its state
                track.state = state[:, :, row]


class _Track:
    """A waveform on its way: which frames are computed, and which are kept."""

    def __init__(self, waveform: torch.Tensor, frame: tuple[int, ...], state: torch.Tensor) -> None:
        self._waveform = waveform
        self.state = state  # (2, layers, D), of the whole-file run
        self._pieces, remainder = divmod(len(waveform), _PIECE)
        self._total = frames_in(len(waveform)) if remainder else 0  # of the whole-file run
        taken = remainder // (len(waveform) // self._total) if remainder else 0
        if taken == 0:
            taken = self._total  # as published: `[-0:]` takes every frame
        self._first = max(self._total - taken, 0)  # of the whole-file run that is kept
        self.blocks = max(self._pieces, -(-self._total // _PIECE_FRAMES))
        kept = self._pieces * _PIECE_FRAMES + self._total - self._first
        self.features = torch.empty(kept, *frame, device=state.device)

    def stretches(self, piece: int) -> list[Stretch]:
        """What to encode for this piece: frames of the whole, and those that are its own."""
        first = piece * _PIECE_FRAMES
        cut = self._waveform[piece * _PIECE : (piece + 1) * _PIECE]
        if not self._total:
            return [Stretch(cut, 0, _PIECE_FRAMES)]
        whole = Stretch(self._waveform, first, min(self._total - first, _PIECE_FRAMES))
        if piece >= self._pieces:
            return [whole]
        # a frame sees 153 samples before its first and 311 after: only two look beyond the piece
        return [whole, Stretch(cut, 0, 1), Stretch(cut, _PIECE_FRAMES - 1, 1)]

    def runs(self, piece: int, encoded: Iterator[torch.Tensor]) -> list[tuple[bool, torch.Tensor]]:
        """The LSTM's inputs, of the encoded ``stretches``: (is it the whole-file run?, (T, C))."""
        first = next(encoded)
        if not self._total or piece >= self._pieces:
            return [(self._total > 0, first)]
        return [(True, first), (False, torch.cat([next(encoded), first[1:-1], next(encoded)]))]

    def keep(self, output: torch.Tensor, whole: bool, piece: int) -> None:
        """Store what of the (T, D) or (T, L, D) LSTM output belongs to the features."""
        first = piece * _PIECE_FRAMES
        if not whole:
            self.features[first : first + _PIECE_FRAMES] = output
            return
        skipped = max(self._first - first, 0)
        start = self._pieces * _PIECE_FRAMES + first + skipped - self._first
        kept = output[skipped:]
        self.features[start : start + len(kept)] = kept


def _read_checkpoint(path: Path, device: torch.device) -> tuple[Weights, int, int, int]:
    """The weights; channels of the convolutions, numbers and layers of the LSTM."""
    state = load_torch(path, mapped=True)
    weights, config = state.get("weights"), state.get("config")
    config = config if isinstance(config, dict) else getattr(config, "__dict__", None)
    if not isinstance(weights, dict) or config is None:
        found = ", ".join(map(str, state)) or "nothing"
        what = f"expected a CPC checkpoint {{weights, config}}, found {found}"
        raise UserError(f"{path}: {what}; name CPC's own in fairseqrc.ckpt_path")
    sizes = {key: config.get(key) for key in ("hiddenEncoder", "hiddenGar", "nLevelsGRU")}
    for key, size in sizes.items():
        if type(size) is not int or not 1 <= size <= 65_536:
            raise UserError(f"{path}: expected a size in its config's {key}, found {size!r}")
    return Weights(weights, path, device), *sizes.values()


def _lstm(weights: Weights, start: int, layers: int, width: int, hidden: int) -> nn.LSTM:
    """The checkpoint's LSTM layers from ``start`` on."""
    lstm = nn.LSTM(width, hidden, layers, device="meta")
    state = {}
    for name, value in lstm.state_dict().items():
        kind, _, layer = name.rpartition("_l")  # weight_ih, 0
        state[name] = weights.take(f"gAR.baseNet.{kind}_l{start + int(layer)}", *value.shape)
    lstm.load_state_dict(state, assign=True)
    lstm.flatten_parameters()  # side by side in memory, as cuDNN wants them
    return lstm.eval().requires_grad_(False)


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
        *starts, total = accumulate((one.count + _MARGIN for one in stretches), initial=0)
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
