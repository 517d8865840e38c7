"""The scores of a sample file: labels right, or the words, characters and slots of texts; the
scores on valid and train that a training log holds.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import pair_of
from ulm_prompt.scoring.sample_file import WITHIN, Sample, read_samples, within_path

_CURVES = {  # the lines of a log: of a validation, of an epoch of training, of 100 updates
    "valid": re.compile(r"valid on 'valid' subset \| (?P<scores>.*)"),
    "epochs": re.compile(r"\| train \| epoch \d+ \| (?P<scores>.*)"),
    "updates": re.compile(r"\| train_inner \| (?P<scores>.*)"),
}
_SCORE = re.compile(r"(\w+)[ =](-?[\d.]+(?:e-?\d+)?)")
COUNTS = ("utterances", "too long to answer")
COST = "minimum detection cost"
P_TARGET = 0.05  # and a miss costs as much as a false alarm
ABOUT_DETECTION = (
    "EER and cost: by the probability within the label set; C_miss=1, C_fa=1, "
    f"P_target={P_TARGET}, in parts of what never accepting costs; target: the rarer label"
)
OF_CLASSES = {"accuracy_within_labels": "accuracy within labels", "macro_f1": "macro F1",
              "eer": "EER", "detection_cost": COST, "invalid": "invalid answers"}  # fmt: skip
# shares of the utterances: each has an interval
SHARES = ("accuracy", "accuracy within labels", "invalid answers", "all right",
          "all right within labels")  # fmt: skip


def score(path: Path) -> dict[str, float]:
    """The scores of classes in a sample file, in % but for the detection cost; some need the one
    decoded within the label set, which the published code did not write.

    invalid: answers that are no label sequence of the task at all. macro_f1: the mean over the
    file's labels. eer: of two classes. Raises ``UserError`` for a missing or malformed file.
    """
    rows, twin = read_samples(path), within_path(path)
    within = read_samples(twin) if twin.exists() else []
    if within and len(within) != len(rows):
        raise UserError(f"{twin}: {len(within)} of {len(rows)} utterances; run sample.py again")
    labels, answers = ([row[key] for row in rows] for key in ("label", "predict"))
    in_use = {*labels, *(row["predict"] for row in within if row["predict"])}
    known = [set(slot) for slot in zip(*map(str.split, in_use))]

    def is_invalid(answer: str) -> bool:
        units = answer.split()
        return len(units) != len(known) or any(u not in slot for u, slot in zip(units, known))

    scores = {"utterances": len(rows), "accuracy": _accuracy(rows)}
    if within:
        scores["accuracy_within_labels"] = _accuracy(within)
    scores["macro_f1"] = fmean(one["f1"] for one in class_scores(labels, answers))
    if detected := target_scores(within):
        scores["eer"], scores["detection_cost"] = detection_scores(*detected)
    return scores | {"invalid": 100 * sum(map(is_invalid, answers)) / len(rows)}


def _accuracy(rows: Sequence[Sample]) -> float:
    return 100 * sum(row["label"] == row["predict"] for row in rows) / len(rows)


def class_scores(spoken: Sequence[str], answered: Sequence[str]) -> list[dict[str, Any]]:
    """Of every class that was spoken: name, utterances, errors, and precision, recall, f1 in %."""
    given = Counter(answered)
    right = Counter(label for label, answer in zip(spoken, answered) if label == answer)
    scores = []
    for name, count in sorted(Counter(spoken).items()):
        hits = 100 * right[name]
        shares = {"precision": hits / max(1, given[name]), "recall": hits / count}
        shares["f1"] = 2 * hits / (count + given[name])
        scores.append({"name": name, "utterances": count, "errors": count - right[name], **shares})
    return scores


def rarer(labels: Sequence[str]) -> str:
    """The least frequent of ``labels``; of several, the first by name."""
    counts = Counter(labels)
    return min(sorted(counts), key=counts.get)


def target_scores(within: Sequence[Sample]) -> tuple[list[float], list[float]] | None:
    """The target's log-odds in its utterances and in the others. An utterance without an answer is
    wrong at every threshold. None for another number of labels than two, or without log-odds.
    """
    labels = [row["label"] for row in within]
    has_odds = all(type(row.get("log_odds")) is float for row in within if row["predict"])
    if len(set(labels)) != 2 or not has_odds:
        return None
    target = rarer(labels)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for row in within:
        is_target = row["label"] == target
        odds = row["log_odds"] if row["predict"] else -math.inf  # of a right answer
        says_target = row["predict"] == target if row["predict"] else is_target
        scores[is_target].append(odds if says_target else -odds)
    return scores[True], scores[False]


def detection_scores(targets: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The equal error rate in %, where misses are as frequent as false alarms, on the line between
    two thresholds; and the least P_target * misses + (1 - P_target) * false alarms of any
    threshold, by P_target, which never accepting costs (NIST's normalised cost).
    """
    accepted, wrongly = Counter(targets), Counter(others)
    hits, errors, rates = 0, 0, [(1.0, 0.0)]  # of misses, of false alarms; nothing is accepted
    for threshold in sorted({*targets, *others}, reverse=True):
        hits, errors = hits + accepted[threshold], errors + wrongly[threshold]
        rates.append((1 - hits / len(targets), errors / len(others)))
    (misses, alarms), (fewer, more) = next(
        step for step in pairwise(rates) if step[1][1] >= step[1][0]
    )
    share = (misses - alarms) / (misses - alarms + more - fewer)
    odds = 1 / P_TARGET - 1
    cost = min(misses + odds * alarms for misses, alarms in rates)
    return 100 * (alarms + share * (more - alarms)), cost


