"""Units as text: integers and spaces."""

from __future__ import annotations

from itertools import groupby

import torch


def written(units: torch.Tensor) -> str:
    """Map (T,) units to ``"71 71 12"``."""
    return " ".join(map(str, units.tolist()))


def merge_runs(units: str) -> str:
    """Collapse runs of one unit: ``"71 71 12 12 71"`` becomes ``"71 12 71"`` (``taskrc.merge``)."""
    return " ".join(unit for unit, _ in groupby(units.split(" ")))
