"""Studies: the files in config/studies/, the runs that they stand for, and the report on them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.pictures import draw_study
from experiments.runs import Command, Outcome, Run, by_row, selection
from experiments.tables import markdown, spread, write_csv
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files import writing
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import CONFIG, Pair
from ulm_prompt.prompt_data.verbal import METHODS, has_data_bin
from ulm_prompt.training.recipe import load_recipe

FOLDER = CONFIG / "studies"
LEARNABLE = "learnable"
NUMBERS = ("prefix_prompt_length", "shots")  # x axes that are a number of the run
X_AXES = ("updates", *NUMBERS, "run", "seed")
COLUMNS = 4  # of validations in a table of learning curves
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
    """Read a study. Raises ``UserError`` for an unknown one, a broken file, or a run without a
    value on the x axis.
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


def study_title(args: argparse.Namespace) -> str:
    """What the study's outputs are named by."""
    return f"{args.study}_{args.date}" if args.date else args.study


def runs_of(study: Study, args: argparse.Namespace, pair: Pair) -> list[Run]:
    """Every way with every seed. Raises ``UserError`` for a way that the study does not have, a
    seed among the knobs, and an unknown recipe, knob or value.
    """
    if any(knob.startswith("seed=") for knob in args.set):
        raise UserError("--set seed: a study runs the seeds from 1 on, --seeds says how many")
    unknown = set(args.only or []) - study.runs.keys()
    if unknown:
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
        for seed in range(1, (args.seeds or study.seeds) + 1):
            plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
            date = f"{study_title(args)}_{plain}_seed{seed}"
            run = Run(
                name, replace(pair, verbalizer=_verbalizer_name(way, seed)), seed, date, date,
                recipe=recipe,
                fine_tune=way.fine_tune,
                prefix_prompt_length=None if way.fine_tune else length,
                knobs=(*knobs, f"seed={seed}"),
            )  # fmt: skip
            runs.append(run)
    return runs


def preparation(run: Run, workspace: Workspace) -> list[Command]:
    """The commands that make the data of the run's verbalizer, unless they were run."""
    if not run.pair.verbalizer or has_data_bin(workspace, run.pair):
        return []
    flags = selection(run.pair, workspace)
    method = run.pair.verbalizer.partition("_")[0]
    return [
        ["ulm_prompt/verbalizer.py", "--method", method, "--seed", str(run.seed), *flags],
        ["ulm_prompt/fairseq_preprocess.py", *flags],
    ]


def report(
    study: Study, outcomes: Mapping[Run, Outcome], title: str, folder: Path, name: str
) -> list[Path]:
    """Write ``folder``/``name``.csv, .md and .png, print the table, and return the paths."""
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "md", "png")]
    curves = study.x == "updates"
    lines = (_validations if curves else _runs)(outcomes)
    write_csv(paths[0], lines, lines[0])
    text = markdown((_curve_table if curves else _run_table)(outcomes, title))
    with writing(paths[1]) as handle:
        handle.write(text)
    print(f"\n{text}", end="")
    draw_study(study.x, outcomes, title, paths[2])
    return paths


def _verbalizer_name(way: Way, seed: int) -> str:
    """What the way's map is kept under. Each seed of the random method draws another."""
    if way.verbalizer == "random":
        return f"random_seed{seed}"
    return "freq" if way.verbalizer == LEARNABLE else way.verbalizer or ""


def _verbalizer_kind(run: Run, knob: str | None) -> str:
    """What the CSV calls a run's verbalizer: a method of verbalizer.py, or the recipe's knob."""
    if knob == LEARNABLE or not run.pair.verbalizer:
        return knob or "fixed"
    return run.pair.verbalizer.partition("_")[0]


def _runs(outcomes: Mapping[Run, Outcome]) -> list[dict[str, Any]]:
    """A line for each run: what it was and how it scored, at its best checkpoint."""
    return [
        {
            "run": run.row,
            "seed": run.seed,
            "prefix_prompt_length": run.prefix_prompt_length,
            "shots": outcome.card["training"].get("shots", 0),
            "verbalizer": _verbalizer_kind(run, outcome.card["training"].get("verbalizer")),
            "trained_parameters": outcome.card["trained_parameters"],
            "updates": outcome.card["updates"],
            "valid_accuracy": outcome.card["valid"]["accuracy"],
            "valid_label_loss": outcome.card["valid"]["label_loss"],
            **{f"test_{name}": value for name, value in outcome.test.items()},
        }
        for run, outcome in outcomes.items()
    ]


def _validations(outcomes: Mapping[Run, Outcome]) -> list[dict[str, Any]]:
    """A line for each validation of each run."""
    keys = ("accuracy", "label_loss")
    return [
        {"run": run.row, "seed": run.seed, "updates": update, **{key: scores[key] for key in keys}}
        for run, outcome in outcomes.items()
        for update, scores in outcome.curve.items()
    ]


def _run_table(outcomes: Mapping[Run, Outcome], title: str) -> list[list[str]]:
    """A row for each way: accuracies as mean ± standard deviation over its seeds."""
    tests = [outcome.test for outcome in outcomes.values()]
    tested = [key for key in TESTS if all(test.get(key) is not None for test in tests)]
    names = [TESTS[key] for key in tested]
    rows = [[f"{title}: accuracy, %", "trained", "valid", *names, "seeds"]]
    for name, seeds in by_row(outcomes).items():
        scores = [[outcome.card["valid"]["accuracy"] for outcome in seeds]]
        scores += [[outcome.test[key] for outcome in seeds] for key in tested]
        trained = f"{seeds[0].card['trained_parameters']:,}"
        rows.append([name, trained, *map(spread, scores), str(len(seeds))])
    return rows


def _curve_table(outcomes: Mapping[Run, Outcome], title: str) -> list[list[str]]:
    """A row for each way: valid accuracy after so many updates, and of the best checkpoint."""
    columns = columns_of([outcome.curve for outcome in outcomes.values()])
    after = [f"{update:,}" for update in columns]
    rows = [[f"{title}: valid accuracy, %, after updates", *after, "best checkpoint", "seeds"]]
    for name, seeds in by_row(outcomes).items():
        entries = [
            spread([seed.curve[update]["accuracy"] for seed in seeds if update in seed.curve])
            for update in columns
        ]
        latest = max(outcome.card["updates"] for outcome in seeds)
        best = spread([outcome.card["valid"]["accuracy"] for outcome in seeds])
        rows.append([name, *entries, f"{best} (by {latest:,})", str(len(seeds))])
    return rows


def columns_of(curves: Sequence[Mapping[int, Any]]) -> list[int]:
    """Up to ``COLUMNS`` updates at which most curves have a validation: the first, its doublings,
    and the last.
    """
    updates = sorted({update for curve in curves for update in curve})
    shared = [u for u in updates if 2 * sum(u in curve for curve in curves) > len(curves)]
    chosen: list[int] = []
    for update in shared:
        if not chosen or update >= 2 * chosen[-1]:
            chosen.append(update)
    return sorted({*chosen[: COLUMNS - 1], *shared[-1:]})
