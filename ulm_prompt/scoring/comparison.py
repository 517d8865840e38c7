"""What a classifier's score is read beside: simpler answers, and the run's own train and valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import read_json, sha256
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.prompt_record import BEST, PromptRecord, read_record
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.scoring.detection import rarer
from ulm_prompt.scoring.sample_file import made_from, read_samples
from ulm_prompt.scoring.scores import is_baseline, named_labels, train_curve

MOST_FREQUENT = "train's most frequent label"


def comparison(path: Path, workspace: Workspace) -> dict[str, Any]:
    """What to read the score of the sample file ``path`` beside, in %.

    without_a_prompt: what simpler answers to the same rows reach. run: the accuracy of the same
    checkpoint on train and valid. slots: accuracy. most_frequent: that of always giving the slot's
    most frequent label of train. target: of detection, between two classes. Each as far as it is
    known: nothing for texts, or without the rows that were decoded.
    """
    pair = pair_of(workspace, path)
    samples = list(read_samples(path))
    labels = [sample["label"] for sample in samples]
    rows = labels_of(workspace, pair, "train", "test") if pair is not None else None
    if rows is None or len(rows[1]) != len(labels):
        return {}
    train, test = rows
    without = {MOST_FREQUENT: most_frequent(train, test)} | ngrams(workspace, pair)
    columns = zip(*(zip(*(row.split() for row in rows)) for rows in (train, test)))
    named = named_labels(workspace, pair, set(" ".join(test).split()))
    titles = slot_titles([named[number].slot for number in test[0].split()])
    target = None
    if len(set(labels)) == 2 and not titles:
        target = named[test[labels.index(rarer(labels))]].name
    run = {} if is_baseline(samples[0]) else own_splits(path, workspace, pair)
    return {
        "without_a_prompt": without,
        "run": run,
        "slots": slot_accuracies(samples, titles),
        "target": target,
        "most_frequent": {slot: most_frequent(*both) for slot, both in zip(titles, columns)},
    }


def labels_of(workspace: Workspace, pair: Pair, *splits: str) -> list[list[str]] | None:
    """The labels of each row of the ``splits``. None for texts, or where a split is missing."""
    data = pair.config.downstream, pair.unit_model
    files = [workspace.rows(*data, split) for split in splits]
    if pair.config.is_sequence or not all(file.is_file() for file in files):
        return None
    return [[row.labels for row in read_rows(file)] for file in files]


def most_frequent(train: Sequence[str], test: Sequence[str]) -> float:
    """The share of ``test``, in %, that is the most frequent of ``train``."""
    ((label, _),) = Counter(train).most_common(1)
    return 100 * sum(other == label for other in test) / len(test)


def slot_titles(slots: Sequence[str]) -> list[str]:
    """The slots of a row's labels, each by another name; none of a single label."""
    titles = [f"{slot} {n}" if slot in slots[: n - 1] else slot for n, slot in enumerate(slots, 1)]
    return titles if len(titles) > 1 else []


def slot_accuracies(samples: Sequence[dict[str, Any]], titles: Sequence[str]) -> dict[str, float]:
    """Slot -> the share of a sample file's rows, in %, with the right label there."""
    rows = [(sample["label"].split(), sample["predict"].split()) for sample in samples]
    shares = {}
    for at, title in enumerate(titles):
        right = sum(answer[at : at + 1] == label[at : at + 1] for label, answer in rows)
        shares[title] = 100 * right / len(rows)
    return shares


def ngrams(workspace: Workspace, pair: Pair) -> dict[str, float]:
    """The accuracy of baselines/unit_ngrams.py, where it was trained and scored on these rows."""
    data = pair.config.downstream, pair.unit_model
    paths = {split: workspace.rows(*data, split) for split in SPLITS}
    rows = {split: sha256(path) for split, path in paths.items() if path.is_file()}
    pattern = f"checkpoints/{pair.task}_{pair.unit_model}_ngrams_*/ngrams.json"
    accuracies = {}
    for path in sorted(workspace.root.glob(pattern)):
        card = read_json(path, "baselines/unit_ngrams.py")
        if card.get("rows") == rows:
            accuracies["unit n-grams, linear"] = card["test"]["accuracy"]
    return accuracies


def own_splits(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """The accuracy on train and valid of the checkpoint that gave the answers in ``path``."""
    if (trained := trained_run(path, workspace, pair)) is None:
        return {}
    record, log = trained
    curve, accuracies = train_curve(log) if log.is_file() else {}, {}
    if curve:
        nearest = min(curve, key=lambda update: abs(update - record.run.updates))
        accuracies["train"] = curve[nearest]["accuracy"]
    if "accuracy" in record.valid:
        accuracies["valid"] = record.valid["accuracy"]
    return accuracies


def trained_run(path: Path, workspace: Workspace, pair: Pair) -> tuple[PromptRecord, Path] | None:
    """The record and the log of the checkpoint that gave the answers in ``path``, if it is known.
    The log may be missing.
    """
    date = path.stem.removeprefix(f"samples_{pair.task}_{pair.unit_model}_")
    run = pair.task, pair.unit_model, date
    best = workspace.checkpoints(*run) / BEST
    if not best.is_file() or made_from(path).get("prompt") != sha256(best):
        return None
    record = read_record(best.parent)
    if record is None or record.run is None:
        return None
    return record, workspace.logs(*run) / "train.log"


def comparison_lines(compared: Mapping[str, Any]) -> list[str]:
    """What ``comparison`` returned in words, the slots apart."""
    without = compared.get("without_a_prompt", {})
    lines = [f"without a prompt: {name}, {accuracy:.2f} %" for name, accuracy in without.items()]
    given = {"train": "train (mean of its epoch, with training's noise)", "valid": "valid"}
    if run := compared.get("run"):
        splits = ", ".join(f"{value:.2f} % on {given[split]}" for split, value in run.items())
        lines.append(f"the same prompt, labels before it given: {splits}")
    return lines


def print_comparison(compared: dict[str, Any]) -> None:
    """Print what ``comparison`` returned."""
    if not compared:
        return
    for line in comparison_lines(compared):
        print(f"  {line}")
    if compared["slots"]:
        width = max(len("slot"), *map(len, compared["slots"]))
        print(f"\n  {'slot':<{width}}  accuracy  {MOST_FREQUENT}")
    for slot, accuracy in compared["slots"].items():
        print(f"  {slot:<{width}}  {accuracy:>7.2f}%  {compared['most_frequent'][slot]:>7.2f}%")
