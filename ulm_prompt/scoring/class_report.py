"""What a classifier's score is read beside: every slot, the worst classes, the confident mistakes,
simpler answers, and the run's own train and valid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, one_line
from pipeline.files import holding, read_json, sha256
from pipeline.rows import read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.label_names import Label, named_labels, text_of
from ulm_prompt.prompt_data.prompt_record import BEST, PromptRecord, read_record
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.prompt_data.verbal import label_names, row_hashes
from ulm_prompt.scoring.sample_file import BOS, Sample, made_from, read_samples, within_path
from ulm_prompt.scoring.scores import class_scores, curves_of, rarer

MOST_CLASSES = 30  # that are printed
MOST_NAMED = 40  # classes of a confusion matrix; a larger one has no names, or on a page no others
MOST_FREQUENT = "train's most frequent label"
OTHER = "(other)"  # an answer that is no class of the test split
ALL = slice(None)  # slots of an utterance


@dataclass(frozen=True)
class Named:
    """A sample file in the names of its labels.

    ``rows``: of each utterance file, units, spoken and answer (names; a text is one of them), right
    and is_mistake; and of the answer within the label set within, its probability, and the shares
    of its labels in it. ``slots``: what each of a row's several labels is.
    """

    rows: list[dict[str, Any]]
    slots: list[str]

    def answers(self, at: slice = ALL) -> tuple[list[str], list[str], list[str]]:
        """The class of each row, its answer or ``OTHER``, and all classes; of the slots ``at``."""
        spoken, answered = (
            [", ".join(row[key][at]) for row in self.rows] for key in ("spoken", "answer")
        )
        classes = set(spoken)
        return spoken, [name if name in classes else OTHER for name in answered], sorted(classes)


def in_names(path: Path, names: Mapping[str, Label], is_text: bool = False) -> Named:
    """Read a sample file and, where it has probabilities, the one within the label set. Raises
    ``UserError`` where one is malformed.
    """

    def told(units: str) -> list[str]:
        labels = [names[unit].name if unit in names else "?" for unit in units.split()]
        return [text_of(labels)] if is_text else labels

    samples, twin, rows = read_samples(path), within_path(path), []
    for sample in samples:
        rows.append({
            "file": str(sample.get("file_name", "")),
            "units": str(sample.get("src", "")).removesuffix(f" {BOS}"),
            "spoken": told(sample["label"]), "answer": told(sample["predict"]),
            "right": sample["label"] == sample["predict"], "is_mistake": False, "probability": 0.0,
        })  # fmt: skip
    has_scores = twin.exists() and not _is_baseline(samples)
    for row, sample in zip(rows, read_samples(twin) if has_scores else ()):
        row["is_mistake"] = sample["label"] != sample["predict"]
        row["within"] = told(sample["predict"])
        try:
            row["shares"] = [math.exp(share) for share in sample.get("label_scores") or ()]
            if sample["score"] is not None:  # the row was not too long
                row["probability"] = math.exp(sample["score"])
        except (KeyError, TypeError, OverflowError):
            raise UserError(f"{twin}: an answer without score; run sample.py again") from None
    first = () if is_text else samples[0]["label"].split()
    slots = (names[unit].slot if unit in names else "label" for unit in first)
    return Named(rows, slot_titles(slots))


def _is_baseline(samples: Sequence[Sample]) -> bool:
    """Whether a baseline wrote them: it answers with label numbers, from no units."""
    return samples[0].get("src") == ""


def slot_titles(slots: Iterable[str]) -> list[str]:
    """The slots of a row's labels, each by another name; none of a single label."""
    titles: list[str] = []
    for number, slot in enumerate(slots, start=1):
        titles.append(f"{slot} {number}" if slot in titles else slot)
    return titles if len(titles) > 1 else []


def class_report(named: Named) -> dict[str, Any]:
    """classes: as ``class_scores``, those with the most errors first. mistakes within the label
    set: file_name, label, predict and the answer's probability, the most confident first.
    """
    spoken, answered, _ = named.answers()
    mistakes = [
        {
            "file_name": row["file"],
            "label": ", ".join(row["spoken"]),
            "predict": ", ".join(row["within"]),
            "probability": row["probability"],
        }
        for row in named.rows
        if row["is_mistake"]
    ]
    return {
        "classes": sorted(class_scores(spoken, answered), key=lambda score: -score["errors"]),
        "mistakes": sorted(mistakes, key=lambda mistake: -mistake["probability"]),
    }


