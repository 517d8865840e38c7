"""The scores of a sample file: labels right, or the words, characters and slots of texts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from ulm_prompt.sample_file import WITHIN, read_samples
from ulm_prompt.tasks import sequence_pair

COUNTS = ("utterances", "too long to answer")
# shares of the utterances: each has an interval
SHARES = ("accuracy", "accuracy within labels", "invalid answers", "all right",
          "all right within labels")  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Percentages over one sample file and its twin decoded within the label set (None where there
    is no twin: the published code wrote none). ``unanswered``: how many utterances were too long
    for the LM; they are wrong, and invalid.
    """

    utterances: int
    accuracy: float
    accuracy_within_labels: float | None
    invalid: float
    unanswered: int = 0


def score(path: Path) -> Score:
    """Score a sample file. ``invalid``: answers that are no label sequence of the task at all.

    Raises ``UserError`` for a missing or malformed file.
    """
    twin = path.with_stem(path.stem + WITHIN)
    labels, free, right = _count(path)
    total = free.total()
    within, right_within = Counter(), None
    if twin.exists():
        _, within, right_within = _count(twin)
        if within.total() != total:
            raise UserError(
                f"{twin}: {within.total()} utterances, {path.name} has {total}; run sample.py again"
            )
    in_use = [*labels, *(answer for answer in within if answer)]
    known = [set(slot) for slot in zip(*(text.split() for text in in_use))]
    invalid = sum(n for answer, n in free.items() if not _is_label(answer.split(), known))
    shares = (
        None if count is None else 100 * count / total for count in (right, right_within, invalid)
    )
    return Score(total, *shares, within[""])


def _count(path: Path) -> tuple[set[str], Counter[str], int]:
    """The labels of a sample file, how often each answer was given, and how many were right."""
    labels: set[str] = set()
    answers: Counter[str] = Counter()
    right = 0
    for sample in read_samples(path):
        labels.add(sample["label"])
        answers[sample["predict"]] += 1
        right += sample["label"] == sample["predict"]
    return labels, answers, right


def _is_label(units: list[str], known: list[set[str]]) -> bool:
    return len(units) == len(known) and all(unit in slot for unit, slot in zip(units, known))


def wilson(percent: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` utterances, in % (Wilson, JASA 22, 1927).

    It says what another test set of that size would give, not what another seed would.
    """
    share, z2 = percent / 100, 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return 100 * max(0.0, centre - spread), 100 * min(1.0, centre + spread)


def scores_of(path: Path, workspace: Workspace) -> dict[str, float]:
    """Every score of a sample file by its name, in % but for ``COUNTS``."""
    pair = sequence_pair(workspace, path)
    if pair is None:
        result = score(path)
        found = {"utterances": result.utterances, "accuracy": result.accuracy}
        if result.accuracy_within_labels is not None:
            found["accuracy within labels"] = result.accuracy_within_labels
        found["invalid answers"] = result.invalid
        return found | ({"too long to answer": result.unanswered} if result.unanswered else {})
    from ulm_prompt.scoring.sequence_scores import score_sequences

    files = (path, path.with_stem(path.stem + WITHIN))
    free, within = (score_sequences(file, workspace, pair) for file in files)
    found: dict[str, float | None] = {"utterances": free.utterances}
    for result, where in ((free, ""), (within, " within labels")):
        found |= {
            f"WER{where}": result.wer,
            f"CER{where}": result.cer,
            f"slot type F1{where}": result.slot_type_f1,
            f"slot value CER{where}": result.slot_value_cer,
            f"all right{where}": result.right,
        }
    found["invalid answers"] = free.invalid
    if unanswered := _count(files[1])[1][""]:
        found["too long to answer"] = unanswered
    return {name: value for name, value in found.items() if value is not None}
