"""One training run of a table or a study: the commands that make it, and its results.

A run is finished if its outputs exist and their inputs have not changed. To find out, the run's
record is compared with the record that train.py would write now.
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

from baselines.classifiers.answers import CONFIG, record_path
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
from ulm_prompt.scoring.sample_file import origin_of
from ulm_prompt.scoring.scores import score, scores_of, valid_curve
from ulm_prompt.training.prompt_run import prepare

Command = list[str]
PUBLISHED_WIDTH, PUBLISHED_LAYERS = 1024, 12  # the released LMs


class Baseline(NamedTuple):
    """A script in baselines/."""

    script: str
    name: str  # in the names of the outputs
    config: str  # a file in baselines/config/
    inputs: str  # below the downstream's data folder; {0}: unit model, {1}: split


BASELINES = {
    "FT-DM": Baseline("train_downstream.py", "downstream", "downstream.yaml", "manifest/{1}.tsv"),
    "n-grams": Baseline("unit_ngrams.py", "ngrams", "unit_ngrams.yaml", "{0}/{1}"),
}


@dataclass(frozen=True, eq=False)
class Run:
    """One training run: a method on a task and a unit model, with one seed."""

    row: str  # the run's row in a table
    pair: Pair
    seed: int
    date: str  # --date of training
    sample_date: str
    baseline: Baseline | None = None  # None: the unit LM is prompted or fine-tuned
    recipe: str | None = None  # None: train.py's default
    fine_tune: bool = False
    prefix_prompt_length: int | None = None
    published_length: int | None = None  # instead: P on the released LM, see _prompt_length
    knobs: tuple[str, ...] = ()
    dtype: str = "auto"  # for decoding

    def __str__(self) -> str:
        return f"{self.row} {self.pair.task} {self.pair.unit_model} seed {self.seed}"


class Outcome(NamedTuple):
    """The results of a finished run. Scores are in %."""

    record: dict[str, Any]  # the contents of the run's JSON file
    test: dict[str, Any]  # scores; empty if test was not decoded
    curve: dict[int, dict[str, float]]  # update -> scores on valid; empty for a baseline


def outcome(run: Run, workspace: Workspace, test: bool = True) -> Outcome | None:
    """Return the run's results; None if training, or with ``test`` decoding, is not finished.

    Raises ``UserError`` if the files belong to a run on other data, on another LM or with other
    knobs, if they cannot be scored, or if stages 2 and 3 are not done.
    """
    if run.baseline:
        return _baseline_outcome(run, run.baseline, workspace)
    samples = _samples(run, workspace)
    if (test and samples is None) or not (record := _record(run, workspace)):
        return None
    scores = {}
    if test:
        is_text = run.pair.config.is_text
        scores = scores_of(samples, workspace) if is_text else score(samples)
    log = workspace.logs(run.pair.task, run.pair.unit_model, run.date) / "train.log"
    facts = dataclasses.asdict(record)
    facts |= facts.pop("run")
    return Outcome(facts, scores, valid_curve(log) if log.is_file() else {})


def make(
    runs: Sequence[Run], workspace: Workspace, jobs: int, test: bool = True, one_core: bool = False
) -> list[str]:
    """Finish all runs, ``jobs`` at the same time. Return the names of the runs that failed."""
    with_data = run_all({str(run): _data_commands(run, workspace) for run in runs}, 1)
    runnable = [run for run in runs if str(run) in with_data]
    commands = {str(run): _training_commands(run, workspace, test) for run in runnable}
    finished = run_all(commands, jobs, one_core)
    return [name for name in map(str, runs) if name not in finished]


def _data_commands(run: Run, workspace: Workspace) -> Iterator[Command]:
    """Yield the commands of stages 1 to 3 for missing inputs, except learn_kmeans and train_ulm."""
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


def _training_commands(run: Run, workspace: Workspace, test: bool) -> Iterator[Command]:
    """Yield the remaining commands: training and, with ``test``, decoding. Stopped ones resume."""
    selection = _selection(run.pair, workspace)
    flags = ["--date", run.date, *selection, "--set", *run.knobs]
    if run.baseline:
        if not outcome(run, workspace):
            yield [f"baselines/{run.baseline.script}", *flags]
        return
    if must_train := _record(run, workspace) is None:
        recipe = ["--recipe", run.recipe] if run.recipe else []
        recipe += ["--fine_tune"] if run.fine_tune else []
        if length := _prompt_length(run, workspace):
            recipe += ["--prefix_prompt_length", str(length)]
        yield ["ulm_prompt/train.py", *recipe, *flags]
    if test and (must_train or _samples(run, workspace) is None):
        dates = ["--model_date", run.date, "--sample_date", run.sample_date]
        yield ["ulm_prompt/sample.py", *dates, "--dtype", run.dtype, *selection]


def _selection(pair: Pair, workspace: Workspace) -> Command:
    """Return the flags that select the pair's data."""
    flags = ["--prompt_task", pair.task, "--unit_model", pair.unit_model]
    flags += ["--verbalizer", pair.verbalizer] if pair.verbalizer else []
    return [*flags, "--workspace", str(workspace.root)]


def has_rows(pair: Pair, workspace: Workspace) -> bool:
    """Check whether the rows of every split exist."""
    names = pair.config.downstream, pair.unit_model
    return all(workspace.rows(*names, split).is_file() for split in SPLITS)


