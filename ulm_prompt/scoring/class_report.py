"""Reports on a classifier's answers: the accuracy of each slot, the worst classes, the most
confident mistakes, the accuracy of simpler answers, and the run's accuracy on train and valid.
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
from ulm_prompt.scoring.sample_file import BOS, Sample, origin_of, read_samples, within_path
from ulm_prompt.scoring.scores import class_scores, curves_of, rarer

MOST_CLASSES = 30  # the most classes that are printed
MOST_NAMED = 40  # with more classes, a picture has no class names; a page shows only so many
MOST_FREQUENT = "train's most frequent label"
OTHER = "(other)"  # replaces an answer that is not a class of the test split
ALL = slice(None)  # all slots of an utterance


@dataclass(frozen=True)
class Named:
    """A sample file with names in place of label units.

    ``rows``: the file, units, spoken and answer (lists of names; a text is one name) and right of
    each utterance. is_mistake, within (the answer), probability and shares (of each label) describe
    the answer within the label set. ``slots``: the slot titles if rows have several labels.
    """

    rows: list[dict[str, Any]]
    slots: list[str]

    def answers(self, slots: slice = ALL) -> tuple[list[str], list[str], list[str]]:
        """Return the class of each row, its answer or ``OTHER``, and all classes, in ``slots``."""
        spoken, answered = (
            [", ".join(row[key][slots]) for row in self.rows] for key in ("spoken", "answer")
        )
        classes = set(spoken)
        return spoken, [name if name in classes else OTHER for name in answered], sorted(classes)


def in_names(path: Path, names: Mapping[str, Label], is_text: bool = False) -> Named:
    """Read a sample file and, if it exists, the file with the answers within the label set.
    Raises ``UserError`` if a file is malformed.
    """

    def names_of(units: str) -> list[str]:
        labels = [names[unit].name if unit in names else "?" for unit in units.split()]
        return [text_of(labels)] if is_text else labels

    samples, within_file, rows = read_samples(path), within_path(path), []
    for sample in samples:
        rows.append({
            "file": str(sample.get("file_name", "")),
            "units": str(sample.get("src", "")).removesuffix(f" {BOS}"),
            "spoken": names_of(sample["label"]), "answer": names_of(sample["predict"]),
            "right": sample["label"] == sample["predict"], "is_mistake": False, "probability": 0.0,
        })  # fmt: skip
    has_scores = within_file.exists() and not _is_baseline(samples)
    for row, sample in zip(rows, read_samples(within_file) if has_scores else ()):
        row["is_mistake"] = sample["label"] != sample["predict"]
        row["within"] = names_of(sample["predict"])
        try:
            row["shares"] = [math.exp(share) for share in sample.get("label_scores") or ()]
            if sample["score"] is not None:  # the row was not too long
                row["probability"] = math.exp(sample["score"])
        except (KeyError, TypeError, OverflowError):
            raise UserError(f"{within_file}: an answer has no score; run sample.py again") from None
    first_labels = () if is_text else samples[0]["label"].split()
    slots = (names[unit].slot if unit in names else "label" for unit in first_labels)
    return Named(rows, slot_titles(slots))


def _is_baseline(samples: Sequence[Sample]) -> bool:
    """Return whether a baseline wrote ``samples``: label numbers as answers, and no units."""
    return samples[0].get("src") == ""


def slot_titles(slots: Iterable[str]) -> list[str]:
    """Return a different title for each slot of a row; an empty list for a single label."""
    titles: list[str] = []
    for number, slot in enumerate(slots, start=1):
        titles.append(f"{slot} {number}" if slot in titles else slot)
    return titles if len(titles) > 1 else []


def class_report(named: Named) -> dict[str, Any]:
    """Return classes: the ``class_scores``, most errors first; and mistakes within the label set:
    file_name, label, predict and the answer's probability, most confident first.
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
    """Return a sample file's task, and the file with label names (of the run's record, else of
    verbal.json). Raises ``UserError``, with ``flag``, if the decoded rows are missing.
    """
    pair = pair_of(workspace, path)
    if pair is None:
        raise UserError(f"{path}: {flag} needs the decoded rows; they are not in {workspace.root}")
    samples, (record, _) = read_samples(path), trained_run(path, workspace, pair)
    if _is_baseline(samples):
        numbers = {n for row in samples for n in f"{row['label']} {row['predict']}".split()}
        names = named_labels(workspace, pair, sorted(numbers))
    elif record and record.labels and record.labels.keys() == record.verbal.keys():
        names = {unit: Label(**record.labels[number]) for number, unit in record.verbal.items()}
    else:
        names = label_names(workspace, pair)
    return pair, in_names(path, names, pair.config.is_text)


