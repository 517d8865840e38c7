"""What a study found: a CSV of everything, a table in Markdown, and a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.pictures import draw
from experiments.study_cell import Outcome
from experiments.study_plan import Cell, Study, groups
from pipeline.files import writing

COLUMNS = 4  # of validations in a table of learning curves
TESTS = {  # the scores of the test split that a table has, as far as the task has them
    "accuracy": "test",
    "accuracy_within_labels": "test, within labels",
    "invalid": "invalid answers",
    "WER": "test WER",
    "CER": "test CER",
    "slot type F1": "test slot type F1",
    "slot value CER": "test slot value CER",
}


def report(
    study: Study, outcomes: Mapping[Cell, Outcome], title: str, folder: Path, name: str
) -> list[Path]:
    """Write ``folder``/``name``.csv, .md and .png, print the table, and return the paths."""
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "md", "png")]
    curves = study.x == "updates"
    rows = validations(outcomes) if curves else runs(outcomes)
    with writing(paths[0]) as handle:
        table = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    lines = curve_table(outcomes, title) if curves else run_table(outcomes, title)
    text = "\n".join(lines)
    with writing(paths[1]) as handle:
        handle.write(text + "\n")
    print(f"\n{text}")
    draw(study.x, outcomes, title, paths[2])
    return paths


def runs(outcomes: Mapping[Cell, Outcome]) -> list[dict[str, Any]]:
    """A line for each run: what it was and how it scored, at its best checkpoint."""
    return [
        {
            "run": cell.name,
            "seed": cell.seed,
            "prefix_prompt_length": cell.prefix_prompt_length,
            "shots": outcome.made_from["recipe"]["shots"],
            "verbalizer": cell.verbalizer or outcome.made_from["recipe"]["verbalizer"],
            "trained_parameters": outcome.trained_parameters,
            "updates": outcome.updates,
            "valid_accuracy": outcome.valid["accuracy"],
            "valid_label_loss": outcome.valid["label_loss"],
            **{f"test_{name}": value for name, value in (outcome.test or {}).items()},
        }
        for cell, outcome in outcomes.items()
    ]


def validations(outcomes: Mapping[Cell, Outcome]) -> list[dict[str, Any]]:
    """A line for each validation of each run."""
    return [
        {
            "run": cell.name,
            "seed": cell.seed,
            "updates": int(scores["num_updates"]),
            "accuracy": scores["accuracy"],
            "label_loss": scores["label_loss"],
        }
        for cell, outcome in outcomes.items()
        for scores in outcome.curve
    ]


def run_table(outcomes: Mapping[Cell, Outcome], title: str) -> list[str]:
    """Markdown, a line for each way: accuracies as mean ± standard deviation over its seeds."""
    tested = [key for key in TESTS if all(key in (each.test or {}) for each in outcomes.values())]
    tests = [TESTS[key] for key in tested]
    lines = [_line([f"{title}: accuracy, %", "trained", "valid", *tests, "seeds"])]
    lines.append("|---" * (4 + len(tests)) + "|")
    for name, cells in groups(list(outcomes)).items():
        found = [outcomes[cell] for cell in cells]
        entries = [name, f"{found[0].trained_parameters:,}"]
        entries.append(spread([outcome.valid["accuracy"] for outcome in found]))
        for key in tested:
            entries.append(spread([outcome.test[key] for outcome in found]))
        lines.append(_line([*entries, str(len(found))]))
    return lines


def curve_table(outcomes: Mapping[Cell, Outcome], title: str) -> list[str]:
    """Markdown, a line for each way: valid accuracy after so many updates, and of the best
    checkpoint.
    """
    curves = {
        name: [_curve(outcomes[cell]) for cell in cells]
        for name, cells in groups(list(outcomes)).items()
    }
    columns = columns_of([curve for found in curves.values() for curve in found])
    after = [f"{update:,}" for update in columns]
    head = [f"{title}: valid accuracy, %, after updates", *after, "best checkpoint", "seeds"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for name, cells in groups(list(outcomes)).items():
        entries = [
            spread([curve[update] for curve in curves[name] if update in curve])
            for update in columns
        ]
        best = [outcomes[cell] for cell in cells]
        latest = max(outcome.updates for outcome in best)
        entries.append(f"{spread([each.valid['accuracy'] for each in best])} (by {latest:,})")
        lines.append(_line([name, *entries, str(len(cells))]))
    return lines


def columns_of(curves: Sequence[Mapping[int, float]]) -> list[int]:
    """Up to ``COLUMNS`` updates at which most curves have a validation: the first, its doublings,
    and the last.
    """
    every = sorted({update for curve in curves for update in curve})
    shared = [each for each in every if 2 * sum(each in curve for curve in curves) > len(curves)]
    chosen: list[int] = []
    for update in shared:
        if not chosen or update >= 2 * chosen[-1]:
            chosen.append(update)
    chosen = chosen[: COLUMNS - 1] + shared[-1:]
    return sorted(set(chosen))


def spread(values: Sequence[float]) -> str:
    """``mean ± sample standard deviation`` with two digits; nothing for no values."""
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _curve(outcome: Outcome) -> dict[int, float]:
    return {int(scores["num_updates"]): scores["accuracy"] for scores in outcome.curve}


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
