"""Where a classifier goes wrong: each class, each slot, the confident mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError, one_line
from pipeline.files import holding, read_json, replacing, sha256
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.scoring.sample_file import WITHIN, read_samples
from ulm_prompt.scoring.scores import OTHER, Label, is_baseline, names_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ClassScore:
    """One class, scores in %. ``utterances`` of it are in the test split."""

    name: str
    utterances: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mistake:
    """A wrong answer within the label set, with the probability that the LM gave it."""

    file_name: str
    label: str
    predict: str
    probability: float


@dataclass(frozen=True)
class ClassReport:
    """``slots``: slot -> accuracy in %, where a row has several labels. ``mistakes``: the most
    confident first.
    """

    classes: list[ClassScore]
    slots: dict[str, float]
    mistakes: list[Mistake]


def called(units: str, names: Mapping[str, Label]) -> str:
    """``71 12 57`` -> ``activate, lamp, kitchen``; ? for a unit that is no label."""
    return ", ".join(names[unit].name if unit in names else "?" for unit in units.split())


def answers(path: Path, names: Mapping[str, Label]) -> tuple[list[str], list[str], list[str]]:
    """The class of each row of a sample file, its answer or ``OTHER``, and all classes."""
    rows = list(read_samples(path))
    spoken = [called(row["label"], names) for row in rows]
    classes = sorted(set(spoken))
    answered = [called(row["predict"], names) for row in rows]
    return spoken, [name if name in classes else OTHER for name in answered], classes


def class_report(path: Path, names: Mapping[str, Label]) -> ClassReport:
    """Report on the free answers in ``path``, and on its twin's mistakes; a baseline's have no
    probability and are not listed.

    Raises ``UserError`` for a missing or malformed file.
    """
    from sklearn.metrics import precision_recall_fscore_support

    spoken, answered, classes = answers(path, names)
    by_class = precision_recall_fscore_support(spoken, answered, labels=classes, zero_division=0)
    scores = [
        ClassScore(name, int(count), 100 * precision, 100 * recall, 100 * f1)
        for name, precision, recall, f1, count in zip(classes, *by_class)
    ]
    mistakes = [] if is_baseline(path) else _mistakes(path, names)
    return ClassReport(scores, _slots(path, names), mistakes)


def _slots(path: Path, names: Mapping[str, Label]) -> dict[str, float]:
    """The share of rows whose answer has the right label at each place; none for a single label."""
    rows = [(row["label"].split(), row["predict"].split()) for row in read_samples(path)]
    places = len(rows[0][0])
    if places < 2:
        return {}
    found = {}
    for place in range(places):
        unit = rows[0][0][place]
        slot = names[unit].kind if unit in names else "label"
        right = sum(answer[place : place + 1] == label[place : place + 1] for label, answer in rows)
        found[slot if slot not in found else f"{slot} {place + 1}"] = 100 * right / len(rows)
    return found


def _mistakes(path: Path, names: Mapping[str, Label]) -> list[Mistake]:
    twin = path.with_stem(path.stem + WITHIN)
    if not twin.exists():  # the published code wrote none: no probabilities
        return []
    wrong = [row for row in read_samples(twin) if row["label"] != row["predict"]]
    try:
        found = [
            Mistake(
                row["file_name"],
                called(row["label"], names),
                called(row["predict"], names),
                0.0 if row["score"] is None else math.exp(row["score"]),
            )
            for row in wrong
        ]
    except (KeyError, TypeError, OverflowError):
        raise UserError(
            f"{twin}: expected id -> file_name, label, predict, score; run sample.py again"
        ) from None
    return sorted(found, key=lambda mistake: -mistake.probability)


def write_report(path: Path, workspace: Workspace, mistakes: int) -> dict[str, Any]:
    """Leave ``<sample file>_confusion.png`` beside a classifier's sample file, and return what else
    there is to say, the first ``mistakes`` mistakes among it. Empty for a task of texts.

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

    names = names_in(path, workspace, pair)
    report = class_report(path, names)
    picture = path.with_name(f"{path.stem}_confusion.png")
    with holding(picture):
        draw_confusion(*answers(path, names), f"{pair.task}, {pair.unit_model}", picture)
    shortened = dataclasses.replace(report, mistakes=report.mistakes[:mistakes])
    beside = {"without_a_prompt": without_a_prompt(path, workspace, pair)}
    return {**dataclasses.asdict(shortened), **beside, "confusion": str(picture)}


