"""Noise on the units that a prompt or a unit LM is trained on: no row comes twice as it stands."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from fairseq.data import Dictionary


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
        return self.beside_clean(row, index, epoch)[0]

    def beside_clean(
        self, row: np.ndarray, index: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """``row``, (T,) units, disturbed, and what stood in the same places before."""
        generator = np.random.default_rng((self.seed, epoch, index))
        disturbed = row.copy()
        replaced = generator.random(len(row)) < self.rate
        disturbed[replaced] = generator.choice(self.units, size=replaced.sum())
        kept = generator.random(len(row)) >= self.rate
        places = np.flatnonzero(kept) if kept.any() else slice(1)
        return disturbed[places], row[places]


def unit_indices(dictionary: Dictionary) -> np.ndarray:
    """Of the symbols that are units, numbers all."""
    return np.array([i for i, symbol in enumerate(dictionary.symbols) if symbol.isdecimal()])
