"""Where a classifier goes wrong: every class, every slot, the confident mistakes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, one_line
from pipeline.files import holding, read_json, sha256
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.scoring.pictures import OTHER, draw_confusion
from ulm_prompt.scoring.sample_file import read_samples, within_path
from ulm_prompt.scoring.scores import Label, is_baseline, label_names, named_labels


def label_text(units: str, names: Mapping[str, Label]) -> str:
    """``71 12 57`` -> ``activate, lamp, kitchen``; ? for a unit that is no label."""
    return ", ".join(names[unit].name if unit in names else "?" for unit in units.split())


def answers(path: Path, names: Mapping[str, Label]) -> tuple[list[str], list[str], list[str]]:
    """The class of each row of a sample file, its answer or ``OTHER``, and all classes."""
    rows = list(read_samples(path))
    spoken = [label_text(row["label"], names) for row in rows]
    classes = sorted(set(spoken))
    answered = [label_text(row["predict"], names) for row in rows]
    return spoken, [name if name in classes else OTHER for name in answered], classes


def class_report(path: Path, names: Mapping[str, Label]) -> dict[str, Any]:
    """Report on the free answers in ``path``, and on the mistakes within the label set.

    classes: name, utterances, and precision, recall, f1 in %. slots: slot -> accuracy in %, where a
    row has several labels. mistakes: file_name, label, predict and the probability that the LM gave
    the answer, the most confident first; none of a baseline. Raises ``UserError`` for a missing or
    malformed file.
    """
    spoken, answered, classes = answers(path, names)
    times_spoken, times_answered = Counter(spoken), Counter(answered)
    times_right = Counter(label for label, answer in zip(spoken, answered) if label == answer)
    scores = []
    for name in classes:
        count, given, right = times_spoken[name], times_answered[name], 100 * times_right[name]
        shares = {"precision": right / max(1, given), "recall": right / count}
        f1 = 2 * right / (count + given)
        scores.append({"name": name, "utterances": count, **shares, "f1": f1})
    mistakes = [] if is_baseline(path) else _mistakes(path, names)
    return {"classes": scores, "slots": _slots(path, names), "mistakes": mistakes}


def _slots(path: Path, names: Mapping[str, Label]) -> dict[str, float]:
    """Slot -> the share of rows, in %, with the right label there; none for a single label."""
    rows = [(row["label"].split(), row["predict"].split()) for row in read_samples(path)]
    first_label = rows[0][0]
    shares: dict[str, float] = {}
    for index, unit in enumerate(first_label if len(first_label) > 1 else ()):
        slot = names[unit].slot if unit in names else "label"
        name = slot if slot not in shares else f"{slot} {index + 1}"
        right = sum(answer[index : index + 1] == label[index : index + 1] for label, answer in rows)
        shares[name] = 100 * right / len(rows)
    return shares


def _mistakes(path: Path, names: Mapping[str, Label]) -> list[dict[str, Any]]:
    twin = within_path(path)
    if not twin.exists():  # the published code wrote none: no probabilities
        return []
    mistakes = []
    for row in read_samples(twin):
        if row["label"] == row["predict"]:
            continue
        try:
            file, score = row["file_name"], row["score"]
            probability = 0.0 if score is None else math.exp(score)
        except (KeyError, TypeError, OverflowError):
            raise UserError(
                f"{twin}: expected id -> file_name, label, predict, score; run sample.py again"
            ) from None
        texts = {key: label_text(row[key], names) for key in ("label", "predict")}
        mistakes.append({"file_name": file, **texts, "probability": probability})
    return sorted(mistakes, key=lambda mistake: -mistake["probability"])


def write_report(path: Path, workspace: Workspace, mistakes: int) -> dict[str, Any]:
    """Write ``<sample file>_confusion.png`` beside a classifier's sample file. Returns the rest of
    the report, with the first ``mistakes`` mistakes; nothing for a task of texts.

    Raises ``UserError`` when the rows that were decoded are not in the workspace.
    """
    pair = pair_of(workspace, path)
    if pair is None:
        raise UserError(
            f"{path}: the rows that it was decoded from are not in {workspace.root}; "
            "--report names the labels by them"
        )
    if pair.config.is_sequence:
        return {}
    if is_baseline(path):
        numbers = " ".join(f"{row['label']} {row['predict']}" for row in read_samples(path))
        names = named_labels(workspace, pair, sorted(set(numbers.split())))
    else:
        names = label_names(workspace, pair)
    report = class_report(path, names)
    picture = path.with_name(f"{path.stem}_confusion.png")
    with holding(picture):
        draw_confusion(*answers(path, names), f"{pair.task}, {pair.unit_model}", picture)
    return report | {
        "mistakes": report["mistakes"][:mistakes],
        "without_a_prompt": without_a_prompt(path, workspace, pair),
        "confusion": str(picture),
    }


def without_a_prompt(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """What simpler answers to the same rows reach, in %: the most frequent label for all, and the
    linear classifier on unit n-grams where it was trained on these rows.
    """
    labels = Counter(row["label"] for row in read_samples(path))
    accuracies = {"the most frequent label": 100 * max(labels.values()) / labels.total()}
    rows = workspace.rows(pair.config.downstream, pair.unit_model, "test")
    pattern = f"{pair.task}_{pair.unit_model}_ngrams_*/ngrams.json"  # of baselines/unit_ngrams.py
    cards = sorted(workspace.root.glob(f"checkpoints/{pattern}"), key=lambda p: p.stat().st_mtime)
    for path_of_card in cards if rows.is_file() else ():
        card = read_json(path_of_card, "baselines/unit_ngrams.py")
        if card.get("rows", {}).get("test") == sha256(rows):
            accuracies["unit n-grams, linear"] = card["test"]["accuracy"]
    return accuracies


def print_report(report: dict[str, Any]) -> None:
    """Print what ``write_report`` returned."""
    if not report:
        return
    for slot, accuracy in report["slots"].items():
        print(f"  accuracy of {slot:<12}{accuracy:.2f} %")
    for name, accuracy in report["without_a_prompt"].items():
        print(f"  without a prompt: {name}, {accuracy:.2f} %")
    width = max(len(score["name"]) for score in report["classes"])
    print(f"\n  {'class':<{width}}  utterances  precision  recall      F1")
    for score in report["classes"]:
        print(
            f"  {score['name']:<{width}}  {score['utterances']:>10,}  {score['precision']:>8.2f}% "
            f"{score['recall']:>7.2f}% {score['f1']:>7.2f}%"
        )
    if report["mistakes"]:
        print("\n  the most confident mistakes: probability, file, spoken -> answered")
    for mistake in report["mistakes"]:
        file = one_line(mistake["file_name"])
        print(f"  {mistake['probability']:.3f}  {file}  {mistake['label']} -> {mistake['predict']}")
    print(f"\n  confusion matrix: {report['confusion']}")
