"""A run's figure, and tables of them as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import writing
from reproduction.cells import METHODS


@dataclass(frozen=True)
class Figure:
    """One run: ``value`` in %, and what it was made with."""

    method: str
    task: str
    unit_model: str
    seed: int
    value: float
    trained_parameters: int = 0  # 0: not counted
    lm: str = ""  # released | own; none for the baselines
    lm_parameters: int = 0
    lm_fingerprint: str = ""
    updates: int = 0  # at the checkpoint that was decoded
    git_revision: str = ""

    @property
    def run_name(self) -> str:
        """As ``Cell.run_name``."""
        return f"{self.method} {self.task} {self.unit_model} seed {self.seed}"


def write_figures(path: Path, figures: Iterable[Figure]) -> None:
    """Write a CSV, a line a run."""
    with writing(path) as handle:
        table = csv.DictWriter(handle, [f.name for f in fields(Figure)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(figure) for figure in figures)


def read_figures(path: Path) -> list[Figure]:
    """Read such a CSV. Raises ``UserError`` for another table."""
    types = {"seed": int, "value": float, "trained_parameters": int, "lm_parameters": int,
             "updates": int}  # fmt: skip
    with open(path, encoding="utf-8", newline="") as handle:
        try:
            return [
                Figure(**{name: types.get(name, str)(value) for name, value in row.items()})
                for row in csv.DictReader(handle)
            ]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: not a table of figures ({error}); run reproduce.py") from None


def with_earlier(figures: Sequence[Figure], earlier: Iterable[Figure]) -> list[Figure]:
    """``figures``, and those of ``earlier`` whose cell has none among them, in a table's order: a
    cell is of one workspace, a table may be of several.
    """

    def cell(figure: Figure) -> tuple[str, str, str]:
        return figure.method, figure.task, figure.unit_model

    filled = {cell(figure) for figure in figures}
    every = [*figures, *(figure for figure in earlier if cell(figure) not in filled)]
    return sorted(every, key=lambda f: (METHODS.index(f.method), f.unit_model, f.task, f.seed))