def without_a_prompt(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """What simpler answers to the same rows reach, in %: the most frequent label for all, and the
    linear classifier on unit n-grams where it was trained on these rows.
    """
    labels = Counter(row["label"] for row in read_samples(path))
    found = {"the most frequent label": 100 * max(labels.values()) / labels.total()}
    rows = workspace.rows(pair.config.downstream, pair.unit_model, "test")
    pattern = f"{pair.task}_{pair.unit_model}_ngrams_*/ngrams.json"  # of baselines/unit_ngrams.py
    cards = sorted(workspace.root.glob(f"checkpoints/{pattern}"), key=lambda p: p.stat().st_mtime)
    for card in cards if rows.is_file() else ():
        said = read_json(card, "baselines/unit_ngrams.py")
        if said.get("rows", {}).get("test") == sha256(rows):
            found["unit n-grams, linear"] = said["test"]["accuracy"]
    return found


def print_report(report: dict[str, Any]) -> None:
    """For people, what ``write_report`` returned."""
    if not report:
        return
    for slot, accuracy in report["slots"].items():
        print(f"  accuracy of {slot:<12}{accuracy:.2f} %")
    for name, accuracy in report["without_a_prompt"].items():
        print(f"  without a prompt: {name}, {accuracy:.2f} %")
    width = max(len(one["name"]) for one in report["classes"])
    print(f"\n  {'class':<{width}}  utterances  precision  recall      F1")
    for one in report["classes"]:
        print(
            f"  {one['name']:<{width}}  {one['utterances']:>10,}  {one['precision']:>8.2f}% "
            f"{one['recall']:>7.2f}% {one['f1']:>7.2f}%"
        )
    if report["mistakes"]:
        print("\n  the most confident mistakes: probability, file, spoken -> answered")
    for one in report["mistakes"]:
        file = one_line(one["file_name"])
        print(f"  {one['probability']:.3f}  {file}  {one['label']} -> {one['predict']}")
    print(f"\n  confusion matrix: {report['confusion']}")


# A confusion matrix as a picture.


MOST_NAMED = 40  # classes beyond which the axes stay bare
MOST_COUNTED = 15  # classes beyond which the squares hold no numbers


def draw_confusion(
    spoken: Sequence[str], answered: Sequence[str], classes: Sequence[str], title: str, path: Path
) -> None:
    """Write a PNG with the matrix alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = 4 + 0.28 * min(len(classes), MOST_NAMED)
    figure, axis = plt.subplots(figsize=(side + 2, side), layout="constrained")
    confusion_on(axis, spoken, answered, classes, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def confusion_on(
    axis: Axes, spoken: Sequence[str], answered: Sequence[str], classes: Sequence[str], title: str
) -> None:
    """Draw rows of what was spoken and columns of what was answered; the last is ``OTHER``."""
    columns = [*classes, OTHER]
    index = {name: place for place, name in enumerate(columns)}
    counts = np.zeros((len(classes), len(columns)))
    for label, answer in zip(spoken, answered, strict=True):
        counts[index[label], index[answer]] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    right = 100 * np.trace(counts) / counts.sum()
    axis.set(title=f"{title}: {right:.1f} % of {len(spoken):,} test utterances")
    axis.set(xlabel="answered", ylabel="spoken")
    size = 9 if len(classes) <= MOST_COUNTED else 6
    if len(classes) <= MOST_NAMED:
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axis.set_yticks(range(len(classes)), classes, fontsize=size)
    if len(classes) <= MOST_COUNTED:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            axis.text(column, row, f"{counts[row, column]:.0f}", **text)
    axis.figure.colorbar(image, ax=axis, label="share of the class", shrink=0.6)