def read_named(path: Path, workspace: Workspace, flag: str) -> tuple[Pair, Named]:
    """A sample file's task, and the file in names. Raises ``UserError``, which names ``flag``, when
    the rows that were decoded are not in the workspace.
    """
    pair = pair_of(workspace, path)
    if pair is None:
        raise UserError(f"{path}: the rows that {flag} names labels by are not in {workspace.root}")
    samples = read_samples(path)
    if _is_baseline(samples):
        numbers = {n for row in samples for n in f"{row['label']} {row['predict']}".split()}
        names = named_labels(workspace, pair, sorted(numbers))
    else:
        names = label_names(workspace, pair)
    return pair, in_names(path, names, pair.config.is_sequence)


def write_report(path: Path, workspace: Workspace, mistakes: int) -> dict[str, Any]:
    """Write ``<sample file>_confusion.png`` beside a classifier's sample file, a matrix a slot.
    Returns ``class_report`` with the first ``mistakes`` mistakes; nothing for texts. Raises
    ``UserError`` as ``read_named``.
    """
    from ulm_prompt.scoring.pictures import draw_confusion  # matplotlib takes half a second

    pair, named = read_named(path, workspace, "--report")
    if pair.config.is_sequence:
        return {}
    report = class_report(named)
    picture = path.with_name(f"{path.stem}_confusion.png")
    slots = {slot: slice(at, at + 1) for at, slot in enumerate(named.slots)} or {"": ALL}
    with holding(picture):
        answers = {slot: named.answers(at) for slot, at in slots.items()}
        draw_confusion(answers, f"{pair.task}, {pair.unit_model}", picture)
    return report | {"mistakes": report["mistakes"][:mistakes], "confusion": str(picture)}


def print_report(report: dict[str, Any]) -> None:
    """Print what ``write_report`` returned."""
    classes, more = report["classes"][:MOST_CLASSES], report["classes"][MOST_CLASSES:]
    width = max(len("class"), *(len(score["name"]) for score in classes))
    print(f"\n  {'class':<{width}}  utterances  errors  precision  recall      F1")
    for score in classes:
        print(
            f"  {score['name']:<{width}}  {score['utterances']:>10,}  {score['errors']:>6,}  "
            f"{score['precision']:>8.2f}% {score['recall']:>7.2f}% {score['f1']:>7.2f}%"
        )
    if more:
        counts = len(more), *(sum(score[key] for score in more) for key in ("utterances", "errors"))
        text = "  and {:,} more classes: {:,} utterances, {:,} errors (--json lists them)"
        print(text.format(*counts))
    if report["mistakes"]:
        print("\n  the most confident mistakes: probability, file, spoken -> answered")
    for mistake in report["mistakes"]:
        file = one_line(mistake["file_name"])
        print(f"  {mistake['probability']:.3f}  {file}  {mistake['label']} -> {mistake['predict']}")
    print(f"\n  confusion matrix: {report['confusion']}")


def comparison(path: Path, workspace: Workspace) -> dict[str, Any]:
    """What to read the score of the sample file ``path`` beside, in %, as far as it is known:
    nothing for texts, or without the rows that were decoded.

    without_a_prompt: what simpler answers to the same rows reach. run: the accuracy of the same
    checkpoint on train and valid. slots: accuracy. most_frequent: that of always giving the slot's
    most frequent label of train. target: of detection, between two classes.
    """
    pair, samples = pair_of(workspace, path), read_samples(path)
    rows = labels_of(workspace, pair, "train", "test") if pair is not None else None
    if rows is None or len(rows[1]) != len(samples):
        return {}
    train, test = rows
    columns = zip(*(zip(*(row.split() for row in rows)) for rows in (train, test)))
    named = named_labels(workspace, pair, set(" ".join(test).split()))
    titles = slot_titles(named[number].slot for number in test[0].split())
    labels, target = [sample["label"] for sample in samples], None
    if len(set(labels)) == 2 and not titles:
        target = named[test[labels.index(rarer(labels))]].name

    def accuracy(slot: slice) -> float:
        both = ((row[key].split()[slot] for key in ("label", "predict")) for row in samples)
        return 100 * sum(label == answer for label, answer in both) / len(samples)

    return {
        "without_a_prompt": {MOST_FREQUENT: most_frequent(train, test)} | _ngrams(workspace, pair),
        "run": _own_splits(path, workspace, pair),
        "slots": {slot: accuracy(slice(at, at + 1)) for at, slot in enumerate(titles)},
        "target": target,
        "most_frequent": {slot: most_frequent(*both) for slot, both in zip(titles, columns)},
    }


