"""A cell's figure, read from what its stages left."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from baselines.answers import answers_path
from pipeline.errors import UserError
from pipeline.files import read_json, writing
from pipeline.workspace import Workspace
from reproduction.cells import FIRST_SEED, METHODS, Cell
from reproduction.stages import BASELINES, SAMPLE_DATE, trained_here
from ulm_prompt.binaries import SOURCES
from ulm_prompt.scoring.scores import score, scores_of


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
    updates: int = 0  # at the checkpoint that was decoded
    git_revision: str = ""


def finished(cell: Cell, metric: str, runs: int, workspace: Workspace) -> Iterator[Figure]:
    """The figures of a cell's finished runs: of its first ``runs`` seeds, and of those after them
    as long as none is missing.
    """
    for seed in count(FIRST_SEED):
        figure = read_figure(cell, metric, seed, workspace)
        if figure:
            yield figure
        elif seed >= FIRST_SEED + runs - 1:
            return


def read_figure(cell: Cell, metric: str, seed: int, workspace: Workspace) -> Figure | None:
    """The figure of a finished run on the data that lie there now; else None. ``metric``: as
    cal_acc.py calls it.
    """
    date = cell.date(seed)
    if cell.method == "FT-DM":
        return _downstream_figure(cell, seed, workspace)
    if cell.method == "n-grams":
        return _ngrams_figure(cell, seed, workspace)
    folder = workspace.checkpoints(cell.task, cell.unit_model, date)
    samples = workspace.samples(cell.task, cell.unit_model, date, SAMPLE_DATE)
    prompt = folder / "checkpoint_best.pt"
    if not (samples.is_file() and prompt.is_file()):
        return None
    card = read_json(folder / "prompt.json", "ulm_prompt/train.py")
    data = workspace.data_bin(cell.unit_model, cell.task) / SOURCES
    same_data = card["data"] == read_json(data, "ulm_prompt/fairseq_preprocess.py")
    if not same_data or samples.stat().st_mtime < prompt.stat().st_mtime:
        return None
    return Figure(
        cell.method, cell.task, cell.unit_model, seed,
        value=round(scores_of(samples, workspace)[metric], 4),
        trained_parameters=card["trained_parameters"],
        lm="own" if trained_here(workspace, cell.unit_model) else "released",
        lm_parameters=card["lm_parameters"],
        updates=card["updates"],
        git_revision=card["made_by"]["git_revision"],
    )  # fmt: skip


def _downstream_figure(cell: Cell, seed: int, workspace: Workspace) -> Figure | None:
    folder = workspace.root / "checkpoints"
    path = folder / f"{cell.task}_{cell.unit_model}_downstream_{cell.date(seed)}/downstream.json"
    if not path.is_file():
        return None
    card = read_json(path, BASELINES["FT-DM"])
    return Figure(
        cell.method, cell.task, cell.unit_model, seed,
        value=round(card["test"]["accuracy"], 4),
        trained_parameters=card["trained_parameters"],
        updates=card["updates"],
        git_revision=card["made_by"]["git_revision"],
    )  # fmt: skip


def _ngrams_figure(cell: Cell, seed: int, workspace: Workspace) -> Figure | None:
    date = cell.date(seed)
    path = answers_path(workspace, cell.task, cell.unit_model, "ngrams", date)
    rows = workspace.rows(cell.pair.config.downstream, cell.unit_model, "train")
    if not path.is_file() or path.stat().st_mtime < rows.stat().st_mtime:
        return None
    value = round(score(path).accuracy, 4)
    return Figure(cell.method, cell.task, cell.unit_model, seed, value)


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
