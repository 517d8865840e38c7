"""Studies: the files in config/studies/, the runs that they stand for, and the report on them."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.pictures import draw_study
from experiments.runs import Outcome, Run
from experiments.tables import grouped, markdown, spread, write_csv
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files import writing
from ulm_prompt.prompt_data.tasks import CONFIG, Pair
from ulm_prompt.training.recipe import load_recipe

FOLDER = CONFIG / "studies"
LEARNABLE = "learnable"
NUMBERS = ("prefix_prompt_length", "shots")  # x axes that are a number of the run
X_AXES = ("updates", *NUMBERS, "run", "seed")
COLUMNS = 4  # of validations in a table of learning curves
SCORES = ("accuracy", "label_loss")  # of a validation, in the CSV
TESTS = {  # the scores of the test split that a table has, as far as the task has them
    "accuracy": "test",
    "accuracy_within_labels": "test, within labels",
    "macro_f1": "test macro F1",
    "eer": "test EER",
    "invalid": "invalid answers",
    "WER": "test WER",
    "CER": "test CER",
    "slot type F1": "test slot type F1",
    "slot value CER": "test slot value CER",
}


@dataclass
class Way:
    """How a row of the table is trained. What it leaves out is as the command line, else the
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
    common: list[str] = field(default_factory=list)  # knobs that all runs share
    runs: dict[str, Way] = field(default_factory=dict)


def study_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Read a study. Raises ``UserError`` for a broken file, or a run without a value on the x
    axis.
    """
    path = FOLDER / f"{name}.yaml"
    study = load_config(Study, path)
    if study.x not in X_AXES:
        raise UserError(f"{path}: x: {study.x}: expected one of {', '.join(X_AXES)}")
    for run, way in study.runs.items():
        if study.x in NUMBERS and getattr(way, study.x) is None:
            raise UserError(f"{path}: {run}: {study.x} is missing; it is the study's x axis")
    return study


def study_title(args: argparse.Namespace) -> str:
    """What the study's outputs are named by."""
    return f"{args.study}_{args.date}" if args.date else args.study


def runs_of(study: Study, args: argparse.Namespace, pair: Pair) -> list[Run]:
    """Every way with every seed. Raises ``UserError`` for a way that the study does not have, a
    seed among the knobs, and an unknown recipe, knob or value.
    """
    if any(knob.startswith("seed=") for knob in args.set):
        raise UserError("--set seed: a study runs the seeds from 1 on, --seeds says how many")
    if unknown := set(args.only or []) - study.runs.keys():
        raise UserError(f"--only {unknown.pop()}: expected one of {', '.join(study.runs)}")
    task = pair.config
    runs = []
    for name, way in study.runs.items():
        if args.only and name not in args.only:
            continue
        recipe = way.recipe or args.recipe or study.recipe or task.recipe
        recipe = "fine_tune" if way.fine_tune else recipe
        length = way.prefix_prompt_length or args.prefix_prompt_length or task.prefix_prompt_length
        knobs = [*study.common, *way.set, *args.set]
        knobs += [f"shots={way.shots}"] if way.shots is not None else []
        knobs += [f"verbalizer={LEARNABLE}"] if way.verbalizer == LEARNABLE else []
        load_recipe(recipe, [*(f"{key}={value}" for key, value in task.train.items()), *knobs])
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        map_name = "freq" if way.verbalizer == LEARNABLE else way.verbalizer or ""
        for seed in range(1, (args.seeds or study.seeds) + 1):
            another_draw = f"_seed{seed}" if map_name == "random" else ""
            date = f"{study_title(args)}_{plain}_seed{seed}"
            run = Run(
                name, replace(pair, verbalizer=map_name + another_draw), seed, date, date,
                recipe=recipe,
                fine_tune=way.fine_tune,
                prefix_prompt_length=None if way.fine_tune else length,
                knobs=(*knobs, f"seed={seed}"),
            )  # fmt: skip
            runs.append(run)
    return runs


