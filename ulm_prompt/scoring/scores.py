"""The scores of a sample file: labels right, or the words, characters and slots of texts. And the
scores on valid that a training log holds.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, sequence_pair
from ulm_prompt.prompt_data.verbal import load_verbal
from ulm_prompt.scoring.detection import equal_error_rate, minimum_detection_cost, target_scores
from ulm_prompt.scoring.sample_file import WITHIN, read_samples, within_path

_CURVES = {  # the lines of a log: of a validation, of an epoch of training, of 100 updates
    "valid": re.compile(r"valid on 'valid' subset \| (?P<scores>.*)"),
    "epochs": re.compile(r"\| train \| epoch \d+ \| (?P<scores>.*)"),
    "updates": re.compile(r"\| train_inner \| (?P<scores>.*)"),
}
_SCORE = re.compile(r"(\w+)[ =](-?[\d.]+(?:e-?\d+)?)")
COUNTS = ("utterances", "too long to answer")
COST = "minimum detection cost"
# shares of the utterances: each has an interval
SHARES = ("accuracy", "accuracy within labels", "invalid answers", "all right",
          "all right within labels")  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Percentages over a sample file and the one decoded within the label set (None where there is
    none: the published code wrote none). ``invalid``: answers that are no label sequence of the
    task at all. ``unanswered``: utterances that were too long for the LM; they are wrong, and
    invalid. ``macro_f1``: the mean over the classes that the file's labels have. Of two classes
    also the equal error rate, and the minimum detection cost, which is no percentage.
    """

    utterances: int
    accuracy: float
    accuracy_within_labels: float | None
    invalid: float
    unanswered: int = 0
    macro_f1: float = 0.0
    eer: float | None = None
    detection_cost: float | None = None


def score(path: Path) -> Score:
    """Score a sample file. Raises ``UserError`` for a missing or malformed file."""
    twin = within_path(path)
    pairs, free, right = _count(path)
    total = free.total()
    within, right_within, eer, cost = Counter(), None, None, None
    if twin.exists():
        _, within, right_within = _count(twin)
        if within.total() != total:
            raise UserError(
                f"{twin}: {within.total()} utterances, {path.name} has {total}; run sample.py again"
            )
        if len({label for label, _ in pairs}) == 2 and (scored := target_scores(twin)):
            eer, cost = equal_error_rate(*scored[1:]), minimum_detection_cost(*scored[1:])
    in_use = [*(label for label, _ in pairs), *(answer for answer in within if answer)]
    known = [set(slot) for slot in zip(*(text.split() for text in in_use))]
    invalid = 0
    for answer, times in free.items():
        units = answer.split()
        if len(units) != len(known) or any(u not in slot for u, slot in zip(units, known)):
            invalid += times
    shares = (
        None if count is None else 100 * count / total for count in (right, right_within, invalid)
    )
    return Score(total, *shares, within[""], macro_f1(pairs), eer, cost)


def _count(path: Path) -> tuple[Counter[tuple[str, str]], Counter[str], int]:
    """How often a sample file has each label with each answer, and each answer; the right ones."""
    pairs = Counter((sample["label"], sample["predict"]) for sample in read_samples(path))
    answers, right = Counter(), 0
    for (label, answer), times in pairs.items():
        answers[answer] += times
        right += times * (label == answer)
    return pairs, answers, right


def macro_f1(pairs: Counter[tuple[str, str]]) -> float:
    """The mean F1 in % of the classes that are some utterance's label. ``pairs``: label, answer."""
    both, right = Counter(), {label: pairs[label, label] for label, _ in pairs}
    for pair, times in pairs.items():
        for name in pair:
            both[name] += times
    return 100 * sum(2 * right[name] / both[name] for name in right) / len(right)


def sample_files(args: argparse.Namespace) -> list[Path]:
    """The free answers of every ``--sample_date``, narrowed by ``--prompt_task`` and
    ``--unit_model``. Raises ``UserError`` for none.
    """
    pattern = f"samples_{args.prompt_task or '*'}_{args.unit_model or '*'}_*.json"
    files = []
    samples = Workspace(args.workspace).root / "samples"
    for date in args.sample_date:
        folder = samples / f"samples_{date}"
        paths = [path for path in sorted(folder.glob(pattern)) if not path.stem.endswith(WITHIN)]
        if not paths:
            others = sorted(folder.glob("samples_*.json")) or sorted(samples.glob("samples_*/"))
            names = [p.stem.removeprefix("samples_") for p in others if not p.stem.endswith(WITHIN)]
            known = f"; there is {', '.join(names)}" if names else ""
            raise UserError(
                f"{folder / pattern}: no samples; run ulm_prompt/sample.py first{known}"
            )
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
    """Every score of a sample file by its name, in % but for ``COUNTS`` and ``COST``.
    ``verbalizer``: the name of the map that its texts are read by.
    """
    pair = sequence_pair(workspace, path)
    if pair is None:
        free = score(path)
        unanswered = free.unanswered
        named = {"accuracy": free.accuracy, "accuracy within labels": free.accuracy_within_labels,
                 "macro F1": free.macro_f1, "EER": free.eer, COST: free.detection_cost}  # fmt: skip
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


def score_lines(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of each score, as people read them; other entries are none."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            shares = wilson(value, int(scores["utterances"])) if name in SHARES else ()
            interval = "{:.2f} to {:.2f}".format(*shares) if shares else ""
            lines.append((name, written(name, value), interval))
    return lines


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


def is_baseline(sample: dict[str, Any]) -> bool:
    """Whether a baseline wrote the utterance: it answers with label numbers, from no units."""
    return sample.get("src") == ""


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
    return _curves(train_log)["valid"]


def train_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """The same of the train rows, with the noise and dropout of training: means over epochs or,
    where these are fewer, over the last 100 updates.
    """
    curves = _curves(train_log)
    ends = list(curves["epochs"])
    if len(ends) > 1 and ends[-1] - ends[-2] < ends[0] / 2:  # cut off: a few batches say little
        del curves["epochs"][ends[-1]]
    return max(curves["epochs"], curves["updates"], key=len)


def _curves(train_log: Path) -> dict[str, dict[int, dict[str, float]]]:
    curves: dict[str, dict[int, dict[str, float]]] = {name: {} for name in _CURVES}
    with open(train_log, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            for name, pattern in _CURVES.items():
                if match := pattern.search(line):
                    scores = {key: float(value) for key, value in _SCORE.findall(match["scores"])}
                    if "num_updates" in scores:  # else the line is damaged
                        curves[name][int(scores["num_updates"])] = scores
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def written(name: str, value: float) -> str:
    """A score as people read it."""
    if name == COST:
        return f"{value:.4f}"
    return f"{value:,.0f}" if name in COUNTS else f"{value:.2f} %"
