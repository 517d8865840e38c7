"""Two classes: the equal error rate and the minimum detection cost, from a score an utterance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ulm_prompt.scoring.sample_file import read_samples

P_TARGET = 0.05  # and a miss costs as much as a false alarm
ABOUT = (
    "EER and cost: by the probability within the label set; C_miss=1, C_fa=1, "
    f"P_target={P_TARGET}, in parts of what never accepting costs; target: the rarer label"
)


def target_scores(within: Path) -> tuple[str, list[float], list[float]] | None:
    """The target, which is the rarer of two labels, and its log-odds in its utterances and in the
    others. An utterance without an answer is wrong at every threshold.

    None for a sample file of another number of labels, or without log-odds.
    """
    rows = list(read_samples(within))
    labels = {row["label"] for row in rows}
    has_odds = all(type(row.get("log_odds")) is float for row in rows if row["predict"])
    if len(labels) != 2 or not has_odds:
        return None
    target = rarer([row["label"] for row in rows])
    scores: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        is_target = row["label"] == target
        odds = row["log_odds"] if row["predict"] else -math.inf  # of a right answer
        says_target = row["predict"] == target if row["predict"] else is_target
        scores[is_target].append(odds if says_target else -odds)
    return target, scores[True], scores[False]


def rarer(labels: Sequence[str]) -> str:
    """The least frequent of ``labels``; of several, the first by name."""
    counts = Counter(labels)
    return min(sorted(counts), key=counts.get)


def error_rates(targets: Sequence[float], others: Sequence[float]) -> list[tuple[float, float]]:
    """The shares of misses and of false alarms, from no utterance accepted to all."""
    accepted, alarms = Counter(targets), Counter(others)
    hits, errors, rates = 0, 0, [(1.0, 0.0)]
    for threshold in sorted({*targets, *others}, reverse=True):
        hits, errors = hits + accepted[threshold], errors + alarms[threshold]
        rates.append((1 - hits / len(targets), errors / len(others)))
    return rates


def equal_error_rate(targets: Sequence[float], others: Sequence[float]) -> float:
    """In %: where misses are as frequent as false alarms, on the line between two thresholds."""
    steps = pairwise(error_rates(targets, others))
    (misses, alarms), (fewer, more) = next(step for step in steps if step[1][1] >= step[1][0])
    share = (misses - alarms) / (misses - alarms + more - fewer)
    return 100 * (alarms + share * (more - alarms))


def minimum_detection_cost(targets: Sequence[float], others: Sequence[float]) -> float:
    """The least P_target * misses + (1 - P_target) * false alarms over all thresholds, by P_target,
    which never accepting costs (NIST's normalised cost).
    """
    odds = 1 / P_TARGET - 1
    return min(misses + odds * alarms for misses, alarms in error_rates(targets, others))
