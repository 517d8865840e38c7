"""Stage 6: score the decoded samples. An answer is right when all its label units are; of texts,
the words, characters and slots are scored.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.workspace import Workspace
from ulm_prompt.sample_file import WITHIN, read_samples
from ulm_prompt.tasks import Pair, add_workspace, sequence_pair


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


def accuracy_lines(path: Path) -> dict[str, str]:
    """The scores of a task with a fixed number of labels, as they are printed."""
    result = score(path)
    return {
        "utterances": f"{result.utterances:,}",
        "accuracy": f"{result.accuracy:.2f} %",
        "accuracy within labels": f"{result.accuracy_within_labels:.2f} %",
        "invalid answers": f"{result.invalid:.2f} %",
    }


def text_lines(path: Path, workspace: Path, pair: Pair) -> dict[str, str]:
    """The scores of a task whose answers are texts, as they are printed."""
    from ulm_prompt.sequence_scores import score_sequences

    free, within = (
        score_sequences(file, Workspace(workspace), pair)
        for file in (path, path.with_stem(path.stem + WITHIN))
    )
    lines = {"utterances": f"{free.utterances:,}"}
    for result, where in ((free, ""), (within, " within labels")):
        values = {"WER": result.wer, "CER": result.cer, "slot type F1": result.slot_type_f1,
                  "slot value CER": result.slot_value_cer, "all right": result.right}  # fmt: skip
        for name, value in values.items():
            if value is not None:
                lines[name + where] = f"{value:.2f} %"
    return {**lines, "invalid answers": f"{free.invalid:.2f} %"}


def sample_files(args: argparse.Namespace) -> list[Path]:
    """The free answers of ``--sample_date``, narrowed by the other flags. Raises ``UserError`` for
    none.
    """
    folder = Workspace(args.workspace).root / "samples" / f"samples_{args.sample_date}"
    pattern = f"samples_{args.prompt_task or '*'}_{args.unit_model or '*'}_*.json"
    paths = [path for path in sorted(folder.glob(pattern)) if not path.stem.endswith(WITHIN)]
    if not paths:
        raise UserError(f"{folder / pattern}: no samples; run ulm_prompt/sample.py first")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample_date", required=True, help="the --sample_date of decoding")
    parser.add_argument("--prompt_task", help="only this task")
    parser.add_argument("--unit_model", help="only this unit model")
    add_workspace(parser)
    args = parser.parse_args()
    for path in sample_files(args):
        print(path)
        pair = sequence_pair(Workspace(args.workspace), path)
        lines = accuracy_lines(path) if pair is None else text_lines(path, args.workspace, pair)
        width = max(map(len, lines))
        for name, value in lines.items():
            print(f"  {name:<{width}}  {value}")


if __name__ == "__main__":
    run(main)
