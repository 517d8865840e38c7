"""One training run of a table or a study: the commands that make it, and what came of it.

A run is finished when its outputs exist and were made from the same things as they would be now:
the run's card is compared with the card that train.py would write.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from baselines.classifiers.answers import card_path
from pipeline.config import load_yaml
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.rows import SPLITS
from pipeline.runs import end_scripts, run_script
from pipeline.unit_models import lm_folder
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data import prompt_record
from ulm_prompt.prompt_data.prompt_record import BEST, PromptRecord, read_record
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import lm_hashes
from ulm_prompt.scoring.sample_file import made_from
from ulm_prompt.scoring.scores import score, scores_of, valid_curve
from ulm_prompt.training.prompt_run import plan

Command = list[str]


class Baseline(NamedTuple):
    """A script in baselines/, the name of its outputs, its config, and what it reads of the data
    of a downstream.
    """

    script: str
    name: str
    config: str
    inputs: str


BASELINES = {
    "FT-DM": Baseline("train_downstream.py", "downstream", "downstream.yaml", "manifest/{1}.tsv"),
    "n-grams": Baseline("unit_ngrams.py", "ngrams", "unit_ngrams.yaml", "{0}/{1}"),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A task, a unit model, a method and a seed. ``row``: the run's row in a table."""

    row: str
    pair: Pair
    seed: int
    date: str  # --date of training
    sample_date: str
    baseline: Baseline | None = None  # None: the unit LM is prompted or fine-tuned
    recipe: str | None = None  # None: the default of train.py
    fine_tune: bool = False
    prefix_prompt_length: int | None = None
    knobs: tuple[str, ...] = ()
    dtype: str = "auto"  # of decoding

    def __str__(self) -> str:
        return f"{self.row} {self.pair.task} {self.pair.unit_model} seed {self.seed}"


class Outcome(NamedTuple):
    """What a finished run gave. ``card``: what its JSON file says; scores in %."""

    card: dict[str, Any]
    test: dict[str, Any]  # scores; empty when test was not decoded
    curve: dict[int, dict[str, float]]  # update -> scores on valid; empty for a baseline


def outcome(run: Run, workspace: Workspace, test: bool = True) -> Outcome | None:
    """What the run gave; None when it, or (``test``) its decoding, is not finished.

    Raises ``UserError`` when its files are of a run on other data, on another LM or with other
    knobs, when they cannot be scored, and when stages 2 and 3 are not done.
    """
    if run.baseline:
        return _baseline_outcome(run, run.baseline, workspace)
    samples = _samples(run, workspace)
    if (test and samples is None) or not (card := _card(run, workspace)):
        return None
    scores = {}
    if test and run.pair.config.is_sequence:
        scores = scores_of(samples, workspace, run.pair.verbalizer)
    elif test:
        scores = score(samples)
    log = workspace.logs(run.pair.task, run.pair.unit_model, run.date) / "train.log"
    facts = dataclasses.asdict(card)
    facts |= facts.pop("run")
    return Outcome(facts, scores, valid_curve(log) if log.is_file() else {})


def by_row(outcomes: Mapping[Run, Outcome]) -> dict[str, list[Outcome]]:
    """The seeds of each row."""
    rows: dict[str, list[Outcome]] = {}
    for run, result in outcomes.items():
        rows.setdefault(run.row, []).append(result)
    return rows


def commands(run: Run, workspace: Workspace, test: bool = True) -> list[Command]:
    """What is still to be typed for the run; a command resumes where it was stopped."""
    pair = selection(run.pair, workspace)
    flags = [*pair, "--set", *run.knobs]
    if run.baseline:
        script = f"baselines/{run.baseline.script}"
        return [] if outcome(run, workspace) else [[script, "--date", run.date, *flags]]
    todo = []
    if _card(run, workspace) is None:
        train = ["ulm_prompt/train.py", "--date", run.date]
        train += ["--recipe", run.recipe] if run.recipe else []
        train += ["--fine_tune"] if run.fine_tune else []
        if run.prefix_prompt_length:
            train += ["--prefix_prompt_length", str(run.prefix_prompt_length)]
        todo.append([*train, *flags])
    if test and (todo or _samples(run, workspace) is None):
        dates = ["--model_date", run.date, "--sample_date", run.sample_date]
        todo.append(["ulm_prompt/sample.py", *dates, "--dtype", run.dtype, *pair])
    return todo