def labels_of(workspace: Workspace, pair: Pair, *splits: str) -> list[list[str]] | None:
    """The labels of each row of the ``splits``. None for texts, or where a split is missing."""
    files = [workspace.rows(pair.config.downstream, pair.unit_model, split) for split in splits]
    if pair.config.is_sequence or not all(file.is_file() for file in files):
        return None
    return [[row.labels for row in read_rows(file)] for file in files]


def most_frequent(train: Sequence[str], test: Sequence[str]) -> float:
    """The share of ``test``, in %, that is the most frequent of ``train``."""
    ((label, _),) = Counter(train).most_common(1)
    return 100 * sum(other == label for other in test) / len(test)


def _ngrams(workspace: Workspace, pair: Pair) -> dict[str, float]:
    """The accuracy of baselines/unit_ngrams.py, where it was trained and scored on these rows."""
    rows, name = row_hashes(workspace, pair), f"{pair.task}_{pair.unit_model}_ngrams_*"
    cards = sorted((workspace.root / "checkpoints").glob(f"{name}/ngrams.json"))
    read = (read_json(path, "baselines/unit_ngrams.py") for path in cards)
    accuracies = [card["test"]["accuracy"] for card in read if card.get("rows") == rows]
    return {"unit n-grams, linear": accuracies[-1]} if accuracies else {}


def _own_splits(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """The accuracy on train and valid of the checkpoint that gave the answers in ``path``."""
    record, curves = trained_run(path, workspace, pair)
    accuracies = {}
    if curve := curves.get("train"):
        nearest = min(curve, key=lambda update: abs(update - record.run.updates))
        accuracies["train"] = curve[nearest]["accuracy"]
    if record is not None and "accuracy" in record.valid:
        accuracies["valid"] = record.valid["accuracy"]
    return accuracies


def trained_run(
    path: Path, workspace: Workspace, pair: Pair
) -> tuple[PromptRecord | None, dict[str, Any]]:
    """The record of the checkpoint that gave the answers in ``path``, and its run's curves."""
    names = pair.task, pair.unit_model
    run = *names, path.stem.removeprefix(f"samples_{'_'.join(names)}_")
    best = workspace.checkpoints(*run) / BEST
    is_of_it = best.is_file() and made_from(path).get("prompt") == sha256(best)
    record = read_record(best.parent) if is_of_it else None
    if record is None or record.run is None:
        return None, {}
    return record, curves_of(workspace.logs(*run) / "train.log")


def comparison_lines(compared: Mapping[str, Any]) -> list[str]:
    """What ``comparison`` returned in words, the slots apart."""
    without = compared.get("without_a_prompt", {})
    lines = [f"without a prompt: {name}, {accuracy:.2f} %" for name, accuracy in without.items()]
    noise = {"train": " (mean of its epoch, with training's noise)"}
    run = compared.get("run", {}).items()
    if shares := [f"{share:.2f} % on {split}{noise.get(split, '')}" for split, share in run]:
        lines.append(f"the same prompt, labels before it given: {', '.join(shares)}")
    return lines


def print_comparison(compared: Mapping[str, Any]) -> None:
    """Print what ``comparison`` returned."""
    for line in comparison_lines(compared):
        print(f"  {line}")
    if by_guess := compared.get("most_frequent"):
        width = max(len("slot"), *map(len, by_guess))
        print(f"\n  {'slot':<{width}}  accuracy  {MOST_FREQUENT}")
        for slot, share in by_guess.items():
            print(f"  {slot:<{width}}  {compared['slots'][slot]:>7.2f}%  {share:>7.2f}%")
