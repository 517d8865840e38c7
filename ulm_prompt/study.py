"""A study: one task trained in several ways and with several seeds, then a table and its curves.

Each file in config/studies/ is one. A cell that is finished is not trained again. Judged on valid;
the test split is not looked at.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, pstdev
from typing import NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError, run
from pipeline.files import writing
from pipeline.workspace import Workspace
from ulm_prompt.curves import draw_curves, valid_curve
from ulm_prompt.tasks import CONFIG, add_workspace, load_task

TRAIN = Path(__file__).resolve().parent / "train.py"


@dataclass
class Way:
    """How one row of the table is trained: a recipe, and knobs changed in it."""

    recipe: str = MISSING
    set: list[str] = field(default_factory=list)


@dataclass
class Study:
    """A file in config/studies/. ``common`` holds knobs that every run shares."""

    common: list[str] = field(default_factory=list)
    runs: dict[str, Way] = field(default_factory=dict)


class Cell(NamedTuple):
    """One training run, and the --date that names it."""

    name: str
    seed: int
    date: str
    flags: tuple[str, ...]


def main() -> None:
    args = parse()
    study = load_config(Study, CONFIG / "studies" / f"{args.study}.yaml")
    load_task(args.prompt_task)  # an unknown one is told before anything is trained
    cells = cells_of(study, args)
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(train, cell, args) for cell in cells]:
            done.result()
    workspace = Workspace(args.workspace)
    curves = {}
    for cell in cells:
        logs = workspace.logs(args.prompt_task, args.unit_model, cell.date)
        curves[cell] = valid_curve(logs / "train.log")
    report(study, curves, workspace, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted(path.stem for path in (CONFIG / "studies").glob("*.yaml"))
    parser.add_argument("study", choices=names)
    parser.add_argument("--prompt_task", required=True, help="for example KS")
    parser.add_argument("--unit_model", required=True, help="for example hubert100")
    parser.add_argument("--prefix_prompt_length", type=int, help="default: the task's config")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each way (default: 2)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, a core each (default: 1)"
    )
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these runs of the study")
    add_workspace(parser)
    return parser.parse_args()


def cells_of(study: Study, args: argparse.Namespace) -> list[Cell]:
    """Every run with every seed. Raises ``UserError`` for a run that the study does not have."""
    unknown = set(args.only or []) - study.runs.keys()
    if unknown:
        raise UserError(f"--only {unknown.pop()}: expected one of {', '.join(study.runs)}")
    cells = []
    for name, way in study.runs.items():
        if args.only and name not in args.only:
            continue
        for seed in range(1, args.seeds + 1):
            date = f"{args.study}_{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}_seed{seed}"
            flags = ("--recipe", way.recipe, "--set", *study.common, *way.set, f"seed={seed}")
            cells.append(Cell(name, seed, date, flags))
    return cells


def train(cell: Cell, args: argparse.Namespace) -> None:
    """Train one cell, or find it finished."""
    command = [sys.executable, TRAIN, "--date", cell.date, "--workspace", args.workspace]
    command += ["--prompt_task", args.prompt_task, "--unit_model", args.unit_model]
    if args.prefix_prompt_length:
        command += ["--prefix_prompt_length", args.prefix_prompt_length]
    result = subprocess.run(
        [*map(str, command), *cell.flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise UserError(f"{cell.name}, seed {cell.seed}: {result.stderr.strip().splitlines()[-1]}")
    print(f"{cell.name}, seed {cell.seed}: {result.stdout.strip().splitlines()[-2]}", flush=True)


def report(
    study: Study,
    curves: dict[Cell, dict[int, dict[str, float]]],
    workspace: Workspace,
    args: argparse.Namespace,
) -> None:
    """Print the table (Markdown); write every validation to a CSV and the curves to a PNG."""
    folder = workspace.root / "samples" / "studies"
    stem = f"{args.study}_{args.prompt_task}_{args.unit_model}"
    with writing(folder / f"{stem}.csv") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(["run", "seed", "updates", "accuracy", "label_loss"])
        for cell, curve in curves.items():
            for update, scores in curve.items():
                values = (scores["accuracy"], scores["label_loss"])
                table.writerow([cell.name, cell.seed, update, *values])
    print(f"\n| {args.prompt_task}, {args.unit_model} | updates | valid accuracy, % | seeds |")
    print("|---|---|---|---|")
    grouped: dict[str, list[dict[int, dict[str, float]]]] = {}
    for cell, curve in curves.items():
        grouped.setdefault(cell.name, []).append(curve)
    for name, found in grouped.items():
        best = [max(scores["accuracy"] for scores in curve.values()) for curve in found]
        spread = f" ± {pstdev(best):.2f}" if len(best) > 1 else ""
        print(f"| {name} | {max(found[0])} | {mean(best):.2f}{spread} | {len(best)} |")
    draw_curves(grouped, f"{args.prompt_task}, {args.unit_model}", folder / f"{stem}.png")
    print(f"\nwrote {folder / stem}.csv and .png")


if __name__ == "__main__":
    run(main)
