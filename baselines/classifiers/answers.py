"""Code shared by the baselines: the command line, labels as classes, and the outputs of a run."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.rows import Row
from pipeline.runs import provenance
from pipeline.workspace import REPOSITORY, Workspace, name_part
from preprocess.actions.manifest import Entry
from ulm_prompt.prompt_data.tasks import Pair, add_selection
from ulm_prompt.scoring.sample_file import write_samples

CONFIG = REPOSITORY / "baselines" / "config"


def parse_flags(description: str, schema: type, config: str) -> argparse.Namespace:
    """Parse the command line of a baseline. ``settings`` in the result are the values of the file
    ``config`` in config/, with the changes of ``--set``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    date = "name of the run, for example 20221122"
    parser.add_argument("--date", type=name_part, required=True, help=date)
    override = f"override config/{config}"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=override)
    add_selection(parser)
    args = parser.parse_args()
    args.settings = load_settings(schema, config, args.set)
    return args


def load_settings(schema: type, config: str, overrides: Sequence[str] = ()) -> Any:
    """Read a file in config/. Raises ``UserError`` for an unknown key or a number that is not
    positive. ``seed`` and ``clip_norm`` may be 0.
    """
    settings = load_config(schema, CONFIG / config, overrides)
    for name, value in vars(settings).items():
        numbers = value if isinstance(value, list) else [value]
        lowest = min(numbers, default=-1)
        if isinstance(lowest, str) or lowest > 0 or (lowest == 0 and name in ("seed", "clip_norm")):
            continue
        raise UserError(f"--set {name}={value}: expected a positive number")
    return settings


class Slots:
    """The label numbers of a task, by slot. An utterance has one label per slot. ``sizes``: the
    number of labels per slot.
    """

    def __init__(self, path: Path) -> None:
        """Read ``labels.json``. The numbers continue from one slot to the next."""
        names = read_json(path, "preprocess/runner.py --action generate_manifest")
        self._path = path
        self._slot_of = [names[str(number)]["slot"] for number in range(len(names))]
        counts = Counter(self._slot_of)
        self._names, self.sizes = list(counts), list(counts.values())
        self._first = torch.tensor([self._slot_of.index(name) for name in self._names])

    def encode(self, labels: Iterable[str]) -> torch.Tensor:
        """Map label texts such as ``"1 7 20"`` to (N, slots), counted from each slot's first label.

        Raises ``UserError`` if an utterance does not have one label per slot.
        """
        numbers = [[int(number) for number in text.split()] for text in labels]
        slot_of = dict(enumerate(self._slot_of))
        for row in numbers:
            if [slot_of.get(number) for number in row] != self._names:
                raise UserError(
                    f"{self._path}: expected one label of each of {', '.join(self._names)} per "
                    f"utterance, found {row}; this baseline is for classification"
                )
        return torch.tensor(numbers) - self._first

    def decode(self, labels: torch.Tensor) -> list[str]:
        """Map (N, slots) back to label texts."""
        return [" ".join(map(str, row)) for row in (labels.cpu() + self._first).tolist()]


def write_answers(
    path: Path, files: Sequence[str], labels: Sequence[str], answers: Sequence[str]
) -> float:
    """Write id -> file_name, src (empty), label, predict, and return the accuracy in %.

    A classifier answers only labels, so the ``_within_labels`` file contains the same answers.
    """
    pairs = zip(files, labels, strict=True)
    sources = [{"file_name": file, "src": "", "label": label} for file, label in pairs]
    entries = {
        row: {kind: {"predict": answer} for kind in ("free", "within")}
        for row, answer in enumerate(answers)
    }
    write_samples(path, sources, entries, scored=False)
    correct = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    return 100 * correct / len(sources)


def record_path(workspace: Workspace, task: str, unit_model: str, baseline: str, date: str) -> Path:
    """Return the path of a run's record, a JSON file with the inputs and the scores."""
    folder = workspace.root / "checkpoints" / f"{task}_{unit_model}_{baseline}_{date}"
    return folder / f"{baseline}.json"


def finish(
    workspace: Workspace, pair: Pair, record_file: Path, date: str, test: Sequence[Row | Entry],
    answers: Sequence[str], record: dict[str, Any],
) -> None:  # fmt: skip
    """Write the ``answers`` to ``test`` into the samples folder of ``date``, then write the record.

    ``record``: the inputs of the run, and the accuracy on valid.
    """
    path = workspace.samples(pair.task, pair.unit_model, f"{record_file.stem}_{date}", date)
    accuracy = write_answers(path, *zip(*((row.file, row.labels) for row in test)), answers)
    write_json(record_file, record | {"test": {"accuracy": accuracy}, "made_by": provenance()})
    print(
        f"{pair.task} {pair.unit_model}: {record['valid']['accuracy']:.2f} % right on valid, "
        f"{accuracy:.2f} % right on test -> {path}"
    )
