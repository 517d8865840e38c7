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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from baselines.classifiers.answers import CONFIG, card_path
from pipeline.config import load_yaml
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.rows import SPLITS
from pipeline.runs import end_scripts, run_script
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.prompt_record import (
    BEST,
    EXTENSIBLE,
    PromptRecord,
    differences,
    read_record,
)
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import has_data_bin, hashes, load_verbal
from ulm_prompt.scoring.sample_file import made_from
from ulm_prompt.scoring.scores import score, scores_of, valid_curve
from ulm_prompt.training.prompt_run import prepare

Command = list[str]
PUBLISHED_WIDTH, PUBLISHED_LAYERS = 1024, 12  # of the released LMs


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
    published_length: int | None = None  # P of as many trained numbers on the released LM, instead
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
    if test:
        is_text = run.pair.config.is_sequence
        scores = scores_of(samples, workspace, run.pair.verbalizer) if is_text else score(samples)
    log = workspace.logs(run.pair.task, run.pair.unit_model, run.date) / "train.log"
    facts = dataclasses.asdict(card)
    facts |= facts.pop("run")
    return Outcome(facts, scores, valid_curve(log) if log.is_file() else {})


def make(
    runs: Sequence[Run], workspace: Workspace, jobs: int, test: bool = True, one_core: bool = False
) -> list[str]:
    """Make the runs that are not finished, ``jobs`` at once; return the names of what failed."""
    prepared = run_all({str(run): _preparation(run, workspace) for run in runs}, 1)
    at_hand = [run for run in runs if str(run) in prepared]
    todo = {str(run): _commands(run, workspace, test) for run in at_hand}
    made = run_all(todo, jobs, one_core)
    return [name for name in map(str, runs) if name not in made]


def _preparation(run: Run, workspace: Workspace) -> Iterator[Command]:
    """The commands that make what the run reads, as far as it is not made: stages 1 to 3."""
    pair, flags = run.pair, _selection(run.pair, workspace)
    names = ["--downstream", pair.config.downstream, "--unit_model", pair.unit_model]
    stage_1 = [*names, "--workspace", str(workspace.root)]
    if run.baseline == BASELINES["FT-DM"]:
        if not outcome(run, workspace):
            yield ["preprocess/runner.py", "--action", "generate_manifest", *stage_1]
            yield ["baselines/layer_means.py", *stage_1]
        return
    if not has_rows(pair, workspace):
        for action in ("generate_manifest", "quantized", "postprocess"):
            yield ["preprocess/runner.py", "--action", action, *stage_1]
    if run.baseline or has_data_bin(workspace, pair):
        return
    if pair.verbalizer:
        method = pair.verbalizer.partition("_")[0]
        yield ["ulm_prompt/verbalizer.py", "--method", method, "--seed", str(run.seed), *flags]
    else:
        for script in ("make_data", "gen_labelspace", "verbalizer"):
            yield [f"ulm_prompt/{script}.py", *flags]
    yield ["ulm_prompt/fairseq_preprocess.py", *flags]


def _commands(run: Run, workspace: Workspace, test: bool) -> Iterator[Command]:
    """What is still to be typed for the run; a command resumes where it was stopped."""
    pair = _selection(run.pair, workspace)
    flags = ["--date", run.date, *pair, "--set", *run.knobs]
    if run.baseline:
        if not outcome(run, workspace):
            yield [f"baselines/{run.baseline.script}", *flags]
        return
    if is_new := _card(run, workspace) is None:
        recipe = ["--recipe", run.recipe] if run.recipe else []
        recipe += ["--fine_tune"] if run.fine_tune else []
        if length := _prompt_length(run, workspace):
            recipe += ["--prefix_prompt_length", str(length)]
        yield ["ulm_prompt/train.py", *recipe, *flags]
    if test and (is_new or _samples(run, workspace) is None):
        dates = ["--model_date", run.date, "--sample_date", run.sample_date]
        yield ["ulm_prompt/sample.py", *dates, "--dtype", run.dtype, *pair]


def _selection(pair: Pair, workspace: Workspace) -> Command:
    """The flags by which a stage finds the pair's data."""
    words = ["--prompt_task", pair.task, "--unit_model", pair.unit_model]
    words += ["--verbalizer", pair.verbalizer] if pair.verbalizer else []
    return [*words, "--workspace", str(workspace.root)]


def has_rows(pair: Pair, workspace: Workspace) -> bool:
    """Whether the corpus is quantised already."""
    names = pair.config.downstream, pair.unit_model
    return all(workspace.rows(*names, split).is_file() for split in SPLITS)


def trained_numbers(length: int, width: int, layers: int) -> int:
    """P D (1 + 2 L) + D: input, key and value vectors, and ``<s>``."""
    return length * width * (1 + 2 * layers) + width


def _prompt_length(run: Run, workspace: Workspace) -> int | None:
    """The run's own, or the P that gives at most as many trained numbers, a learnable verbalizer's
    among them, as the published P has on the released LM.
    """
    if not run.published_length:
        return run.prefix_prompt_length

    from ulm_prompt.prompt_lm.lm import load_unit_lm  # imports fairseq, which takes seconds

    lm = load_unit_lm(lm_folder(workspace, run.pair.unit_model))
    width, layers = lm.untouched.decoder.embed_dim, len(lm.untouched.decoder.layers)
    budget = trained_numbers(run.published_length, PUBLISHED_WIDTH, PUBLISHED_LAYERS)
    if run.row == "PT-v2":
        budget -= len(load_verbal(workspace, run.pair)[1]) * len(lm.dictionary)
    return max(1, (budget - width) // (width * (1 + 2 * layers)))


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
        workspace=workspace.root, recipe=run.recipe, fine_tune=run.fine_tune, dtype=None,
        prefix_prompt_length=_prompt_length(run, workspace), infix_prompt_length=0,
        set=list(run.knobs),
    )  # fmt: skip
    wanted, settings = prepare(args, pair, folder)
    if settings is None:  # train.py would find that it has ended
        return wanted
    card = read_record(folder)
    if changed := differences(card, wanted) if card else ["origin"]:
        raise _other_run(folder, changed[0])
    lasts_as_long = all(card.training.get(knob) == wanted.training[knob] for knob in EXTENSIBLE)
    return card if lasts_as_long and card.trained_parameters else None  # an earlier version's


def result_path(run: Run, workspace: Workspace) -> Path:
    """The file that the run leaves last."""
    names = run.pair.task, run.pair.unit_model
    if run.baseline:
        return card_path(workspace, *names, run.baseline.name, run.date)
    return workspace.samples(*names, run.date, run.sample_date)


def _samples(run: Run, workspace: Workspace) -> Path | None:
    """The run's answers; None where there are none by its prompt."""
    prompt = workspace.checkpoints(run.pair.task, run.pair.unit_model, run.date) / BEST
    samples = result_path(run, workspace)
    is_whole = samples.is_file() and prompt.is_file()
    return samples if is_whole and made_from(samples).get("prompt") == sha256(prompt) else None


def _baseline_outcome(run: Run, baseline: Baseline, workspace: Workspace) -> Outcome | None:
    """By the card that the baseline leaves last: its config, and hashes of its data."""
    path = result_path(run, workspace)
    if not path.is_file():
        return None
    card = read_json(path, f"baselines/{baseline.script}")
    config = load_yaml(CONFIG / baseline.config) | {"seed": run.seed}
    folder, name = workspace.downstream_data(run.pair.config.downstream), run.pair.unit_model
    data = hashes({split: folder / baseline.inputs.format(name, split) for split in SPLITS})
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
