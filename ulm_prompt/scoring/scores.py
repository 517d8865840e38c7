"""The scores of a sample file: labels right, or the words, characters and slots of texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from ulm_prompt.sample_file import WITHIN, read_samples
from ulm_prompt.tasks import sequence_pair


@dataclass(frozen=True)
class Score:
    """Percentages over one sample file and its twin decoded within the label set."""

    utterances: int
    accuracy: float
    accuracy_within_labels: float
    invalid: float


def score(path: Path) -> Score:
    """Score a sample file. ``invalid``: answers that are no label sequence of the task at all.

    Raises ``UserError`` for a missing or malformed file.
    """
    samples = read_samples(path)
    twin = path.with_stem(path.stem + WITHIN)
    within = read_samples(twin)
    if len(within) != len(samples):
        raise UserError(
            f"{twin}: {len(within)} utterances, {path.name} has {len(samples)}; run sample.py again"
        )
    in_use = [entry["label"] for entry in samples] + [entry["predict"] for entry in within]
    known = [set(slot) for slot in zip(*(labels.split() for labels in in_use))]
    total = len(samples)

    def right(entries: list[dict[str, str]]) -> float:
        return 100 * sum(entry["predict"] == entry["label"] for entry in entries) / total

    invalid = sum(not _is_label(entry["predict"].split(), known) for entry in samples)
    return Score(total, right(samples), right(within), 100 * invalid / total)


def _is_label(units: list[str], known: list[set[str]]) -> bool:
    return len(units) == len(known) and all(unit in slot for unit, slot in zip(units, known))


def scores_of(path: Path, workspace: Workspace) -> dict[str, float]:
    """Every score of a sample file by its name, in % but for ``utterances``."""
    pair = sequence_pair(workspace, path)
    if pair is None:
        result = score(path)
        return {
            "utterances": result.utterances,
            "accuracy": result.accuracy,
            "accuracy within labels": result.accuracy_within_labels,
            "invalid answers": result.invalid,
        }
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
    return {name: value for name, value in found.items() if value is not None}
