"""Studies: the files in config/studies/, the runs that they stand for, and the report on them."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping
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
    """A row for each way: valid accuracy after up to ``COLUMNS`` of the updates at which most
    curves have a validation (the first, its doublings, the last), and of the best checkpoint.
    """
    counts = Counter(update for outcome in outcomes.values() for update in outcome.curve)
    shared = sorted(update for update, count in counts.items() if 2 * count > len(outcomes))
    columns: list[int] = []
    for update in shared:
        if not columns or update >= 2 * columns[-1]:
            columns.append(update)
    columns = sorted({*columns[: COLUMNS - 1], *shared[-1:]})
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
