"""CPC features (Riviere et al. 2020, arXiv 2002.02848) as GSLM's reader computes them, for batches.

Five convolutions (``cpc_encoder``), then an LSTM, cut to the layers asked for. The published reader
encodes each piece of 64,000 samples by itself. For a remainder it encodes the *whole* file again
and takes the last frames. Units must match it, so both are computed here, but together:

- Whole-file run and piece share all convolution outputs except the two frames at a piece's ends.
- All files of the batch advance together, a piece at a time, so the LSTM sees many rows at once and
  memory beside the features does not grow with a file's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.torch_files import load_torch
from preprocess.speech2unit.cpc_encoder import HOP, ConvEncoder, Stretch, frames_in
from preprocess.speech2unit.fairseq_checkpoint import Weights
from preprocess.speech2unit.features import SAMPLE_RATE, Source, tf32

_PIECE = 64_000  # samples of a piece; each piece starts from a fresh LSTM state
_PIECE_FRAMES = _PIECE // HOP


class Cpc:
    """CPC features, ``dim`` numbers every 10 ms, file by file what the published reader gives.

    ``source.all_layers`` gives the output of each LSTM layer of the checkpoint, after that of the
    convolutions where it is as wide: for one LSTM layer, the hidden states of SUPERB's toolkit.
    """

    dtypes = ("float32", "bfloat16", "tf32")  # bfloat16: of the convolutions alone
    frame_rate = SAMPLE_RATE / HOP
    min_samples = HOP - 1

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for settings that cannot be, and for a checkpoint without them."""
        if source.ckpt_path is None:
            raise UserError("fairseqrc.ckpt_path: cpc needs its checkpoint; name the file")
        if not source.all_layers and (source.layer is None or source.layer < 1):
            what = "cpc needs the number of LSTM layers to run, from 1"
            remedy = "the published units come from 2"
            raise UserError(f"fairseqrc.layer={source.layer}: {what}; {remedy}")
        if source.normalize is not None:
            raise UserError("fairseqrc.normalize: cpc takes waveforms as they are; leave it empty")
        weights, channels, self.dim, levels = _read_checkpoint(source.ckpt_path, source.device)
        layers = levels if source.all_layers else source.layer
        if layers > levels:
            there = f"{source.ckpt_path} has {levels} LSTM layer(s)"
            raise UserError(f"fairseqrc.layer={layers}: {there}; ask for 1 to {levels}")
        products = torch.bfloat16 if source.dtype == "bfloat16" else torch.float32
        self._encoder = ConvEncoder(weights, channels, source.device, products)
        self._tf32, self._device = source.dtype == "tf32", source.device
        self._all_layers, self._count = source.all_layers, layers
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
    sizes = []
    for key in ("hiddenEncoder", "hiddenGar", "nLevelsGRU"):
        sizes.append(config.get(key))
        if type(sizes[-1]) is not int or not 1 <= sizes[-1] <= 65_536:
            what = f"{path}: expected a size in its config's {key}, found {sizes[-1]!r}"
            raise UserError(f"{what}; name a CPC checkpoint in fairseqrc.ckpt_path")
    return Weights(weights, path, device), *sizes


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
