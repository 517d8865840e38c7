"""The finished runs of the cells: each one's figure, where it is still what the table asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from baselines import unit_ngrams
from baselines.classifiers.answers import card_path
from experiments.paper import FIRST_SEED, Cell, Paper, has_lm, has_rows, unit_lm_facts
from experiments.stages import BASELINES, SAMPLE_DATE, to_train, trained_here
from experiments.tables import Figure
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.rows import SPLITS
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt import train
from ulm_prompt.prompt_data.verbal import check_data_bin
from ulm_prompt.scoring.scores import scores_of
from ulm_prompt.training.runs import plan


class Survey(NamedTuple):
    """Which runs there are, and which there are that do not count, with the reason, by name."""

    figures: list[Figure]
    unusable: dict[str, str]


def survey(paper: Paper, cells: Iterable[Cell], runs: int, workspace: Workspace) -> Survey:
    """Look for the first ``runs`` seeds of each cell, and for those after them as long as none is
    missing.
    """
    found = Survey([], {})
    for cell in cells:
        for seed in _seeds(cell, runs, workspace):
            try:
                figure = read_figure(cell, paper.tasks[cell.task].metric, seed, workspace)
            except UserError as error:
                found.unusable[cell.run_name(seed)] = str(error)
            else:
                found.figures.extend([figure] if figure else [])
    return found


def _seeds(cell: Cell, runs: int, workspace: Workspace) -> Iterator[int]:
    for seed in count(FIRST_SEED):
        if seed >= FIRST_SEED + runs and not _result(cell, seed, workspace).is_file():
            return
        yield seed


def _result(cell: Cell, seed: int, workspace: Workspace) -> Path:
    """The file that a run leaves last."""
    run = cell.task, cell.unit_model
    date = cell.date(seed)
    if cell.method in BASELINES:
        baseline = "downstream" if cell.method == "FT-DM" else "ngrams"
        return card_path(workspace, *run, baseline, date)
    return workspace.samples(*run, date, SAMPLE_DATE)


def read_figure(cell: Cell, metric: str, seed: int, workspace: Workspace) -> Figure | None:
    """The figure of a finished run; None where there is none, or where what it depends on is still
    to be made. ``metric``: as cal_acc.py calls it.

    Raises ``UserError`` for a run on other data, on another LM, or trained in another way than
    would be done now, and where its answers cannot be scored.
    """
    if not _result(cell, seed, workspace).is_file():
        return None
    if cell.method == "FT-DM":
        return _downstream_figure(cell, seed, workspace)
    if cell.method == "n-grams":
        return _ngrams_figure(cell, seed, workspace)
    return _prompt_figure(cell, metric, seed, workspace)


def _prompt_figure(cell: Cell, metric: str, seed: int, workspace: Workspace) -> Figure | None:
    from ulm_prompt.prompt_lm import checkpoint

    samples = _result(cell, seed, workspace)
    folder = workspace.checkpoints(cell.task, cell.unit_model, cell.date(seed))
    prompt = folder / checkpoint.BEST
    if not (prompt.is_file() and has_lm(cell, workspace)):
        return None
    try:
        check_data_bin(workspace, cell.pair)
    except UserError:  # it is made before the run is asked for again
        return None
    (_, *words), _ = to_train(cell, seed, workspace)
    args = train.parse([*words, "--workspace", str(workspace.root)])
    lm = unit_lm_facts(lm_folder(workspace, cell.unit_model))
    wanted = plan(args, cell.pair, folder)
    wanted = dataclasses.replace(wanted, lm_fingerprint=lm.fingerprint)
    card = checkpoint.read_card(folder)
    if changed := checkpoint.differences(card, wanted) if card else ["origin"]:
        raise _other_run(folder, changed[0])
    if samples.stat().st_mtime < prompt.stat().st_mtime:
        return None
    return Figure(
        cell.method, cell.task, cell.unit_model, seed,
        value=round(scores_of(samples, workspace)[metric], 4),
        trained_parameters=card.trained_parameters,
        lm="own" if trained_here(workspace, cell.unit_model) else "released",
        lm_parameters=card.lm_parameters,
        lm_fingerprint=card.lm_fingerprint,
        updates=card.updates,
        git_revision=card.made_by["git_revision"],
    )  # fmt: skip


def _downstream_figure(cell: Cell, seed: int, workspace: Workspace) -> Figure:
    from baselines.classifiers.downstream import load_settings

    path = _result(cell, seed, workspace)
    card = read_json(path, BASELINES["FT-DM"])
    manifest = workspace.downstream_data(cell.pair.config.downstream) / "manifest"
    lists = {split: manifest / f"{split}.tsv" for split in SPLITS}
    now = {split: sha256(path) for split, path in lists.items() if path.is_file()}
    wanted = dataclasses.asdict(load_settings([f"seed={seed}"]))
    if changed := [
        *["config"] * (card["config"] != wanted),
        *["manifest"] * (card["data"]["manifest"] != now),
    ]:
        raise _other_run(path.parent, changed[0])
    return _baseline_figure(cell, seed, card)


def _ngrams_figure(cell: Cell, seed: int, workspace: Workspace) -> Figure | None:
    if not has_rows(cell, workspace):
        return None
    path = _result(cell, seed, workspace)
    card = read_json(path, BASELINES["n-grams"])
    wanted = unit_ngrams.card_of(workspace, cell.pair, unit_ngrams.load_settings([f"seed={seed}"]))
    if any(card.get(key) != value for key, value in wanted.items()):
        return None  # it is made again in two minutes
    return _baseline_figure(cell, seed, card)


def _baseline_figure(cell: Cell, seed: int, card: dict[str, Any]) -> Figure:
    return Figure(
        cell.method, cell.task, cell.unit_model, seed,
        value=round(card["test"]["accuracy"], 4),
        trained_parameters=card.get("trained_parameters", 0),
        updates=card.get("updates", 0),
        git_revision=card["made_by"]["git_revision"],
    )  # fmt: skip


def _other_run(folder: Path, changed: str) -> UserError:
    return UserError(
        f"{folder}: holds a run with another {changed} than would be trained now; remove the "
        "folder, or take another --workspace"
    )
