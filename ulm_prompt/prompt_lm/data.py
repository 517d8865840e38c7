"""Rows ``units <s> labels </s>`` from fairseq binaries, in batches that lose none of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from pipeline.errors import UserError
from ulm_prompt.prompt_lm.batches import LosslessDataset, draw_shots
from ulm_prompt.prompt_lm.model import SEP


class RowDataset(LosslessDataset):
    """One split of a data-bin folder. A row's tokens end with ``</s>``; the model's input begins
    with it.
    """

    def __init__(self, split: Path, dictionary: Dictionary, shuffle: bool) -> None:
        """Raises ``UserError`` when the split is missing or broken, or a row is not ``units <s>
        labels``.
        """
        rows = open_rows(split, dictionary)
        self.rows = rows
        self.sizes = np.asarray(rows.sizes)
        self.pad, self.eos = dictionary.pad(), dictionary.eos()
        self.shuffle = shuffle
        self.rank, self.world = 0, 1
        self.noise: UnitNoise | None = None
        self.epoch = 1
        self.places = np.arange(len(rows))  # in the split, of the rows that are served
        self.separators = np.array([self._separator(split, index) for index in range(len(rows))])

    def _separator(self, split: Path, index: int) -> int:
        found = np.flatnonzero(self.rows[index].numpy() == SEP)
        if len(found) != 1 or not 0 < found[0] < self.sizes[index] - 2:
            raise UserError(
                f"{split}.bin, row {index}: expected units, one <s>, labels; "
                "run ulm_prompt/fairseq_preprocess.py again"
            )
        return int(found[0])

    def draw(self, shots: int, seed: int) -> None:
        """Serve no more than ``shots`` distinct rows of each label sequence from now on."""
        self._serve(draw_shots(map(self._units_and_labels, range(len(self))), shots, seed))

    def leave_out(self, longer_than: int) -> None:
        """Serve no row that is longer from now on."""
        self._serve(np.flatnonzero(self.sizes <= longer_than))

    def _serve(self, chosen: np.ndarray) -> None:
        for name in ("places", "sizes", "separators"):
            setattr(self, name, getattr(self, name)[chosen])

    def _units_and_labels(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        sample = self[index]
        tokens, separator = sample["tokens"].tolist(), sample["separator"]
        return tuple(tokens[:separator]), tuple(tokens[separator + 1 :])

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, separator = self.rows[int(self.places[index])], self.separators[index]
        if self.noise:
            units = self.noise(tokens[:separator].numpy(), int(index), self.epoch)
            tokens = torch.cat([torch.from_numpy(units), tokens[separator:]])
            separator = len(units)
        return {"id": int(index), "tokens": tokens, "separator": separator}

    def set_epoch(self, epoch: int) -> None:
        """fairseq calls it before each; the noise of a row is another in every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.places)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """This rank's share of a batch, padded on the right; one row that counts for nothing where
        a rank has no share.

        ``tokens``: (B, T) input. ``read_at``: (B, Q) positions from the one before ``<s>`` to the
        last label, padded with the last. ``target``: (B, Q) the symbols after them (``<s>``,
        labels, ``</s>``). ``is_label``: (B, Q). ``nanswers``: the number of labels and ``</s>``.
        """
        samples = samples[self.rank :: self.world]
        if not samples:
            return self._nothing()
        lengths = np.array([len(sample["tokens"]) for sample in samples])
        separators = np.array([sample["separator"] for sample in samples])
        tokens = np.full((len(samples), lengths.max() + 1), self.pad, dtype=np.int64)
        tokens[:, 0] = self.eos
        for row, sample in zip(tokens, samples):
            row[1 : 1 + len(sample["tokens"])] = sample["tokens"]
        reads = lengths - separators  # <s>, the labels, </s>
        steps = np.arange(reads.max())  # (Q,)
        read_at = np.minimum(separators[:, None] + steps, lengths[:, None] - 1)  # (B, Q)
        target = np.take_along_axis(tokens, read_at + 1, axis=1)
        target[steps >= reads[:, None]] = self.pad
        is_label = (steps > 0) & (steps < reads[:, None] - 1)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
            "nanswers": int(reads.sum()) - len(samples),
            "net_input": {
                "tokens": torch.from_numpy(tokens[:, :-1]),
                "read_at": torch.from_numpy(read_at),
            },
            "target": torch.from_numpy(target),
            "is_label": torch.from_numpy(is_label),
        }

    def _nothing(self) -> dict[str, Any]:
        """fairseq's own way with an empty batch, to take another's gradient times zero, loses the
        counts of the batches that are accumulated before it.
        """
        position = torch.zeros(1, 1, dtype=torch.long)
        return {
            "id": position[0],
            "nsentences": 0,
            "ntokens": 0,
            "nanswers": 0,
            "net_input": {"tokens": position + self.eos, "read_at": position},
            "target": position + self.pad,
            "is_label": position > 0,
        }

    def ordered_indices(self) -> np.ndarray:
        """Every row once: in random order for training (fairseq seeds it per epoch), else by
        length.
        """
        if self.shuffle:
            return np.random.permutation(len(self))
        return np.argsort(self.sizes, kind="mergesort")


