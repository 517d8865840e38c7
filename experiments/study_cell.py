"""One training run of a study: trained, decoded, and its outcome recorded, each once."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.study_plan import LEARNABLE, Cell, run_stage, twin
from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.binaries import SOURCES
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import check_data_bin
from ulm_prompt.scoring.pictures import valid_curve
from ulm_prompt.scoring.scores import score, scores_of
from ulm_prompt.training.recipe import load_recipe

RECORD = "study.json"  # beside the run's checkpoints


@dataclass
class Outcome:
    """What came of a run; study.json holds it. ``made_from``: what it depends on."""

    made_from: dict[str, Any]
    trained_parameters: int
    updates: int  # at the best checkpoint
    valid: dict[str, float]  # there
    curve: list[dict[str, float]]  # every validation: num_updates, accuracy, label_loss
    test: dict[str, float] | None = None  # the scores of the test split, when they were asked for


@dataclass(frozen=True)
class Place:
    """Where a cell is trained: the user's workspace or a twin, and what it finds there."""

    cell: Cell
    pair: Pair
    workspace: Workspace
    made_from: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Of the run's checkpoints."""
        return self.workspace.checkpoints(self.pair.task, self.pair.unit_model, self.cell.date)

    def recorded(self) -> Outcome | None:
        """The outcome of the finished run; None where there is none, or of other settings."""
        path = self.folder / RECORD
        try:
            outcome = Outcome(**read_json(path, "ulm_prompt/study.py")) if path.exists() else None
        except TypeError:
            raise UserError(f"{path}: not a run's outcome; remove it and run again") from None
        return outcome if outcome and outcome.made_from == self.made_from else None

    def record(self, outcome: Outcome) -> None:
        write_json(self.folder / RECORD, dataclasses.asdict(outcome))


def place(cell: Cell, pair: Pair, workspace: Workspace) -> Place:
    """Make all that the cell needs before it can train; check its knobs.

    Raises ``UserError`` for an unknown recipe, knob or value, or when what stages 2 and 3
    wrote is missing or stale.
    """
    own = [f"{key}={value}" for key, value in pair.config.train.items()]
    recipe = load_recipe(cell.recipe, [*own, *cell.knobs])
    if cell.verbalizer is not None:
        method = "freq" if cell.verbalizer == LEARNABLE else cell.verbalizer
        workspace = twin(workspace, pair, method, cell.seed)
    check_data_bin(workspace, pair)
    sources = workspace.data_bin(pair.unit_model, pair.task) / SOURCES
    made_from = {
        "recipe": dataclasses.asdict(recipe),
        "fine_tune": cell.fine_tune,
        "prefix_prompt_length": cell.prefix_prompt_length,
        "data": read_json(sources, "ulm_prompt/fairseq_preprocess.py"),
        "lm": _hash(lm_folder(workspace, pair.unit_model) / "checkpoint_best.pt"),
    }
    return Place(cell, pair, workspace, made_from)


@functools.cache
def _hash(lm: Path) -> str:
    return sha256(lm)


def complete(here: Place, test: bool) -> Outcome:
    """Train the run, and decode the test split if asked to, unless that is done."""
    outcome = here.recorded()
    if outcome is None:
        outcome = _train(here)
        here.record(outcome)
    if test and outcome.test is None:
        outcome.test = _decode(here)
        here.record(outcome)
    return outcome


def _train(here: Place) -> Outcome:
    cell, pair = here.cell, here.pair
    flags = ["--date", cell.date, "--prompt_task", pair.task, "--unit_model", pair.unit_model]
    flags += ["--recipe", cell.recipe]
    length = ["--prefix_prompt_length", cell.prefix_prompt_length]
    flags += ["--fine_tune"] if cell.fine_tune else length
    run_stage("train", here.workspace, [*flags, "--set", *cell.knobs])
    card = read_json(here.folder / "prompt.json", "ulm_prompt/train.py")
    log = here.workspace.logs(pair.task, pair.unit_model, cell.date) / "train.log"
    names = ("num_updates", "accuracy", "label_loss")
    curve = [{name: scores[name] for name in names} for scores in valid_curve(log).values()]
    return Outcome(
        here.made_from, card["trained_parameters"], card["run"]["updates"], card["valid"], curve
    )


def _decode(here: Place) -> dict[str, float]:
    cell, pair = here.cell, here.pair
    flags = ["--model_date", cell.date, "--sample_date", cell.date]
    flags += ["--prompt_task", pair.task, "--unit_model", pair.unit_model]
    run_stage("sample", here.workspace, flags)
    path = here.workspace.samples(pair.task, pair.unit_model, cell.date, cell.date)
    if pair.config.is_sequence:
        return scores_of(path, here.workspace)
    return dataclasses.asdict(score(path))
