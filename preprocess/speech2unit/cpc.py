"""CPC features (Riviere et al. 2020, arXiv 2002.02848) as GSLM's reader computes them, in batches.

Five convolutions are followed by an LSTM, cut to the requested layers. The published reader encodes
each piece of 64,000 samples alone. For a remainder it encodes the *whole* file again and takes the
last frames. The units must match, so this reader computes both runs. They share all convolution
outputs except two frames at the ends of a piece. All files of a batch advance together.

Each kernel is twice its stride. Over chunks of one stride, a convolution is thus ``y[t] = x[t] A +
x[t + 1] B``: matrix products. All stretches of a batch form one long sequence without padding.
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

HOP = 160  # samples per frame
KERNELS = (10, 8, 4, 4, 4)
STRIDES = (5, 4, 2, 2, 2)  # the padding is 3, 2, 1, 1, 1
_EPSILON = 1e-5
_RATES = (32, 8, 4, 2, 1)  # output vectors per frame, for each layer
_LEADS = (30, 7, 3, 1, 0)  # output vectors that a frame sees before its own first one
_LEAD = 153  # samples that a frame sees before its own first one, after which it sees 311 more
_MARGIN = 2  # n consecutive frames see fewer than (n + 2) * 160 samples
_MOST_FRAMES = {"cpu": 200}  # encoded at once; the first layer takes 64 KiB per frame
_PIECE = 64_000  # samples per piece; each piece starts from a zero LSTM state
_PIECE_FRAMES = _PIECE // HOP


class Cpc(FeatureReader):
    """CPC features: ``dim`` numbers per 10 ms, the same for each file as by the published reader.
    ``source.all_layers``: the outputs of all LSTM layers, after the convolutions' output if it has
    the same width. For one LSTM layer, these are the hidden states of SUPERB's toolkit.
    """

    takes = ("ckpt_path", "layer")
    dtypes = ("float32", "bfloat16", "tf32")  # bfloat16: only in the convolutions
    frame_rate = SAMPLE_RATE / HOP
    min_samples = HOP - 1

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for an invalid setting or checkpoint, or a layer beyond its last."""
        super().__init__(source)
        weights, channels, self.dim, levels = _read_checkpoint(source.ckpt_path, source.device)
        layers = levels if source.all_layers else source.layer
        if layers is None or not 1 <= layers <= levels:
            expected = "cpc needs the number of LSTM layers to run (2 for the published units)"
            valid = f"{source.ckpt_path} has {levels} LSTM layer(s)"
            raise UserError(f"fairseqrc.layer={layers}: {expected}; {valid}")
        products = torch.bfloat16 if source.dtype == "bfloat16" else torch.float32
        self._encoder = ConvEncoder(weights, channels, source.device, products)
        self._tf32, self._count = source.dtype == "tf32", layers
        # one operation, or one per layer if the output of every layer is requested
        starts = range(layers) if source.all_layers else [0]
        self._lstms = [
            _lstm(weights, start, layers // len(starts), self.dim if start else channels, self.dim)
            for start in starts
        ]
        self._with_input = channels == self.dim

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map waveforms (T_i,) to features (frames_i, D), or (frames_i, L, D)."""
        shape = (self._count + self._with_input, self.dim) if self._all_layers else (self.dim,)
        zeros = torch.zeros(2, self._count, self.dim, device=self._device)
        tracks = [_Track(waveform, shape, zeros) for waveform in waveforms]
        with tf32(self._tf32):
            for piece in range(max(track.blocks for track in tracks)):
                self._advance([track for track in tracks if piece < track.blocks], piece, zeros)
        return [track.features for track in tracks]

    def _advance(self, tracks: Sequence[_Track], piece: int, zeros: torch.Tensor) -> None:
        """Run one piece of each track: its part of the whole-file run, and the piece alone."""
        stretches = [stretch for track in tracks for stretch in track.stretches(piece)]
        encoded = iter(self._encoder(stretches))
        rows, states, owners = [], [], []  # one entry per row of the LSTM's batch
        for track in tracks:
            for is_whole, frames in track.runs(piece, encoded):
                rows.append(frames)
                states.append(track.state if is_whole else zeros)
                owners.append((track, is_whole))
        state = torch.stack(states, dim=2)  # (2, layers, rows, D)
        frames = nn.utils.rnn.pad_sequence(rows)  # (T, rows, C); the padding at the end is not read
        outputs, new_states = [frames] if self._with_input else [], []
        parts = state.split(self._lstms[0].num_layers, dim=1)
        for lstm, (hidden, cell) in zip(self._lstms, parts, strict=True):
            frames, new_state = lstm(frames, (hidden, cell))  # (T, rows, D)
            outputs.append(frames)
            new_states.append(torch.stack(new_state))
        output = torch.stack(outputs, dim=2) if self._all_layers else frames
        state = torch.cat(new_states, dim=1)
        for row, (track, is_whole) in enumerate(owners):
            track.store(output[: len(rows[row]), row], is_whole, piece)
            if is_whole:  # a row that continues fills the piece, so its state saw no padding
                track.state = state[:, :, row]


class _Track:
    """A waveform in progress: which frames are computed, and which of them become features."""

    def __init__(self, waveform: torch.Tensor, shape: tuple[int, ...], state: torch.Tensor) -> None:
        self._waveform = waveform
        self.state = state  # (2, layers, D), of the whole-file run
        self._pieces, remainder = divmod(len(waveform), _PIECE)
        self._total = frames_in(len(waveform)) if remainder else 0  # frames of the whole-file run
        taken = remainder // (len(waveform) // self._total) if remainder else 0
        if taken == 0:
            taken = self._total  # as published: `[-0:]` takes every frame
        self._first_taken = max(self._total - taken, 0)  # frame of the whole-file run
        self.blocks = max(self._pieces, -(-self._total // _PIECE_FRAMES))
        frames = self._pieces * _PIECE_FRAMES + self._total - self._first_taken
        self.features = torch.empty(frames, *shape, device=state.device)

    def stretches(self, piece: int) -> list[Stretch]:
        """Return what to encode for a piece: frames of the whole file, and of the piece alone."""
        first_frame = piece * _PIECE_FRAMES
        samples = self._waveform[piece * _PIECE : (piece + 1) * _PIECE]
        if not self._total:
            return [Stretch(samples, 0, _PIECE_FRAMES)]
        whole = Stretch(self._waveform, first_frame, min(self._total - first_frame, _PIECE_FRAMES))
        if piece >= self._pieces:
            return [whole]
        # because of _LEAD, only the first and last frame of a piece see samples outside the piece
        return [whole, Stretch(samples, 0, 1), Stretch(samples, _PIECE_FRAMES - 1, 1)]

    def runs(self, piece: int, encoded: Iterator[torch.Tensor]) -> list[tuple[bool, torch.Tensor]]:
        """Return the LSTM's inputs, made of encoded stretches: (is the whole-file run, (T, C))."""
        frames = next(encoded)
        if not self._total or piece >= self._pieces:
            return [(self._total > 0, frames)]
        return [(True, frames), (False, torch.cat([next(encoded), frames[1:-1], next(encoded)]))]

    def store(self, output: torch.Tensor, is_whole: bool, piece: int) -> None:
        """Store the part of the LSTM's output (T, D) or (T, L, D) that belongs to the features."""
        first_frame = piece * _PIECE_FRAMES
        if not is_whole:
            self.features[first_frame : first_frame + _PIECE_FRAMES] = output
            return
        skipped = max(self._first_taken - first_frame, 0)
        start = self._pieces * _PIECE_FRAMES + first_frame + skipped - self._first_taken
        taken = output[skipped:]
        self.features[start : start + len(taken)] = taken


def _read_checkpoint(path: Path, device: torch.device) -> tuple[Weights, int, int, int]:
    """Return the weights, channels of the convolutions, and width and layers of the LSTM."""
    state = load_torch(path, mapped=True)
    weights, config = state.get("weights"), state.get("config")
    config = config if isinstance(config, dict) else getattr(config, "__dict__", None)
    if not isinstance(weights, dict) or config is None:
        keys = ", ".join(map(str, state)) or "nothing"
        problem = f"expected a CPC checkpoint {{weights, config}}, found {keys}"
        raise UserError(f"{path}: {problem}; set fairseqrc.ckpt_path to the CPC checkpoint")
    sizes = {key: config.get(key) for key in ("hiddenEncoder", "hiddenGar", "nLevelsGRU")}
    for key, size in sizes.items():
        if type(size) is not int or not 1 <= size <= 65_536:
            raise UserError(f"{path}: expected a size in the config's {key}, found {size!r}")
    return Weights(weights, path, device), *sizes.values()


def _lstm(weights: Weights, start: int, layers: int, width: int, hidden: int) -> nn.LSTM:
    """Build an LSTM from ``layers`` layers of the checkpoint, of which ``start`` is the first."""
    lstm = nn.LSTM(width, hidden, layers, device="meta")
    state = {}
    for name, value in lstm.state_dict().items():
        kind, _, layer = name.rpartition("_l")  # weight_ih, 0
        state[name] = weights.take(f"gAR.baseNet.{kind}_l{start + int(layer)}", *value.shape)
    lstm.load_state_dict(state, assign=True)
    lstm.flatten_parameters()  # neighbours in memory, for cuDNN
    return lstm.eval().requires_grad_(False)


class Stretch(NamedTuple):
    """``count`` frames of ``waveform`` (T,), from ``first_frame`` on; silence beyond the ends."""

    waveform: torch.Tensor
    first_frame: int
    count: int


def frames_in(samples: int) -> int:
    """Count the frames of T samples: five times (T - kernel + 2 padding) // stride + 1."""
    return (samples + 1) // HOP


class ConvEncoder:
    """Five convolutions, each with norm over channels and ReLU. The first multiplies in float32."""

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
        """Map each stretch to (count, C), on the device."""
        parts = [  # of at most self._most frames
            (index, Stretch(waveform, start, min(self._most, first_frame + count - start)))
            for index, (waveform, first_frame, count) in enumerate(stretches)
            for start in range(first_frame, first_frame + count, self._most)
        ]
        features: list[list[torch.Tensor]] = [[] for _ in stretches]
        for group in grouped(parts, lambda part: part[1].count, self._most):
            encoded = self._encode([part for _, part in group])
            for (index, _), frames in zip(group, encoded, strict=True):
                features[index].append(frames)
        return [part[0] if len(part) == 1 else torch.cat(part) for part in features]

    def _encode(self, stretches: Sequence[Stretch]) -> list[torch.Tensor]:
        *starts, total = accumulate((stretch.count + _MARGIN for stretch in stretches), initial=0)
        sequence = torch.zeros((total + -total % 3) * HOP)  # a layer computes vectors in threes
        for start, (waveform, first_frame, count) in zip(starts, stretches, strict=True):
            begin = first_frame * HOP - _LEAD
            samples = waveform[max(begin, 0) : begin + (count + _MARGIN) * HOP]
            offset = start * HOP + max(-begin, 0)
            sequence[offset : offset + len(samples)] = samples
        hidden = sequence.to(self._device).unsqueeze(1)  # (samples, 1)
        lengths = [len(stretch.waveform) + 1 for stretch in stretches]
        for layer, stride, rate, lead in zip(self._layers, STRIDES, _RATES, _LEADS, strict=True):
            hidden = layer(hidden)  # (rate * total, C)
            lengths = [length // stride for length in lengths]
            for start, stretch, length in zip(starts, stretches, lengths, strict=True):
                rows = hidden[start * rate : (start + stretch.count + _MARGIN) * rate]
                before = lead - stretch.first_frame * rate  # vectors before the waveform's start
                if before > 0:
                    rows[:before] = 0
                rows[max(length + before, 0) :] = 0
        return [hidden[start : start + stretch.count] for start, stretch in zip(starts, stretches)]


class _Layer:
    """One convolution without padding, a norm and ReLU."""

    def __init__(self, weights: Weights, index: int, channels: int, products: torch.dtype) -> None:
        conv, norm, stride = f"gEncoder.conv{index}", f"gEncoder.batchNorm{index}", STRIDES[index]
        inputs = channels if index else 1
        kernel = weights.take(f"{conv}.weight", channels, inputs, KERNELS[index])
        a, b = (
            half.permute(2, 1, 0).reshape(-1, channels).to(products)
            for half in kernel.split(stride, dim=2)
        )  # (stride * C_in, C)
        self._stride, self._channels = stride, channels
        self._a, self._b = a, b
        self._half_sum, self._half_difference = (a + b) / 2, (a - b) / 2
        self._bias = weights.take(f"{conv}.bias", channels).to(products)
        # layer_norm divides the variance by C, the published norm by C - 1
        ratio = (channels - 1) / channels
        self._norm = weights.take(f"{norm}.weight", 1, channels, 1).flatten() * ratio**0.5
        self._shift = weights.take(f"{norm}.bias", 1, channels, 1).flatten()
        self._epsilon = _EPSILON * ratio

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (n * stride, C_in), n divisible by 3, to (n, C). The last output has no next vector.

        Three outputs y0 = x0 A + x1 B, y1 = x1 A + x2 B, y2 = x2 A + x3 B need four products, not
        six (Winograd's F(3, 2)), and the products take nearly all of the time. In bfloat16 the sums
        would lose too many bits, so six products are computed.
        """
        if self._a.dtype != torch.float32:
            rows = hidden.to(self._a.dtype).view(-1, len(self._a))  # (n, stride * C_in)
            output = torch.addmm(self._bias, rows, self._a)
            output[:-1].addmm_(rows[1:], self._b)
            return self._normalised(output.float())
        chunks = hidden.reshape(-1, 3, self._stride * hidden.shape[1])  # (n / 3, 3, stride * C_in)
        x0, x1, x2 = chunks.unbind(dim=1)
        x3_minus_x1 = -x1
        x3_minus_x1[:-1] += x0[1:]
        of_sums = torch.addmm(self._bias, x1 + x2, self._half_sum)  # (n / 3, C)
        of_differences = torch.mm(x2 - x1, self._half_difference)
        shared = of_sums + of_differences  # x1 B + x2 A
        output = torch.empty(len(x0), 3, self._channels, device=hidden.device)
        torch.addmm(shared, x0 - x2, self._a, out=output[:, 0])
        torch.sub(of_sums, of_differences, out=output[:, 1])
        torch.addmm(shared, x3_minus_x1, self._b, out=output[:, 2])
        return self._normalised(output.view(-1, self._channels))

    def _normalised(self, output: torch.Tensor) -> torch.Tensor:
        shape = (self._channels,)
        return F.layer_norm(output, shape, self._norm, self._shift, self._epsilon).relu_()
