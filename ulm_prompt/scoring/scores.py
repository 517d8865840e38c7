"""The scores of a sample file: labels right, or the words, characters and slots of texts. And the
scores on valid that a training log holds.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, sequence_pair
from ulm_prompt.prompt_data.verbal import load_verbal
from ulm_prompt.scoring.sample_file import WITHIN, read_samples, within_path

_VALID = re.compile(r"valid on 'valid' subset \| (?P<scores>.*)")
_SCORE = re.compile(r"(\w+) (-?[\d.]+(?:e-?\d+)?)")
COUNTS = ("utterances", "too long to answer")
# shares of the utterances: each has an interval
SHARES = ("accuracy", "accuracy within labels", "invalid answers", "all right",
          "all right within labels")  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Percentages over a sample file and the one decoded within the label set (None where there is
    none: the published code wrote none). ``invalid``: answers that are no label sequence of the
    task at all. ``unanswered``: utterances that were too long for the LM; they are wrong, and
    invalid.
    """

    utterances: int
    accuracy: float
    accuracy_within_labels: float | None
    invalid: float
    unanswered: int = 0


def score(path: Path) -> Score:
    """Score a sample file. Raises ``UserError`` for a missing or malformed file."""
    twin = within_path(path)
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
    invalid = 0
    for answer, times in free.items():
        units = answer.split()
        if len(units) != len(known) or any(u not in slot for u, slot in zip(units, known)):
            invalid += times
    shares = (
        None if count is None else 100 * count / total for count in (right, right_within, invalid)
    )
    return Score(total, *shares, within[""])


def _count(path: Path) -> tuple[set[str], Counter[str], int]:
    """The labels of a sample file, how often each answer was given, and how many were right."""
    both = [(sample["label"], sample["predict"]) for sample in read_samples(path)]
    right = sum(label == answer for label, answer in both)
    return {label for label, _ in both}, Counter(answer for _, answer in both), right


def sample_files(args: argparse.Namespace) -> list[Path]:
    """The free answers of every ``--sample_date``, narrowed by ``--prompt_task`` and
    ``--unit_model``. Raises ``UserError`` for none.
    """
    pattern = f"samples_{args.prompt_task or '*'}_{args.unit_model or '*'}_*.json"
    files = []
    for date in args.sample_date:
        folder = Workspace(args.workspace).root / "samples" / f"samples_{date}"
        paths = [path for path in sorted(folder.glob(pattern)) if not path.stem.endswith(WITHIN)]
        if not paths:
            raise UserError(f"{folder / pattern}: no samples; run ulm_prompt/sample.py first")
        files += paths
    return files


def wilson(percent: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` utterances, in % (Wilson, JASA 22, 1927).

    It says what another test set of that size would give, not what another seed would.
    """
    share, z2 = percent / 100, 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return 100 * max(0.0, centre - spread), 100 * min(1.0, centre + spread)


def scores_of(path: Path, workspace: Workspace, verbalizer: str = "") -> dict[str, float]:
    """Every score of a sample file by its name, in % but for ``COUNTS``. ``verbalizer``: the name
    of the map that its texts are read by.
    """
    pair = sequence_pair(workspace, path)
    if pair is None:
        free = score(path)
        unanswered = free.unanswered
        named = {"accuracy": free.accuracy, "accuracy within labels": free.accuracy_within_labels}
    else:
        from ulm_prompt.scoring.sequence_scores import score_sequences

        pair, twin = replace(pair, verbalizer=verbalizer), within_path(path)
        free, within = (score_sequences(file, workspace, pair) for file in (path, twin))
        unanswered = _count(twin)[1][""]
        named = {}
        for result, where in ((free, ""), (within, " within labels")):
            named |= {
                f"WER{where}": result.wer,
                f"CER{where}": result.cer,
                f"slot type F1{where}": result.slot_type_f1,
                f"slot value CER{where}": result.slot_value_cer,
                f"all right{where}": result.right,
            }
    named = {"utterances": free.utterances, **named, "invalid answers": free.invalid}
    named["too long to answer"] = unanswered or None
    return {name: value for name, value in named.items() if value is not None}


# What a task's label units mean.


class Label(NamedTuple):
    """A label: the ``slot`` that it fills (action, character), ``name``: what it says."""

    slot: str
    name: str


def label_names(workspace: Workspace, pair: Pair) -> dict[str, Label]:
    """Label unit -> label, by verbal.json and the downstream's labels.json.

    Raises ``UserError`` where the two files do not fit.
    """
    _, verbal = load_verbal(workspace, pair)
    named = named_labels(workspace, pair, verbal)
    return {unit: named[number] for number, unit in verbal.items()}


def is_baseline(path: Path) -> bool:
    """Whether a baseline wrote the sample file: it answers with label numbers, from no units."""
    return next(read_samples(path)).get("src") == ""


def named_labels(workspace: Workspace, pair: Pair, numbers: Iterable[str]) -> dict[str, Label]:
    """Label number -> label, by labels.json. Rows that were not made here may have none: their
    labels are called by their numbers.

    Raises ``UserError`` where labels.json lacks one.
    """
    folder = workspace.downstream_data(pair.config.downstream) / pair.unit_model
    path = folder / "labels.json"
    if not path.exists() and not (folder / "config.yaml").exists():
        return {number: Label("label", number) for number in numbers}
    names = read_json(path, "preprocess/runner.py --action postprocess")
    try:
        labels = {number: names[number] for number in numbers}
        return {n: Label(str(label["slot"]), str(label["name"])) for n, label in labels.items()}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: nothing about label {error}; run preprocess/runner.py --action postprocess "
            "and ulm_prompt/verbalizer.py again"
        ) from None


def valid_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """Update number -> scores of each validation, in order; what a restart repeated counts once."""
    curve = {}
    with open(train_log, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            if match := _VALID.search(line):
                scores = {name: float(value) for name, value in _SCORE.findall(match["scores"])}
                if "num_updates" in scores:  # else the line is damaged
                    curve[int(scores["num_updates"])] = scores
    return dict(sorted(curve.items()))
