"""The scores of a sample file: accuracy and other scores of labels, or scores of texts; and the
scores on valid and train in a training log.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import pair_of
from ulm_prompt.scoring.sample_file import WITHIN, Sample, read_samples, within_path

_CURVES = {  # the log lines of a validation, of a training epoch, of 100 updates
    "valid": re.compile(r"valid on 'valid' subset \| (?P<scores>.*)"),
    "epochs": re.compile(r"\| train \| epoch \d+ \| (?P<scores>.*)"),
    "updates": re.compile(r"\| train_inner \| (?P<scores>.*)"),
}
_SCORE = re.compile(r"(\w+)[ =](-?[\d.]+(?:e-?\d+)?)")
COUNTS = ("utterances", "too long to answer")
COST = "minimum detection cost"
P_TARGET = 0.05  # the prior of the target; a miss costs as much as a false alarm
ABOUT_DETECTION = (
    "EER and cost: from the probability within the label set; C_miss=1, C_fa=1, "
    f"P_target={P_TARGET}, divided by the cost of never accepting; target: the rarer label"
)
OF_CLASSES = {"accuracy_within_labels": "accuracy within labels", "macro_f1": "macro F1",
              "eer": "EER", "detection_cost": COST, "invalid": "invalid answers"}  # fmt: skip
# shares of the utterances, which have a 95 % interval
SHARES = ("accuracy", "accuracy within labels", "invalid answers", "all right",
          "all right within labels")  # fmt: skip


def score(path: Path) -> dict[str, float]:
    """Return the scores of a classifier's sample file, in % except ``COUNTS`` and ``COST``. Some
    need the file with the answers within the label set, which the published code did not write.

    invalid: answers with a wrong number of labels, or with a label that does not belong at its
    position. macro_f1: the mean over the labels in the file. eer: for two classes. Raises
    ``UserError`` for a missing or malformed file.
    """
    rows, within_file = read_samples(path), within_path(path)
    within = read_samples(within_file) if within_file.exists() else []
    if within and len(within) != len(rows):
        raise UserError(f"{within_file}: {len(within)} of {len(rows)} rows; run sample.py again")
    labels, answers = ([row[key] for row in rows] for key in ("label", "predict"))
    sequences = {*labels, *(row["predict"] for row in within if row["predict"])}
    slots = [set(slot) for slot in zip(*map(str.split, sequences))]  # the labels of each position

    def is_invalid(answer: str) -> bool:
        units = answer.split()
        return len(units) != len(slots) or any(u not in slot for u, slot in zip(units, slots))

    scores = {"utterances": len(rows), "accuracy": _accuracy(rows)}
    if within:
        scores["accuracy_within_labels"] = _accuracy(within)
    scores["macro_f1"] = fmean(entry["f1"] for entry in class_scores(labels, answers))
    if log_odds := target_scores(within):
        scores["eer"], scores["detection_cost"] = detection_scores(*log_odds)
    return scores | {"invalid": 100 * sum(map(is_invalid, answers)) / len(rows)}


def _accuracy(rows: Sequence[Sample]) -> float:
    return 100 * sum(row["label"] == row["predict"] for row in rows) / len(rows)


def class_scores(spoken: Sequence[str], answered: Sequence[str]) -> list[dict[str, Any]]:
    """Return for every spoken class: name, utterances, errors, and precision, recall, f1 in %."""
    counts = Counter(answered)
    right = Counter(label for label, answer in zip(spoken, answered) if label == answer)
    scores = []
    for name, count in sorted(Counter(spoken).items()):
        hits = 100 * right[name]
        shares = {"precision": hits / max(1, counts[name]), "recall": hits / count}
        shares["f1"] = 2 * hits / (count + counts[name])
        scores.append({"name": name, "utterances": count, "errors": count - right[name], **shares})
    return scores


def rarer(labels: Sequence[str]) -> str:
    """Return the least frequent of ``labels``; if several are, the first by name."""
    counts = Counter(labels)
    return min(sorted(counts), key=counts.get)


def target_scores(within: Sequence[Sample]) -> tuple[list[float], list[float]] | None:
    """Return the log-odds of the target, in target utterances and in other utterances. An utterance
    without an answer is wrong at every threshold. None unless there are two labels and log-odds.
    """
    labels = [row["label"] for row in within]
    has_odds = all(type(row.get("log_odds")) is float for row in within if row["predict"])
    if len(set(labels)) != 2 or not has_odds:
        return None
    target = rarer(labels)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for row in within:
        is_target = row["label"] == target
        odds = row["log_odds"] if row["predict"] else -math.inf  # -inf: always wrong
        says_target = row["predict"] == target if row["predict"] else is_target
        scores[is_target].append(odds if says_target else -odds)
    return scores[True], scores[False]


def detection_scores(targets: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the equal error rate in %, interpolated to where misses are as frequent as false
    alarms; and the minimum detection cost over all thresholds: P_target * misses + (1 - P_target) *
    false alarms, divided by P_target, the cost of never accepting (NIST's normalised cost).
    """
    target_counts, other_counts = Counter(targets), Counter(others)
    hits, false_alarms, rates = 0, 0, [(1.0, 0.0)]  # (miss rate, false alarm rate)
    for threshold in sorted({*targets, *others}, reverse=True):
        hits, false_alarms = hits + target_counts[threshold], false_alarms + other_counts[threshold]
        rates.append((1 - hits / len(targets), false_alarms / len(others)))
    (misses, alarms), (next_misses, next_alarms) = next(
        step for step in pairwise(rates) if step[1][1] >= step[1][0]
    )
    share = (misses - alarms) / (misses - alarms + next_alarms - next_misses)
    odds = 1 / P_TARGET - 1
    cost = min(misses + odds * alarms for misses, alarms in rates)
    return 100 * (alarms + share * (next_alarms - alarms)), cost


