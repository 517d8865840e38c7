"""Datasets over fairseq binaries: rows ``units <s> labels </s>``, and text that trains a unit LM.
Every row is in exactly one batch per epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset
from torch.nn.utils.rnn import pad_sequence

from pipeline.errors import UserError
from ulm_prompt.prompt_lm.model import SEP

WINDOW = 50  # batches whose rows are sorted by length together


def open_rows(split: Path, dictionary: Dictionary) -> MMapIndexedDataset:
    """Open ``split``.idx and ``split``.bin (format ``mmap``). The rows stay on disk. Raises
    ``UserError`` if a file is missing, if the files do not match, or if a token is not in the dict.
    fairseq itself checks none of this.
    """
    index, tokens = (split.with_name(f"{split.name}.{suffix}") for suffix in ("idx", "bin"))
    for path in (index, tokens):
        if not path.is_file():
            raise UserError(f"{path}: not found; run ulm_prompt/fairseq_preprocess.py")
    try:
        rows = MMapIndexedDataset(str(split))
        sizes, dtype = np.asarray(rows.sizes), rows._index.dtype
        ends = sizes.cumsum(dtype=np.int64)
        if not np.array_equal(rows._index._pointers, (ends - sizes) * np.dtype(dtype).itemsize):
            raise ValueError("its rows are not contiguous")
        text = np.memmap(tokens, dtype, "r")
        if sizes.min() < 1 or ends[-1] != len(text):
            raise ValueError(f"expected {ends[-1]:,} tokens in {tokens.name}, found {len(text):,}")
        if text.min() < 0 or text.max() >= len(dictionary):
            raise ValueError(f"{tokens.name} has a token outside the {len(dictionary)} symbols")
    except Exception as error:  # fairseq and numpy raise any type for a damaged index
        reason = str(error).split("\n")[0] or "not an index of fairseq's mmap format"
        raise UserError(f"{index}: {reason}; run ulm_prompt/fairseq_preprocess.py again") from None
    return rows


def batches_by_length(
    indices: Sequence[int] | np.ndarray, sizes: np.ndarray, max_tokens: int | None,
    max_sentences: int | None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Split ``indices`` into batches of at most ``max_sentences`` rows and ``max_tokens`` padded
    tokens. Rows are sorted by length within windows of the given order. So there is little padding,
    and the order remains random. Raises ``UserError`` if a row is longer than ``max_tokens``.
    """
    max_sentences = max_sentences or len(indices)
    max_tokens = max_tokens or int(sizes.max()) * max_sentences
    window = WINDOW * max_sentences
    for start in range(0, len(indices), window):
        chunk = np.asarray(indices[start : start + window])
        chunk = chunk[np.argsort(sizes[chunk], kind="mergesort")[::-1]]
        if (size := sizes[chunk[0]]) > max_tokens:
            raise UserError(
                f"max_tokens={max_tokens}: row {chunk[0] + 1} has {size} tokens; use "
                f"--set max_tokens={size} or, for an LM, a lower tokens_per_sample"
            )
        while len(chunk):
            count = min(max_sentences, max_tokens // int(sizes[chunk[0]]))
            yield chunk[:count]
            chunk = chunk[count:]


class LosslessDataset(FairseqDataset):
    """A dataset with rows of ``sizes`` tokens. Every row is in one batch per epoch."""

    can_reuse_epoch_itr_across_epochs = False  # the batches differ between epochs
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    size = num_tokens

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple:
        """Return all ``indices``. If a row is too long, ``batch_by_size`` raises an error."""
        return indices, []

    def batch_by_size(
        self, indices: np.ndarray, max_tokens: int | None = None, max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:  # fmt: skip
        """Return batches of similar length that contain every index exactly once. fairseq's own
        function drops a last batch whose size is no multiple of ``required_batch_size_multiple``.
        """
        return list(batches_by_length(indices, self.sizes, max_tokens, max_sentences))


class RowDataset(LosslessDataset):
    """One split of a data-bin folder: rows ``units <s> labels </s>``. The model's input begins with
    ``</s>``. Raises ``UserError`` if the split is missing or damaged, or a row has another form.
    """

    def __init__(self, split: Path, dictionary: Dictionary, shuffle: bool) -> None:
        self.rows = open_rows(split, dictionary)
        self.sizes = np.asarray(self.rows.sizes)
        self.pad, self.eos = dictionary.pad(), dictionary.eos()
        self.shuffle = shuffle
        self.rank, self.world, self.epoch = 0, 1, 1
        self.noise: tuple[float, np.ndarray, int] | None = None  # rate, units, seed
        self.selected = np.arange(len(self.rows))  # numbers of the rows that are used
        self.separators = np.zeros_like(self.selected)  # positions of <s>
        for index, size in enumerate(self.sizes):
            positions = np.flatnonzero(self.rows[index].numpy() == SEP)
            if len(positions) != 1 or not 0 < positions[0] < size - 2:
                raise UserError(
                    f"{split}.bin, row {index + 1}: expected units, one <s>, labels; "
                    "run ulm_prompt/fairseq_preprocess.py again"
                )
            self.separators[index] = positions[0]

    def select_shots(self, shots: int, seed: int) -> None:
        """Keep at most ``shots`` distinct rows per label sequence."""
        rows = (self.rows[int(number)].tolist() for number in self.selected)
        pairs = zip(rows, self.separators)
        parts = ((tuple(row[:sep]), tuple(row[sep + 1 :])) for row, sep in pairs)
        self.select(draw_shots(parts, shots, seed))

    def select(self, indices: np.ndarray) -> None:
        """Keep only the rows with these ``indices``."""
        self.selected, self.sizes = self.selected[indices], self.sizes[indices]
        self.separators = self.separators[indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, separator = self.rows[int(self.selected[index])], self.separators[index]
        if self.noise:  # depends only on seed, epoch and row: a resumed run gets the same noise
            rate, units, seed = self.noise
            noisy = add_noise(tokens[:separator].numpy(), rate, units, (seed, self.epoch, index))
            tokens = torch.cat([torch.from_numpy(noisy), tokens[separator:]])
            separator = len(noisy)
        return {"id": int(index), "tokens": tokens, "separator": separator}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the noise. fairseq calls this before every epoch."""
        self.epoch = epoch

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return this rank's share of a batch, padded on the right.

        ``tokens``: (B, T), the input. ``read_at``: (B, Q), the positions from the last unit to the
        last label, padded with the last label. ``target``: (B, Q), the symbols after these
        positions: ``<s>``, labels, ``</s>``. ``is_label``: (B, Q), True where the target is a
        label. ``answer_symbols``: the number of labels and ``</s>``.

        A rank without a share gets one row with zero weight. fairseq would multiply the gradient of
        another batch by zero, which loses the counts of the batches accumulated before.
        """
        share = samples[self.rank :: self.world]
        samples = share or samples[:1]
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
        if not share:
            target[:], is_label[:] = self.pad, False
            lengths, reads = lengths[:0], reads[:0]
        inputs = {"tokens": tokens[:, :-1], "read_at": read_at}
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(share),
            "ntokens": int(lengths.sum()),
            "answer_symbols": int(reads.sum()) - len(share),
            "net_input": {name: torch.from_numpy(array) for name, array in inputs.items()},
            "target": torch.from_numpy(target),
            "is_label": torch.from_numpy(is_label),
        }

    def ordered_indices(self) -> np.ndarray:
        """Return every row once, in random order for training (fairseq seeds it per epoch)."""
        order = np.argsort(self.sizes, kind="mergesort")
        return np.random.permutation(len(self)) if self.shuffle else order


def add_noise(row: np.ndarray, rate: float, units: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Replace a share ``rate`` of ``row``, (T,), by random ``units``. Then drop the same share, but
    keep at least one unit. Returns a new row.
    """
    generator = np.random.default_rng(seed)
    row = row.copy()
    replaced = generator.random(len(row)) < rate
    row[replaced] = generator.choice(units, size=replaced.sum())
    kept = generator.random(len(row)) >= rate
    return row[kept] if kept.any() else row[:1]


Row = tuple[tuple[int, ...], tuple[int, ...]]


def draw_shots(rows: Iterable[Row], shots: int, seed: int) -> np.ndarray:
    """Draw at most ``shots`` distinct rows, (units, labels) each, per label sequence. Return their
    numbers in the order of ``rows``.

    A repeated row (KS's train split is balanced by drawing with replacement) counts once, at its
    first position. A class with fewer distinct rows gives all of them. The draw does not depend on
    the names of the labels. A draw with fewer shots is a subset of a draw with more.
    """
    classes: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for number, (units, labels) in enumerate(rows):
        classes.setdefault(labels, {}).setdefault(units, number)
    drawn = []
    for position, distinct in enumerate(classes.values()):
        numbers = np.array(list(distinct.values()))
        order = np.random.default_rng((seed, position)).permutation(len(numbers))
        drawn.append(numbers[order[:shots]])
    return np.sort(np.concatenate(drawn))


class BlockDataset(LosslessDataset):
    """The whole text, with ``</s>`` after every utterance, cut into blocks of at most ``length``
    tokens. ``by_utterance``: also cut after every utterance.
    """

    def __init__(
        self, split: Path, dictionary: Dictionary, length: int, by_utterance: bool, shuffle: bool
    ) -> None:
        rows = open_rows(split, dictionary)
        self.text = np.concatenate([rows[index].numpy() for index in range(len(rows))])
        sizes = np.asarray(rows.sizes) if by_utterance else np.array([len(self.text)])
        cuts = [np.arange(end - size, end, length) for size, end in zip(sizes, sizes.cumsum())]
        self.starts = np.concatenate(cuts)
        self.sizes = np.diff(self.starts, append=len(self.text))
        self.pad, self.eos = dictionary.pad(), dictionary.eos()
        self.shuffle = shuffle

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, size = self.starts[index], self.sizes[index]
        before = self.text[start - 1] if start else self.eos
        return {
            "id": int(index),
            "source": np.concatenate([[before], self.text[start : start + size - 1]]),
            "target": self.text[start : start + size],
        }

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return ``src_tokens`` and ``target``, (B, T), padded on the right. A rank without a batch
        gets one row with zero weight (see ``RowDataset.collater``).
        """
        if not samples:
            row = {"id": 0, "source": [self.eos], "target": [self.pad]}
            return {**self.collater([row]), "nsentences": 0, "ntokens": 0}
        lengths = [len(sample["target"]) for sample in samples]
        source, target = (
            pad_sequence([torch.as_tensor(sample[key]) for sample in samples], True, self.pad)
            for key in ("source", "target")
        )
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(lengths),
            "net_input": {"src_tokens": source, "src_lengths": torch.tensor(lengths)},
            "target": target,
        }

    def ordered_indices(self) -> np.ndarray:
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