def trained_parameters(length: int, width: int, layers: int) -> int:
    """Count a prompt's parameters: P D (1 + 2 L) + D for inputs, keys and values, and ``<s>``."""
    return length * width * (1 + 2 * layers) + width


def _prompt_length(run: Run, workspace: Workspace) -> int | None:
    """Return the run's prompt length. With ``published_length``, choose P so that the prompt has at
    most as many parameters as a prompt of that length on the released LM. For PT-v2, which is not
    in a paper, the learnable verbalizer counts too; for v2 and ``task`` it does not, as published.
    """
    if not run.published_length:
        return run.prefix_prompt_length

    from ulm_prompt.prompt_lm.lm import load_unit_lm  # imports fairseq, which takes seconds

    lm = load_unit_lm(lm_folder(workspace, run.pair.unit_model))
    width, layers = lm.untouched.decoder.embed_dim, len(lm.untouched.decoder.layers)
    budget = trained_parameters(run.published_length, PUBLISHED_WIDTH, PUBLISHED_LAYERS)
    if run.row == "PT-v2":
        budget -= len(load_verbal(workspace, run.pair)[1]) * len(lm.dictionary)
    return max(1, (budget - width) // (width * (1 + 2 * layers)))


def run_all(
    tasks: Mapping[str, Iterable[Command]], jobs: int, one_core: bool = False
) -> dict[str, float]:
    """Run each task's commands in order, ``jobs`` tasks at the same time, and print their output.

    If a task fails, the others continue. Returns the seconds of each task that succeeded.
    ``one_core``: use one core even if ``jobs`` is 1. SIGTERM also ends the commands.
    """
    environment = {"OMP_NUM_THREADS": "1"} if one_core or jobs > 1 else {}

    def run_task(name: str) -> float | None:
        start = time.monotonic()
        try:
            for command in tasks[name]:
                if run_script(command, f"{name} | " if jobs > 1 else "", environment):
                    return None
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return None
        return time.monotonic() - start

    def stop(number: int, _: object) -> None:
        end_scripts()
        sys.exit(128 + number)

    previous_handler = signal.signal(signal.SIGTERM, stop)
    with ThreadPoolExecutor(jobs) as pool:
        seconds = dict(zip(tasks, pool.map(run_task, tasks)))
    signal.signal(signal.SIGTERM, previous_handler)
    return {name: value for name, value in seconds.items() if value is not None}


def stop_after(failed: Iterable[str]) -> None:
    """End the script with exit code 1 if ``failed`` contains names of tasks."""
    if names := "; ".join(failed):
        print(f"error: {names}: see the messages above", file=sys.stderr)
        sys.exit(1)


def _record(run: Run, workspace: Workspace) -> PromptRecord | None:
    """Return the record of the finished training; None if training must start or resume."""
    pair = run.pair
    folder = workspace.checkpoints(pair.task, pair.unit_model, run.date)
    if not (folder / BEST).is_file():
        return None
    args = argparse.Namespace(
        workspace=workspace.root, recipe=run.recipe, fine_tune=run.fine_tune, dtype=None,
        prefix_prompt_length=_prompt_length(run, workspace), infix_prompt_length=0,
        set=list(run.knobs),
    )  # fmt: skip
    expected, settings = prepare(args, pair, folder)
    if settings is None:  # the run has ended, so train.py would not train
        return expected
    record = read_record(folder)
    if record is None or (changed := differences(record, expected)):
        raise _other_run(folder, f"with another {changed[0]}" if record else "without a record")
    same_limits = all(record.training.get(knob) == expected.training[knob] for knob in EXTENSIBLE)
    return record if same_limits and record.trained_parameters else None  # from an earlier version


def result_path(run: Run, workspace: Workspace) -> Path:
    """Return the path of the last file that the run writes."""
    names = run.pair.task, run.pair.unit_model
    if run.baseline:
        return record_path(workspace, *names, run.baseline.name, run.date)
    return workspace.samples(*names, run.date, run.sample_date)


def _samples(run: Run, workspace: Workspace) -> Path | None:
    """Return the path of the run's answers; None if missing, or made with another prompt."""
    prompt = workspace.checkpoints(run.pair.task, run.pair.unit_model, run.date) / BEST
    samples = result_path(run, workspace)
    both_exist = samples.is_file() and prompt.is_file()
    return samples if both_exist and origin_of(samples).get("prompt") == sha256(prompt) else None


def _baseline_outcome(run: Run, baseline: Baseline, workspace: Workspace) -> Outcome | None:
    """Return the baseline's results if the config and data hashes in the record are current."""
    path = result_path(run, workspace)
    if not path.is_file():
        return None
    record = read_json(path, f"baselines/{baseline.script}")
    config = load_yaml(CONFIG / baseline.config) | {"seed": run.seed}
    folder, name = workspace.downstream_data(run.pair.config.downstream), run.pair.unit_model
    data = hashes({split: folder / baseline.inputs.format(name, split) for split in SPLITS})
    rows = record.get("rows")  # n-grams only: stale ones run again, which takes two minutes
    if record["config"] == config and data == (rows or record["data"]["manifest"]):
        return Outcome(record, record["test"], {})
    if rows:
        return None
    changed = "data" if record["config"] == config else "config"
    raise _other_run(path.parent, f"with another {changed}")


def _other_run(folder: Path, difference: str) -> UserError:
    remedy = "remove the folder, or choose another --workspace (study.py: or another --date)"
    return UserError(f"{folder}: holds a run {difference}; {remedy}")
