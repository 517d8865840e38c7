"""What a study consists of: a file in config/studies/, and the training runs that it stands for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config import load_config
from pipeline.errors import UserError
from ulm_prompt.tasks import CONFIG, TaskConfig
from ulm_prompt.verbalizer import METHODS

FOLDER = CONFIG / "studies"
LEARNABLE = "learnable"
NUMBERS = ("prefix_prompt_length", "shots")  # x axes that are a number of the run
X_AXES = ("updates", *NUMBERS, "run", "seed")


@dataclass
class Way:
    """How one row of the table is trained. What it leaves out is as the command line, else the
    study, else the task's config says.
    """

    recipe: str | None = None
    set: list[str] = field(default_factory=list)  # knobs of the recipe
    fine_tune: bool = False
    prefix_prompt_length: int | None = None
    shots: int | None = None  # 0: all
    verbalizer: str | None = None  # a --method of verbalizer.py, or learnable


@dataclass
class Study:
    """A file in config/studies/."""

    x: str = "updates"  # what the picture's x axis is, one of X_AXES
    recipe: str | None = None
    seeds: int = 2  # runs of each way
    common: list[str] = field(default_factory=list)  # knobs that every run shares
    runs: dict[str, Way] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training run. ``date``: its name, as train.py's --date."""

    name: str
    seed: int
    date: str
    recipe: str
    knobs: tuple[str, ...]
    fine_tune: bool
    prefix_prompt_length: int
    shots: int
    verbalizer: str | None


def load_study(name: str) -> Study:
    """Read a study. Raises ``UserError`` for an unknown one, a broken file, or a run that does not
    say where it stands on the x axis.
    """
    path = FOLDER / f"{name}.yaml"
    if name not in study_names():
        raise UserError(f"study {name}: expected one of {', '.join(study_names())}")
    study = load_config(Study, path)
    if study.x not in X_AXES:
        raise UserError(f"{path}: x: {study.x}: expected one of {', '.join(X_AXES)}")
    for run, way in study.runs.items():
        if way.verbalizer not in (None, *METHODS, LEARNABLE):
            known = ", ".join((*METHODS, LEARNABLE))
            raise UserError(f"{path}: {run}: verbalizer {way.verbalizer}: expected one of {known}")
        if study.x in NUMBERS and getattr(way, study.x) is None:
            raise UserError(f"{path}: {run}: {study.x} is missing; it is the study's x axis")
    return study


def study_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def stem(args: argparse.Namespace) -> str:
    """What the study's outputs are named by."""
    return "_".join([args.study, *([args.date] if args.date else [])])


def cells_of(study: Study, args: argparse.Namespace, task: TaskConfig) -> list[Cell]:
    """Every run with every seed. Raises ``UserError`` for a run that the study does not have, or a
    seed among the knobs.
    """
    if any(knob.startswith("seed=") for knob in args.set):
        raise UserError("--set seed: a study runs the seeds from 1 on, --seeds says how many")
    unknown = set(args.only or []) - study.runs.keys()
    if unknown:
        raise UserError(f"--only {unknown.pop()}: expected one of {', '.join(study.runs)}")
    seeds = args.seeds or study.seeds
    cells = []
    for name, way in study.runs.items():
        if args.only and name not in args.only:
            continue
        recipe = way.recipe or args.recipe or study.recipe or task.recipe
        length = way.prefix_prompt_length or args.prefix_prompt_length or task.prefix_prompt_length
        knobs = [*study.common, *way.set, *args.set]
        if way.shots is not None:
            knobs.append(f"shots={way.shots}")
        if way.verbalizer == LEARNABLE:
            knobs.append(f"verbalizer={LEARNABLE}")
        for seed in range(1, seeds + 1):
            cells.append(
                Cell(
                    name=name,
                    seed=seed,
                    date=f"{stem(args)}_{_plain(name)}_seed{seed}",
                    recipe="fine_tune" if way.fine_tune else recipe,
                    knobs=(*knobs, f"seed={seed}"),
                    fine_tune=way.fine_tune,
                    prefix_prompt_length=length,
                    shots=way.shots or 0,
                    verbalizer=way.verbalizer,
                )
            )
    return cells


def groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The runs of each way, in the study's order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.name, []).append(cell)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
