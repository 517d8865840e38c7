"""Stage 6: score the decoded samples. An answer is right when all its label units are."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import read_json
from pipeline.workspace import Workspace
from ulm_prompt.tasks import add_workspace

WITHIN = "_within_labels"


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


def read_samples(path: Path) -> list[dict[str, str]]:
    """The label and the answer of each utterance, in their order."""
    samples = read_json(path, "ulm_prompt/sample.py")
    try:
        entries = [{key: entry[key] for key in ("label", "predict")} for entry in samples.values()]
    except (AttributeError, KeyError, TypeError):
        entries = []
    if not entries:
        raise UserError(
            f"{path}: expected id -> file_name, src, label, predict; run sample.py again"
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample_date", required=True, help="the --sample_date of decoding")
    parser.add_argument("--prompt_task", help="only this task")
    parser.add_argument("--unit_model", help="only this unit model")
    add_workspace(parser)
    args = parser.parse_args()
    folder = Workspace(args.workspace).root / "samples" / f"samples_{args.sample_date}"
    pattern = f"samples_{args.prompt_task or '*'}_{args.unit_model or '*'}_*.json"
    paths = [path for path in sorted(folder.glob(pattern)) if not path.stem.endswith(WITHIN)]
    if not paths:
        raise UserError(f"{folder / pattern}: no samples; run ulm_prompt/sample.py first")
    for path in paths:
        result = score(path)
        print(path)
        print(f"  utterances              {result.utterances:,}")
        print(f"  accuracy                {result.accuracy:.2f} %")
        print(f"  accuracy within labels  {result.accuracy_within_labels:.2f} %")
        print(f"  invalid answers         {result.invalid:.2f} %")


if __name__ == "__main__":
    run(main)