# fairseq's binaries of a split, opened only when index, tokens and dict fit each other. fairseq
# believes what an index says: of how long a row is, of where it lies, and of which of its five
# formats it is.


_MAGIC = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1)
_HEADER = struct.Struct("<BQ")  # type of the tokens, number of rows
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_PIECE = 1 << 20  # tokens looked at together


def open_rows(split: Path, dictionary: Dictionary) -> MMapIndexedDataset:
    """Open ``split``.idx and ``split``.bin (format ``mmap``); their rows stay on the disk.

    Raises ``UserError`` where one is missing, they do not fit, or a token is not in the dict.
    """
    index, tokens = (split.with_name(f"{split.name}.{end}") for end in ("idx", "bin"))
    for path in (index, tokens):
        if not path.is_file():
            raise UserError(f"{path}: split not found; run ulm_prompt/fairseq_preprocess.py")
    try:
        _check(index, tokens, len(dictionary))
    except ValueError as error:
        raise UserError(f"{index}: {error}; run ulm_prompt/fairseq_preprocess.py again") from None
    return MMapIndexedDataset(str(split))


def _check(index: Path, tokens: Path, symbols: int) -> None:
    """Raises ``ValueError``."""
    begin = len(_MAGIC) + _HEADER.size
    with open(index, "rb") as handle:
        head = handle.read(begin)
    if len(head) < begin or not head.startswith(_MAGIC):
        raise ValueError("not an index of fairseq's mmap format")
    code, count = _HEADER.unpack(head[len(_MAGIC) :])
    if code not in _TYPES:
        raise ValueError(f"tokens of an unknown type ({code})")
    expected = begin + 12 * count  # four bytes for a row's size, eight for its place
    if count < 1 or index.stat().st_size != expected:
        raise ValueError(f"declares {count:,} rows, has {index.stat().st_size:,} bytes")
    sizes = np.memmap(index, np.int32, "r", begin, (count,))
    places = np.memmap(index, np.int64, "r", begin + sizes.nbytes, (count,))
    width = np.dtype(_TYPES[code]).itemsize
    ends = np.cumsum(sizes, dtype=np.int64)
    if sizes.min() < 1 or not np.array_equal(places, (ends - sizes) * width):
        raise ValueError("its rows do not lie one after the other")
    if tokens.stat().st_size != ends[-1] * width:
        raise ValueError(f"declares {ends[-1]:,} tokens, {tokens.name} does not hold so many")
    text = np.memmap(tokens, _TYPES[code], "r")
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        if piece.min() < 0 or piece.max() >= symbols:
            raise ValueError(f"{tokens.name} holds a token that is none of the {symbols} symbols")


# Noise on the units that a prompt is trained on: no row comes twice as it stands.


class UnitNoise(NamedTuple):
    """``rate``: the share of a row's units that is replaced, and as large a share left out.

    ``units``: the indices to replace by. What a row becomes depends on the seed, the epoch and the
    row alone, so that a resumed run sees what an uninterrupted one does.
    """

    rate: float
    units: np.ndarray
    seed: int

    def __call__(self, row: np.ndarray, index: int, epoch: int) -> np.ndarray:
        """``row``, (T,) units, disturbed: at least one of them stays."""
        generator = np.random.default_rng((self.seed, epoch, index))
        row = row.copy()
        replaced = generator.random(len(row)) < self.rate
        row[replaced] = generator.choice(self.units, size=replaced.sum())
        kept = generator.random(len(row)) >= self.rate
        return row[kept] if kept.any() else row[:1]