def sample_files(args: argparse.Namespace) -> list[Path]:
    """Return the files of free answers of every ``--sample_date``, filtered by ``--prompt_task``
    and ``--unit_model``. Raises ``UserError`` if no file matches.
    """
    pattern = f"samples_{args.prompt_task or '*'}_{args.unit_model or '*'}_*.json"
    files, samples = [], args.workspace / "samples"
    for date in args.sample_date:
        folder = samples / f"samples_{date}"
        free = [path for path in sorted(folder.glob(pattern)) if not path.stem.endswith(WITHIN)]
        if not free:
            known = sorted(folder.glob("samples_*.json")) or sorted(samples.glob("samples_*/"))
            names = ", ".join(path.stem.removeprefix("samples_") for path in known)
            existing = f"; existing samples: {names}" if names else ""
            raise UserError(f"{folder / pattern}: no samples; run sample.py first{existing}")
        files += free
    return files


def scores_of(path: Path, workspace: Workspace) -> dict[str, float]:
    """Return every score of a sample file by name, in % except ``COUNTS`` and ``COST``."""
    pair, within_file = pair_of(workspace, path), within_path(path)
    if pair is None or not pair.config.is_text:
        scores = {OF_CLASSES.get(key, key): value for key, value in score(path).items()}
    else:
        from ulm_prompt.scoring.sequence_scores import score_text_file

        free, within = (score_text_file(file, workspace, pair) for file in (path, within_file))
        invalid = {"invalid answers": free.pop("invalid answers")}
        del within["utterances"], within["invalid answers"]
        scores = free | {f"{name} within labels": v for name, v in within.items()} | invalid
    rows = read_samples(within_file) if within_file.exists() else ()
    if too_long := sum(not row["predict"] for row in rows):
        scores["too long to answer"] = too_long
    return scores


def wilson(percent: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``count`` utterances, in % (Wilson, JASA 22, 1927).

    The interval covers other test sets of this size. It does not cover other seeds.
    """
    share, z2 = percent / 100, 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return 100 * max(0.0, centre - spread), 100 * min(1.0, centre + spread)


def written(name: str, value: float) -> str:
    """Return a score as text, with its unit."""
    if name == COST:
        return f"{value:.4f}"
    return f"{value:,.0f}" if name in COUNTS else f"{value:.2f} %"


def score_lines(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and 95 % interval of each score as text; skip values without a number."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            shares = wilson(value, int(scores["utterances"])) if name in SHARES else ()
            interval = "{:.2f} to {:.2f}".format(*shares) if shares else ""
            lines.append((name, written(name, value), interval))
    return lines


def curves_of(train_log: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Return ``valid_curve`` and ``train_curve`` by split; an empty dict if the log is missing."""
    splits = {"valid": valid_curve, "train": train_curve} if train_log.is_file() else {}
    return {split: curve(train_log) for split, curve in splits.items()}


def valid_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """Return update -> scores of each validation, in order; of repeated updates the last scores."""
    return _curve(train_log, "valid")


def train_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """Return update -> scores on train rows, with the noise and dropout of training. Scores are
    means over epochs or, if the log has more such lines, over 100 updates.
    """
    epochs, updates = (_curve(train_log, kind) for kind in ("epochs", "updates"))
    ends = list(epochs)
    if len(ends) > 1 and ends[-1] - ends[-2] < ends[0] / 2:  # a mean over few batches is noisy
        del epochs[ends[-1]]
    return max(epochs, updates, key=len)


def _curve(train_log: Path, kind: str) -> dict[int, dict[str, float]]:
    curve: dict[int, dict[str, float]] = {}
    with open(train_log, encoding="utf-8", errors="replace") as handle:
        for match in filter(None, map(_CURVES[kind].search, handle)):
            scores = {key: float(value) for key, value in _SCORE.findall(match["scores"])}
            if "num_updates" in scores:  # the line is not damaged
                curve[int(scores["num_updates"])] = scores
    return dict(sorted(curve.items()))
