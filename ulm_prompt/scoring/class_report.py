"""Where a classifier goes wrong: every slot, the worst classes, the confident mistakes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, one_line
from pipeline.files import holding
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.scoring.comparison import slot_accuracies, slot_titles
from ulm_prompt.scoring.pictures import OTHER, draw_confusion
from ulm_prompt.scoring.sample_file import read_samples, within_path
from ulm_prompt.scoring.scores import Label, is_baseline, label_names, named_labels

MOST_CLASSES = 30  # that are printed


def label_text(units: str, names: Mapping[str, Label], at: slice = slice(None)) -> str:
    """``71 12 57`` -> ``activate, lamp, kitchen``, or the slots ``at`` alone; ? for no label."""
    return ", ".join(names[unit].name if unit in names else "?" for unit in units.split()[at])


def answers(
    path: Path, names: Mapping[str, Label], at: slice = slice(None)
) -> tuple[list[str], list[str], list[str]]:
    """The class of each row of a sample file, its answer or ``OTHER``, and all classes; of the
    slots ``at`` alone.
    """
    rows = list(read_samples(path))
    spoken = [label_text(row["label"], names, at) for row in rows]
    classes = set(spoken)
    answered = [label_text(row["predict"], names, at) for row in rows]
    return spoken, [name if name in classes else OTHER for name in answered], sorted(classes)


def class_report(path: Path, names: Mapping[str, Label]) -> dict[str, Any]:
    """Report on the free answers in ``path``, and on the mistakes within the label set.

    classes: name, utterances, errors, and precision, recall, f1 in %, those with the most errors
    first. slots: slot -> accuracy in %, where a row has several labels. mistakes: file_name, label,
    predict and the probability that the LM gave the answer, the most confident first; none of a
    baseline. Raises ``UserError`` for a missing or malformed file.
    """
    spoken, answered, classes = answers(path, names)
    times_spoken, times_answered = Counter(spoken), Counter(answered)
    times_right = Counter(label for label, answer in zip(spoken, answered) if label == answer)
    scores = []
    for name in classes:
        count, given, right = times_spoken[name], times_answered[name], 100 * times_right[name]
        shares = {"precision": right / max(1, given), "recall": right / count}
        f1 = 2 * right / (count + given)
        errors = count - times_right[name]
        scores.append({"name": name, "utterances": count, "errors": errors, **shares, "f1": f1})
    scores.sort(key=lambda score: -score["errors"])
    samples = list(read_samples(path))
    mistakes = [] if is_baseline(samples[0]) else _mistakes(path, names)
    first = samples[0]["label"].split()
    titles = slot_titles([names[unit].slot if unit in names else "label" for unit in first])
    slots = slot_accuracies(samples, titles)
    return {"classes": scores, "slots": slots, "mistakes": mistakes}


def _mistakes(path: Path, names: Mapping[str, Label]) -> list[dict[str, Any]]:
    twin = within_path(path)
    if not twin.exists():  # the published code wrote none: no probabilities
        return []
    mistakes = []
    for row in read_samples(twin):
        if row["label"] == row["predict"]:
            continue
        texts = {key: label_text(row[key], names) for key in ("label", "predict")}
        probability, _ = probabilities_of(row, twin)
        mistakes.append({"file_name": row["file_name"], **texts, "probability": probability})
    return sorted(mistakes, key=lambda mistake: -mistake["probability"])


def probabilities_of(row: Mapping[str, Any], twin: Path) -> tuple[float, list[float]]:
    """The LM's probability of the answer within the label set, and of each label after those before
    it, by a ``row`` of the file ``twin``. Raises ``UserError`` for a row without file or score.
    """
    try:
        _, score = row["file_name"], row["score"]
        of_labels = [math.exp(share) for share in row.get("label_scores") or ()]
        return 0.0 if score is None else math.exp(score), of_labels
    except (KeyError, TypeError, OverflowError):
        raise UserError(
            f"{twin}: expected id -> file_name, label, predict, score; run sample.py again"
        ) from None


def report_names(path: Path, workspace: Workspace, flag: str) -> tuple[Pair, dict[str, Label]]:
    """The task of the sample file ``path``, and what its label units, or a baseline's label
    numbers, say.

    Raises ``UserError``, which names ``flag``, when the rows that were decoded are not in the
    workspace.
    """
    pair = pair_of(workspace, path)
    if pair is None:
        raise UserError(
            f"{path}: the rows that it was decoded from are not in {workspace.root}; "
            f"{flag} names the labels by them"
        )
    if not is_baseline(next(read_samples(path))):
        return pair, label_names(workspace, pair)
    numbers = " ".join(f"{row['label']} {row['predict']}" for row in read_samples(path))
    return pair, named_labels(workspace, pair, sorted(set(numbers.split())))


def write_report(path: Path, workspace: Workspace, mistakes: int) -> dict[str, Any]:
    """Write ``<sample file>_confusion.png`` beside a classifier's sample file, a matrix a slot.
    Returns the rest of the report, with the first ``mistakes`` mistakes; nothing for a task of
    texts.

    Raises ``UserError`` when the rows that were decoded are not in the workspace.
    """
    pair, names = report_names(path, workspace, "--report")
    if pair.config.is_sequence:
        return {}
    report = class_report(path, names)
    picture = path.with_name(f"{path.stem}_confusion.png")
    with holding(picture):
        slots = {
            title: answers(path, names, slice(at, at + 1))
            for at, title in enumerate(report["slots"])
        }
        draw_confusion(
            slots or {"": answers(path, names)}, f"{pair.task}, {pair.unit_model}", picture
        )
    return report | {"mistakes": report["mistakes"][:mistakes], "confusion": str(picture)}


def print_report(report: dict[str, Any]) -> None:
    """Print what ``write_report`` returned."""
    if not report:
        return
    classes, more = report["classes"][:MOST_CLASSES], report["classes"][MOST_CLASSES:]
    width = max(len("class"), *(len(score["name"]) for score in classes))
    print(f"\n  {'class':<{width}}  utterances  errors  precision  recall      F1")
    for score in classes:
        print(
            f"  {score['name']:<{width}}  {score['utterances']:>10,}  {score['errors']:>6,}  "
            f"{score['precision']:>8.2f}% {score['recall']:>7.2f}% {score['f1']:>7.2f}%"
        )
    if more:
        utterances, errors = (sum(score[key] for score in more) for key in ("utterances", "errors"))
        print(
            f"  and {len(more):,} more classes: {utterances:,} utterances, {errors:,} errors "
            "(--json lists them)"
        )
    if report["mistakes"]:
        print("\n  the most confident mistakes: probability, file, spoken -> answered")
    for mistake in report["mistakes"]:
        file = one_line(mistake["file_name"])
        print(f"  {mistake['probability']:.3f}  {file}  {mistake['label']} -> {mistake['predict']}")
    print(f"\n  confusion matrix: {report['confusion']}")