def selection(pair: Pair, workspace: Workspace) -> Command:
    """The flags by which a stage finds the pair's data."""
    words = ["--prompt_task", pair.task, "--unit_model", pair.unit_model]
    words += ["--verbalizer", pair.verbalizer] if pair.verbalizer else []
    return [*words, "--workspace", str(workspace.root)]


def run_all(
    tasks: Mapping[str, Iterable[Command]], jobs: int, one_core: bool = False
) -> dict[str, float]:
    """Run every task's commands in turn, ``jobs`` tasks at once, and show them as they run.

    A task that fails says why, and the others run all the same. Returns the seconds of each task
    that succeeded. ``one_core``: also when ``jobs`` is 1. SIGTERM ends the commands too.
    """
    environment = {"OMP_NUM_THREADS": "1"} if one_core or jobs > 1 else {}

    def seconds(name: str) -> float | None:
        start = time.monotonic()
        try:
            for command in tasks[name]:
                if run_script(command, f"{name} | " if jobs > 1 else "", environment):
                    return None
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return None
        return time.monotonic() - start

    def end(number: int, _: object) -> None:
        end_scripts()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    with ThreadPoolExecutor(jobs) as pool:
        spent = dict(zip(tasks, pool.map(seconds, tasks)))
    signal.signal(signal.SIGTERM, before)
    return {name: value for name, value in spent.items() if value is not None}


def stop_after(failed: Iterable[str]) -> None:
    """End the script, with exit code 1, when there are names of ``failed`` tasks."""
    if names := "; ".join(failed):
        print(f"error: {names}: see the messages above", file=sys.stderr)
        sys.exit(1)


def _card(run: Run, workspace: Workspace) -> PromptRecord | None:
    """The card of the run's finished training; None when training is to be started or resumed."""
    pair = run.pair
    folder = workspace.checkpoints(pair.task, pair.unit_model, run.date)
    if not (folder / BEST).is_file():
        return None
    args = argparse.Namespace(
        workspace=workspace.root,
        recipe=run.recipe,
        fine_tune=run.fine_tune,
        prefix_prompt_length=run.prefix_prompt_length,
        infix_prompt_length=0,
        set=list(run.knobs),
        dtype=None,
    )
    wanted, lm = plan(args, pair, folder), lm_folder(workspace, pair.unit_model)
    if card := prompt_record.ended(folder, wanted, lm_hashes(lm)):
        return card

    from ulm_prompt.prompt_lm.lm import load_unit_lm  # imports fairseq, which takes seconds

    wanted, card = dataclasses.replace(wanted, **load_unit_lm(lm).identity), read_record(folder)
    if changed := prompt_record.differences(card, wanted) if card else ["origin"]:
        raise _other_run(folder, changed[0])
    if any(card.training.get(knob) != wanted.training[knob] for knob in prompt_record.EXTENSIBLE):
        return None
    return card if card.trained_parameters else None  # an earlier version's, or another LM file


def _samples(run: Run, workspace: Workspace) -> Path | None:
    """The run's answers; None where there are none by its prompt."""
    names = run.pair.task, run.pair.unit_model, run.date
    prompt = workspace.checkpoints(*names) / BEST
    samples = workspace.samples(*names, run.sample_date)
    is_whole = samples.is_file() and prompt.is_file()
    return samples if is_whole and made_from(samples).get("prompt") == sha256(prompt) else None


def _baseline_outcome(run: Run, baseline: Baseline, workspace: Workspace) -> Outcome | None:
    """By the card that the baseline leaves last: its config, and hashes of its data."""
    path = card_path(workspace, run.pair.task, run.pair.unit_model, baseline.name, run.date)
    if not path.is_file():
        return None
    card = read_json(path, f"baselines/{baseline.script}")
    config = load_yaml(REPOSITORY / "baselines" / "config" / baseline.config)
    config["seed"] = run.seed
    folder = workspace.downstream_data(run.pair.config.downstream)
    data = {}
    for split in SPLITS:
        file = folder / baseline.inputs.format(run.pair.unit_model, split)
        data[split] = sha256(file) if file.is_file() else ""
    rows = card.get("rows")  # of n-grams, which are made again in two minutes
    if card["config"] == config and data == (rows or card["data"]["manifest"]):
        return Outcome(card, card["test"], {})
    if rows:
        return None
    raise _other_run(path.parent, "data" if card["config"] == config else "config")


def _other_run(folder: Path, changed: str) -> UserError:
    return UserError(
        f"{folder}: holds a run with another {changed} than would be trained now; remove the "
        "folder, or take another --workspace or --date"
    )
