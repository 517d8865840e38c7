"""Batches of similar length that lose no row; fairseq's own drop some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset

from pipeline.errors import UserError

WINDOW = 50  # batches that are shuffled, then sorted by length, together


class LosslessDataset(FairseqDataset):
    """A dataset of ``sizes`` whose every row is in one batch of every epoch."""

    can_reuse_epoch_itr_across_epochs = False  # other batches in every epoch
    sizes: np.ndarray

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: Any
    ) -> tuple[np.ndarray, list]:
        """No row is ever filtered away; one that fits no batch is an error in ``batch_by_size``."""
        return indices, []

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Batches of similar length that hold every index exactly once.

        fairseq's own function drops the last batch when its size is no multiple of
        ``required_batch_size_multiple``; that argument is ignored here.
        """
        return list(batches_by_length(indices, self.sizes, max_tokens, max_sentences))


def batches_by_length(
    indices: Sequence[int] | np.ndarray,
    sizes: np.ndarray,
    max_tokens: int | None,
    max_sentences: int | None,
) -> Iterator[np.ndarray]:
    """Split ``indices`` into batches: at most ``max_sentences`` rows and ``max_tokens`` padded
    tokens each.

    Rows are sorted by length within windows of the given order, so that padding is small and the
    order still random. Raises ``UserError`` for a row longer than ``max_tokens``.
    """
    max_sentences = max_sentences or len(indices)
    max_tokens = max_tokens or int(sizes.max()) * max_sentences
    window = WINDOW * max_sentences
    for start in range(0, len(indices), window):
        chunk = np.asarray(indices[start : start + window])
        chunk = chunk[np.argsort(sizes[chunk], kind="mergesort")[::-1]]
        if sizes[chunk[0]] > max_tokens:
            raise UserError(
                f"--max-tokens {max_tokens}: row {chunk[0]} has {sizes[chunk[0]]} tokens; "
                "raise the limit or cut the utterance"
            )
        while len(chunk):
            count = min(max_sentences, max_tokens // int(sizes[chunk[0]]))
            yield chunk[:count]
            chunk = chunk[count:]


# Few-shot training: so many distinct rows of each class, drawn by a seed.


Row = tuple[tuple[int, ...], tuple[int, ...]]


def draw_shots(rows: Iterable[Row], shots: int, seed: int) -> np.ndarray:
    """Places of at most ``shots`` distinct rows, (units, labels) each, of every label sequence, in
    the order of ``rows``.

    A row that comes several times (KS's train split is balanced by drawing with replacement) counts
    once, at its first place; a class with fewer distinct rows gives all. The draw does not depend
    on how labels are named, and fewer shots are a part of more.
    """
    classes: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for place, (units, labels) in enumerate(rows):
        classes.setdefault(labels, {}).setdefault(units, place)
    drawn = []
    for number, distinct in enumerate(classes.values()):
        places = np.array(list(distinct.values()))
        order = np.random.default_rng((seed, number)).permutation(len(places))
        drawn.append(places[order[:shots]])
    return np.sort(np.concatenate(drawn))