def sample_files(args: argparse.Namespace) -> list[Path]:
    """The free answers of every ``--sample_date``, narrowed by ``--prompt_task`` and
    ``--unit_model``. Raises ``UserError`` for none.
    """
    pattern = f"samples_{args.prompt_task or '*'}_{args.unit_model or '*'}_*.json"
    files, samples = [], args.workspace / "samples"
    for date in args.sample_date:
        folder = samples / f"samples_{date}"
        free = [path for path in sorted(folder.glob(pattern)) if not path.stem.endswith(WITHIN)]
        if not free:
            known = sorted(folder.glob("samples_*.json")) or sorted(samples.glob("samples_*/"))
            names = ", ".join(path.stem.removeprefix("samples_") for path in known)
            there_is = f"; there is {names}" if names else ""
            raise UserError(f"{folder / pattern}: no samples; run sample.py first{there_is}")
        files += free
    return files


def scores_of(path: Path, workspace: Workspace, verbalizer: str = "") -> dict[str, float]:
    """Every score of a sample file by its name, in % but for ``COUNTS`` and ``COST``.
    ``verbalizer``: the name of the map that its texts are read by.
    """
    pair, twin = pair_of(workspace, path), within_path(path)
    if pair is None or not pair.config.is_sequence:
        scores = {OF_CLASSES.get(key, key): value for key, value in score(path).items()}
    else:
        from ulm_prompt.scoring.sequence_scores import score_sequences

        pair = replace(pair, verbalizer=verbalizer)
        free, within = (score_sequences(file, workspace, pair) for file in (path, twin))
        invalid = {"invalid answers": free.pop("invalid answers")}
        del within["utterances"], within["invalid answers"]
        scores = free | {f"{name} within labels": v for name, v in within.items()} | invalid
    if twin.exists() and (too_long := sum(not row["predict"] for row in read_samples(twin))):
        scores["too long to answer"] = too_long
    return scores


def wilson(percent: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` utterances, in % (Wilson, JASA 22, 1927).

    It says what another test set of that size would give, not what another seed would.
    """
    share, z2 = percent / 100, 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return 100 * max(0.0, centre - spread), 100 * min(1.0, centre + spread)


def written(name: str, value: float) -> str:
    """A score as people read it."""
    if name == COST:
        return f"{value:.4f}"
    return f"{value:,.0f}" if name in COUNTS else f"{value:.2f} %"


def score_lines(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of each score, as people read them; other entries are none."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            shares = wilson(value, int(scores["utterances"])) if name in SHARES else ()
            interval = "{:.2f} to {:.2f}".format(*shares) if shares else ""
            lines.append((name, written(name, value), interval))
    return lines


def curves_of(train_log: Path) -> dict[str, dict[int, dict[str, float]]]:
    """``valid_curve`` and ``train_curve`` by the split's name; none without a log."""
    splits = {"valid": valid_curve, "train": train_curve} if train_log.is_file() else {}
    return {split: curve(train_log) for split, curve in splits.items()}


def valid_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """Update number -> scores of each validation, in order; what a restart repeated counts once."""
    return _curve(train_log, "valid")


def train_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """The same of the train rows, with the noise and dropout of training: means over epochs or,
    where these are fewer, over the last 100 updates.
    """
    epochs, updates = (_curve(train_log, kind) for kind in ("epochs", "updates"))
    ends = list(epochs)
    if len(ends) > 1 and ends[-1] - ends[-2] < ends[0] / 2:  # cut off: a few batches say little
        del epochs[ends[-1]]
    return max(epochs, updates, key=len)


def _curve(train_log: Path, kind: str) -> dict[int, dict[str, float]]:
    curve: dict[int, dict[str, float]] = {}
    with open(train_log, encoding="utf-8", errors="replace") as handle:
        for match in filter(None, map(_CURVES[kind].search, handle)):
            scores = {key: float(value) for key, value in _SCORE.findall(match["scores"])}
            if "num_updates" in scores:  # else the line is damaged
                curve[int(scores["num_updates"])] = scores
    return dict(sorted(curve.items()))