def report(
    study: Study, outcomes: Mapping[Run, Outcome], title: str, folder: Path, name: str
) -> list[Path]:
    """Write ``folder``/``name``.csv, .md and .png, print the table, and return the paths."""
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "md", "png")]
    curves = study.x == "updates"
    lines = (_validations if curves else _runs)(outcomes)
    write_csv(paths[0], lines, lines[0])
    text = markdown(_table(outcomes, title, curves))
    with writing(paths[1]) as handle:
        handle.write(text)
    print(f"\n{text}", end="")
    draw_study(study.x, outcomes, title, paths[2])
    return paths


def _runs(outcomes: Mapping[Run, Outcome]) -> list[dict[str, Any]]:
    """A line for each run: what it was and how it scored, at its best checkpoint."""
    lines = []
    for run, (card, test, _) in outcomes.items():
        verbalizer = card["training"].get("verbalizer", "fixed")
        if verbalizer != LEARNABLE and run.pair.verbalizer:
            verbalizer = run.pair.verbalizer.partition("_")[0]  # the method of verbalizer.py
        line = {
            "run": run.row,
            "seed": run.seed,
            "prefix_prompt_length": run.prefix_prompt_length,
            "shots": card["training"].get("shots", 0),
            "verbalizer": verbalizer,
            "trained_parameters": card["trained_parameters"],
            "updates": card["updates"],
            **{f"valid_{name}": card["valid"][name] for name in SCORES},
            **{f"test_{name}": value for name, value in test.items()},
        }
        lines.append(line)
    return lines


def _validations(outcomes: Mapping[Run, Outcome]) -> list[dict[str, Any]]:
    """A line for each validation of each run."""
    return [
        {"run": run.row, "seed": run.seed, "updates": update, **{k: scores[k] for k in SCORES}}
        for run, outcome in outcomes.items()
        for update, scores in outcome.curve.items()
    ]


def _table(outcomes: Mapping[Run, Outcome], title: str, curves: bool) -> list[list[str]]:
    """A row for each way, scores as mean ± standard deviation over its seeds: at the best
    checkpoint, or (``curves``) after some of the updates.
    """

    def best(seeds: list[Outcome]) -> str:
        return spread([seed.card["valid"]["accuracy"] for seed in seeds])

    columns: dict[str, Callable[[list[Outcome]], str]] = {}
    if curves:
        what = "valid accuracy, %, after updates"
        for update in _marked_updates(outcomes):
            columns[f"{update:,}"] = lambda seeds, update=update: spread(
                [seed.curve[update]["accuracy"] for seed in seeds if update in seed.curve]
            )
        columns["best checkpoint"] = lambda seeds: (
            f"{best(seeds)} (by {max(seed.card['updates'] for seed in seeds):,})"
        )
    else:
        what = "accuracy, %"
        columns["trained"] = lambda seeds: f"{seeds[0].card['trained_parameters']:,}"
        columns["valid"] = best
        for key, name in TESTS.items():
            if all(outcome.test.get(key) is not None for outcome in outcomes.values()):
                columns[name] = lambda seeds, key=key: spread([seed.test[key] for seed in seeds])
    columns["seeds"] = lambda seeds: str(len(seeds))
    rows = [[f"{title}: {what}", *columns]]
    for name, seeds in grouped((run.row, outcome) for run, outcome in outcomes.items()).items():
        rows.append([name, *(column(seeds) for column in columns.values())])
    return rows


def _marked_updates(outcomes: Mapping[Run, Outcome]) -> list[int]:
    """Up to ``COLUMNS`` of the updates at which most curves have a validation: the first, its
    doublings, the last.
    """
    counts = Counter(update for outcome in outcomes.values() for update in outcome.curve)
    shared = sorted(update for update, count in counts.items() if 2 * count > len(outcomes))
    marked: list[int] = []
    for update in shared:
        if not marked or update >= 2 * marked[-1]:
            marked.append(update)
    return sorted({*marked[: COLUMNS - 1], *shared[-1:]})
