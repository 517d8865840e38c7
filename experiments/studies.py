"""Studies: read the files in config/studies/, list their runs, and write the report."""

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
NUMBERS = ("prefix_prompt_length", "shots")  # x axes with a numeric value per run
X_AXES = ("updates", *NUMBERS, "run", "seed")
COLUMNS = 4  # validations in a table of learning curves
SCORES = ("accuracy", "label_loss")  # of each validation, in the CSV
TESTS = {  # test scores -> table columns; a score that the task does not have is left out
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
class Variant:
    """How one row of the table is trained. A missing value comes from the command line, then from
    the study, then from the task's config.
    """

    recipe: str | None = None
    set: list[str] = field(default_factory=list)  # knobs of the recipe
    fine_tune: bool = False
    prefix_prompt_length: int | None = None
    shots: int | None = None  # 0: all rows
    verbalizer: str | None = None  # a --method of verbalizer.py, or learnable


@dataclass
class Study:
    """A file in config/studies/."""

    x: str = "updates"  # the picture's x axis, one of X_AXES
    recipe: str | None = None
    seeds: int = 2  # per variant
    common: list[str] = field(default_factory=list)  # knobs of all variants
    runs: dict[str, Variant] = field(default_factory=dict)  # name -> variant; one run per seed


def study_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Read a study. Raises ``UserError`` if the file is invalid or a run has no x value."""
    path = FOLDER / f"{name}.yaml"
    study = load_config(Study, path)
    if study.x not in X_AXES:
        raise UserError(f"{path}: x: {study.x}: expected one of {', '.join(X_AXES)}")
    for name, variant in study.runs.items():
        if study.x in NUMBERS and getattr(variant, study.x) is None:
            raise UserError(f"{path}: {name}: {study.x} is missing; it is the study's x axis")
    return study


def study_title(args: argparse.Namespace) -> str:
    """Return the first part of the names of the study's outputs."""
    return f"{args.study}_{args.date}" if args.date else args.study


def runs_of(study: Study, args: argparse.Namespace, pair: Pair) -> list[Run]:
    """Return a run for each variant and seed. Raises ``UserError`` for an unknown variant, recipe,
    knob or value, and for a seed among the knobs.
    """
    if any(knob.startswith("seed=") for knob in args.set):
        raise UserError("--set seed: a study uses the seeds 1 to N; --seeds N says how many")
    if unknown := set(args.only or []) - study.runs.keys():
        raise UserError(f"--only {unknown.pop()}: expected one of {', '.join(study.runs)}")
    task = pair.config
    runs = []
    for name, variant in study.runs.items():
        if args.only and name not in args.only:
            continue
        recipe = variant.recipe or args.recipe or study.recipe or task.recipe
        recipe = "fine_tune" if variant.fine_tune else recipe
        length = variant.prefix_prompt_length or args.prefix_prompt_length
        length = length or task.prefix_prompt_length
        knobs = [*study.common, *variant.set, *args.set]
        knobs += [f"shots={variant.shots}"] if variant.shots is not None else []
        knobs += [f"verbalizer={LEARNABLE}"] if variant.verbalizer == LEARNABLE else []
        load_recipe(recipe, [*(f"{key}={value}" for key, value in task.train.items()), *knobs])
        file_name = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        map_name = "freq" if variant.verbalizer == LEARNABLE else variant.verbalizer or ""
        for seed in range(1, (args.seeds or study.seeds) + 1):
            suffix = f"_seed{seed}" if map_name == "random" else ""  # a draw per seed
            date = f"{study_title(args)}_{file_name}_seed{seed}"
            run = Run(
                name, replace(pair, verbalizer=map_name + suffix), seed, date, date,
                recipe=recipe,
                fine_tune=variant.fine_tune,
                prefix_prompt_length=None if variant.fine_tune else length,
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
    """Return one CSV line per run: its settings, and the scores of its best checkpoint."""
    lines = []
    for run, (record, test, _) in outcomes.items():
        verbalizer = record["training"].get("verbalizer", "fixed")
        if verbalizer != LEARNABLE and run.pair.verbalizer:
            verbalizer = run.pair.verbalizer.partition("_")[0]  # the method of verbalizer.py
        line = {
            "run": run.row,
            "seed": run.seed,
            "prefix_prompt_length": run.prefix_prompt_length,
            "shots": record["training"].get("shots", 0),
            "verbalizer": verbalizer,
            "trained_parameters": record["trained_parameters"],
            "updates": record["updates"],
            **{f"valid_{name}": record["valid"][name] for name in SCORES},
            **{f"test_{name}": value for name, value in test.items()},
        }
        lines.append(line)
    return lines


def _validations(outcomes: Mapping[Run, Outcome]) -> list[dict[str, Any]]:
    """Return one CSV line per validation of each run."""
    return [
        {"run": run.row, "seed": run.seed, "updates": update, **{k: scores[k] for k in SCORES}}
        for run, outcome in outcomes.items()
        for update, scores in outcome.curve.items()
    ]


def _table(outcomes: Mapping[Run, Outcome], title: str, curves: bool) -> list[list[str]]:
    """Return one row per variant: mean ± standard deviation over seeds, of the best checkpoint, or
    with ``curves`` after some of the updates.
    """

    def best(seeds: list[Outcome]) -> str:
        return spread([outcome.record["valid"]["accuracy"] for outcome in seeds])

    columns: dict[str, Callable[[list[Outcome]], str]] = {}
    if curves:
        score_title = "valid accuracy, %, after updates"
        for update in _column_updates(outcomes):
            columns[f"{update:,}"] = lambda seeds, update=update: spread(
                [outcome.curve[update]["accuracy"] for outcome in seeds if update in outcome.curve]
            )
        columns["best checkpoint"] = lambda seeds: (
            f"{best(seeds)} (by {max(outcome.record['updates'] for outcome in seeds):,})"
        )
    else:
        score_title = "accuracy, %"
        columns["trained"] = lambda seeds: f"{seeds[0].record['trained_parameters']:,}"
        columns["valid"] = best
        for key, name in TESTS.items():
            if all(outcome.test.get(key) is not None for outcome in outcomes.values()):
                columns[name] = lambda seeds, key=key: spread([o.test[key] for o in seeds])
    columns["seeds"] = lambda seeds: str(len(seeds))
    rows = [[f"{title}: {score_title}", *columns]]
    for name, seeds in grouped((run.row, outcome) for run, outcome in outcomes.items()).items():
        rows.append([name, *(column(seeds) for column in columns.values())])
    return rows


def _column_updates(outcomes: Mapping[Run, Outcome]) -> list[int]:
    """Choose at most ``COLUMNS`` updates at which most curves have a validation: the first update,
    then each time at least twice as many, and the last.
    """
    counts = Counter(update for outcome in outcomes.values() for update in outcome.curve)
    shared = sorted(update for update, count in counts.items() if 2 * count > len(outcomes))
    chosen: list[int] = []
    for update in shared:
        if not chosen or update >= 2 * chosen[-1]:
            chosen.append(update)
    return sorted({*chosen[: COLUMNS - 1], *shared[-1:]})