def write_report(path: Path, workspace: Workspace, mistakes: int) -> dict[str, Any]:
    """Write ``<sample file>_confusion.png`` next to a classifier's sample file: a matrix per slot.
    Returns ``class_report`` with the first ``mistakes`` mistakes, or an empty dict for texts.
    Raises ``UserError`` as ``read_named``.
    """
    from ulm_prompt.scoring.pictures import draw_confusion  # matplotlib takes half a second

    pair, named = read_named(path, workspace, "--report")
    if pair.config.is_text:
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
    """Return figures to compare the score of the sample file ``path`` with, in %; an empty dict for
    texts, or if the workspace does not contain the decoded rows.

    without_a_prompt: the accuracy of simpler answers. run: the accuracy of the same checkpoint on
    train and valid. slots: the accuracy of each slot. most_frequent: the accuracy of always giving
    the slot's most frequent label of train. target: the label to detect, if there are two classes.
    """
    pair, samples = pair_of(workspace, path), read_samples(path)
    rows = labels_of(workspace, pair, "train", "test") if pair is not None else None
    if rows is None or len(rows[1]) != len(samples):
        return {}
    train, test = rows
    by_slot = zip(*(zip(*(row.split() for row in rows)) for rows in (train, test)))
    named = named_labels(workspace, pair, set(" ".join(test).split()))
    titles = slot_titles(named[number].slot for number in test[0].split())
    labels, target = [sample["label"] for sample in samples], None
    if len(set(labels)) == 2 and not titles:
        target = named[test[labels.index(rarer(labels))]].name

    def accuracy(slot: slice) -> float:
        pairs = ((row[key].split()[slot] for key in ("label", "predict")) for row in samples)
        return 100 * sum(label == answer for label, answer in pairs) / len(samples)

    return {
        "without_a_prompt": {MOST_FREQUENT: most_frequent(train, test)} | _ngrams(workspace, pair),
        "run": _train_and_valid(path, workspace, pair),
        "slots": {slot: accuracy(slice(at, at + 1)) for at, slot in enumerate(titles)},
        "target": target,
        "most_frequent": {slot: most_frequent(*splits) for slot, splits in zip(titles, by_slot)},
    }


def labels_of(workspace: Workspace, pair: Pair, *splits: str) -> list[list[str]] | None:
    """Return the labels of each row of each split. None for texts, or if a split is missing."""
    files = [workspace.rows(pair.config.downstream, pair.unit_model, split) for split in splits]
    if pair.config.is_text or not all(file.is_file() for file in files):
        return None
    return [[row.labels for row in read_rows(file)] for file in files]


def most_frequent(train: Sequence[str], test: Sequence[str]) -> float:
    """Return the share of ``test`` labels, in %, that equal the most frequent ``train`` label."""
    ((label, _),) = Counter(train).most_common(1)
    return 100 * sum(other == label for other in test) / len(test)


def _ngrams(workspace: Workspace, pair: Pair) -> dict[str, float]:
    """Return the accuracy of baselines/unit_ngrams.py if it was run on these rows."""
    rows, name = row_hashes(workspace, pair), f"{pair.task}_{pair.unit_model}_ngrams_*"
    records = sorted((workspace.root / "checkpoints").glob(f"{name}/ngrams.json"))
    runs = (read_json(path, "baselines/unit_ngrams.py") for path in records)
    accuracies = [run["test"]["accuracy"] for run in runs if run.get("rows") == rows]
    return {"unit n-grams, linear": accuracies[-1]} if accuracies else {}


def _train_and_valid(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """Return the train and valid accuracy of the checkpoint that gave the answers in ``path``."""
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
    """Return the record and curves of the run that answered ``path``, if unchanged since then."""
    names = pair.task, pair.unit_model
    run = *names, path.stem.removeprefix(f"samples_{'_'.join(names)}_")
    best = workspace.checkpoints(*run) / BEST
    is_unchanged = best.is_file() and origin_of(path).get("prompt") == sha256(best)
    record = read_record(best.parent) if is_unchanged else None
    if record is None or record.run is None:
        return None, {}
    return record, curves_of(workspace.logs(*run) / "train.log")


def comparison_lines(compared: Mapping[str, Any]) -> list[str]:
    """Return what ``comparison`` returned as text, without the slots."""
    without = compared.get("without_a_prompt", {})
    lines = [f"without a prompt: {name}, {accuracy:.2f} %" for name, accuracy in without.items()]
    noise = {"train": " (mean of one epoch, with the noise of training)"}
    run = compared.get("run", {}).items()
    if shares := [f"{share:.2f} % on {split}{noise.get(split, '')}" for split, share in run]:
        lines.append(f"the same prompt, given the correct previous labels: {', '.join(shares)}")
    return lines


def print_comparison(compared: Mapping[str, Any]) -> None:
    """Print what ``comparison`` returned."""
    for line in comparison_lines(compared):
        print(f"  {line}")
    if most_frequent_shares := compared.get("most_frequent"):
        width = max(len("slot"), *map(len, most_frequent_shares))
        print(f"\n  {'slot':<{width}}  accuracy  {MOST_FREQUENT}")
        for slot, share in most_frequent_shares.items():
            print(f"  {slot:<{width}}  {compared['slots'][slot]:>7.2f}%  {share:>7.2f}%")
