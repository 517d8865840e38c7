"""Labels as a classifier's classes, and its answers in the published form, which
ulm_prompt/cal_acc.py scores.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.tasks import add_selection
from ulm_prompt.scoring.sample_file import write_samples


class Slots:
    """The task's label numbers, slot after slot: which of an utterance's labels answers which
    question. ``sizes``: how many labels each slot has.
    """

    def __init__(self, path: Path) -> None:
        """Read ``labels.json``, whose numbers run on through the slots."""
        names = read_json(path, "preprocess/runner.py --action generate_manifest")
        self._path = path
        self._slot_of = [names[str(number)]["slot"] for number in range(len(names))]
        self._names = list(dict.fromkeys(self._slot_of))
        self.sizes = list(Counter(self._slot_of).values())
        self._first = torch.tensor([self._slot_of.index(name) for name in self._names])

    def encode(self, labels: Iterable[str]) -> torch.Tensor:
        """Map label texts such as ``"1 7 20"`` to (N, slots), counted from each slot's first.

        Raises ``UserError`` for an utterance that has not one label of each slot.
        """
        numbers = [[int(number) for number in text.split()] for text in labels]
        slot_of = dict(enumerate(self._slot_of))
        for row in numbers:
            if [slot_of.get(number) for number in row] != self._names:
                raise UserError(
                    f"{self._path}: expected one label of each of {', '.join(self._names)} an "
                    f"utterance, found {row}; this baseline is for classification"
                )
        return torch.tensor(numbers) - self._first

    def decode(self, labels: torch.Tensor) -> list[str]:
        """Map (N, slots) back to texts."""
        return [" ".join(map(str, row)) for row in (labels.cpu() + self._first).tolist()]


def write_answers(
    path: Path, files: Sequence[str], labels: Sequence[str], answers: Sequence[str]
) -> float:
    """Write id -> file_name, src (empty), label, predict, and return the accuracy in %.

    A classifier only knows the label set, so its ``_within_labels`` twin holds the same answers.
    """
    pairs = zip(files, labels, strict=True)
    sources = [{"file_name": file, "src": "", "label": label} for file, label in pairs]
    entries = {
        row: {kind: {"predict": answer} for kind in ("free", "within")}
        for row, answer in enumerate(answers)
    }
    write_samples(path, sources, entries, scored=False)
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    return 100 * right / len(sources)


def parse_flags(description: str, config: Path) -> argparse.Namespace:
    """The command line of a baseline. ``config``: the file whose values ``--set`` changes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    date = "names the run, for example 20221122"
    parser.add_argument("--date", type=name_part, required=True, help=date)
    override = f"override config/{config.name}"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=override)
    add_selection(parser)
    return parser.parse_args()


def answers_path(
    workspace: Workspace, task: str, unit_model: str, baseline: str, date: str
) -> Path:
    """The answers are beside a prompt's of the same date, under a name of their own."""
    return workspace.samples(task, unit_model, f"{baseline}_{date}", date)


def card_path(workspace: Workspace, task: str, unit_model: str, baseline: str, date: str) -> Path:
    """The card says what a run was made from and its scores; it is written last."""
    folder = workspace.root / "checkpoints" / f"{task}_{unit_model}_{baseline}_{date}"
    return folder / f"{baseline}.json"
