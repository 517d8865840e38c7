"""Noise on the units that a prompt is trained on: no row comes twice as it stands."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
