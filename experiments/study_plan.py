"""What a study consists of: a file in config/studies/, and the training runs that it stands for."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import CONFIG, Pair, TaskConfig
from ulm_prompt.prompt_data.verbal import check_data_bin
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


# A twin of a workspace: the same rows and unit LM, with another verbalizer. verbal.json holds one
# map for a task. A study of several keeps each in a twin, so that a run there goes on later and
# the workspace's own map stays what it is.


STAGES = Path(__file__).resolve().parents[1] / "ulm_prompt"


def twin(workspace: Workspace, pair: Pair, method: str, seed: int) -> Workspace:
    """The twin of one task whose labels are renamed by ``method``, after stages 2 and 3.

    What lies there and is not stale is left as it is. ``seed``: of the random method, whose every
    seed has a twin.
    """
    name = f"{pair.task}_{pair.unit_model}_{method}"
    if method == "random":
        name += f"_seed{seed}"
    found = Workspace(workspace.root / "samples" / "studies" / "verbalizers" / name)
    downstream = pair.config.downstream
    rows = workspace.downstream_data(downstream) / pair.unit_model
    _link(found.downstream_data(downstream) / pair.unit_model, rows)
    _link(found.lm(pair.unit_model), lm_folder(workspace, pair.unit_model))
    try:
        check_data_bin(found, pair)
    except UserError:  # nothing there yet, or the rows have changed
        own = ("--prompt_task", pair.task, "--unit_model", pair.unit_model)
        run_stage("make_data", found, own)
        run_stage("gen_labelspace", found, own)
        run_stage("verbalizer", found, (*own, "--method", method, "--seed", seed))
        run_stage("fairseq_preprocess", found, own)
    return found


def run_stage(name: str, workspace: Workspace, flags: Sequence[object]) -> str:
    """Run a stage script on one core; returns what it printed.

    Raises ``UserError`` with what it said when it fails.
    """
    command = (sys.executable, STAGES / f"{name}.py", "--workspace", workspace.root, *flags)
    result = subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise UserError(f"{name}.py: {said[-1].removeprefix('error: ')}")
    return result.stdout


def _link(place: Path, target: Path) -> None:
    target = target.resolve()
    if place.is_symlink() and place.resolve() != target:  # the workspace was moved
        place.unlink()
    if not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
