"""The prompt tasks, one YAML file each in ulm_prompt/config/, and their data in a workspace."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError, near
from pipeline.unit_models import lm_folder
from pipeline.workspace import REPOSITORY, Workspace

CONFIG = REPOSITORY / "ulm_prompt" / "config"
MAX_LABELS = 200  # as in fairseq; the published script cuts at 1,500 symbols, row included
PAPER_ORDER = ("KS", "IC", "ASR", "SF")  # the columns of the paper's tables; other tasks follow


@dataclass
class TaskConfig:
    """The YAML file of a task. The comments in ulm_prompt/config/KS.yaml explain every field."""

    downstream: str = MISSING
    labels_per_utterance: int = MISSING
    prefix_prompt_length: int = MISSING
    recipe: str = "published"
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether an utterance may have any number of labels: a text, not a class."""
        return self.labels_per_utterance == 0


@dataclass(frozen=True)
class Pair:
    """A task and a unit model with common data. ``verbalizer``: the name of a second verbal map,
    or empty for the map in verbal.json.
    """

    task: str
    unit_model: str
    config: TaskConfig
    verbalizer: str = ""

    @property
    def data_name(self) -> str:
        """The name of the folder of the binaries."""
        return f"{self.task}-{self.verbalizer}" if self.verbalizer else self.task


def label_limit(max_labels: int | None, longest: int) -> int:
    """Return the most labels in an answer. ``longest``: the most labels of any train utterance."""
    return max_labels or max(MAX_LABELS, longest + longest // 4)


def task_names() -> list[str]:
    """Return the name of every task with a config file, the paper's tasks first."""
    return list(in_paper_order({path.stem: path for path in CONFIG.glob("*.yaml")}))


def in_paper_order(by_task: dict[str, Any]) -> dict[str, Any]:
    """Return ``by_task`` with the paper's tasks first, then the other tasks by name."""
    order = sorted(by_task, key=lambda name: ((*PAPER_ORDER, name).index(name), name))
    return {name: by_task[name] for name in order}


def load_task(name: str) -> TaskConfig:
    """Read a task's config. Raises ``UserError`` for an unknown task or key."""
    if name not in (known := task_names()):
        expected = f"expected one of {', '.join(known)}, or add {CONFIG / name}.yaml"
        raise UserError(f"--prompt_task {name}: no such task{near(name, known)}; {expected}")
    return load_config(TaskConfig, CONFIG / f"{name}.yaml")


def add_selection(parser: argparse.ArgumentParser, verbalizer: bool = False) -> None:
    """Add the flags that choose tasks, unit models and, with ``verbalizer``, the verbal map."""
    if verbalizer:
        name = "use the verbal map and data of this name (default: verbal.json)"
        parser.add_argument("--verbalizer", default="", metavar="NAME", help=name)
    parser.add_argument("--prompt_task", help="only this task, e.g. KS (default: all)")
    parser.add_argument("--unit_model", help="only this unit model, e.g. hubert100 (default: all)")
    add_workspace(parser)


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add the flag that every stage has."""
    folder = "folder of data and outputs (default: the repository)"
    parser.add_argument("--workspace", type=Path, default=REPOSITORY, help=folder)


def add_dtype(add_argument: Callable[..., object]) -> None:
    """Add the flag that sets the number format in which a prompt answers."""
    choices = ("auto", "float32", "bfloat16", "float16")
    auto = "auto: bfloat16 if the machine computes it much faster, else float32"
    add_argument("--dtype", default="auto", choices=choices, help=auto)


def print_next(args: argparse.Namespace, *words: object, verbalizer: bool = True) -> None:
    """Print the command of the next stage, with the flags in ``args`` that choose the data.
    ``verbalizer``: whether the next stage has the flag --verbalizer.
    """
    flags: list[str] = []
    for name in ("verbalizer", "prompt_task", "unit_model", "workspace"):
        value = getattr(args, name, None)
        if value and value != REPOSITORY and (verbalizer or name != "verbalizer"):
            flags += [f"--{name}", str(value)]
    print(f"next: python {shlex.join([*map(str, words), *flags])}")


def find_pairs(args: argparse.Namespace, needs_lm: bool = False) -> list[Pair]:
    """Return the pairs of task and unit model that have a train split and match the flags.

    With ``needs_lm`` and no ``--unit_model``, it skips and prints unit models without an LM, unless
    all are. Raises ``UserError`` for an unknown name in a flag, and if no pair matches.
    """
    workspace, verbalizer = Workspace(args.workspace), getattr(args, "verbalizer", "")
    if args.prompt_task:
        load_task(args.prompt_task)
    tasks = [args.prompt_task] if args.prompt_task else task_names()
    pairs = [
        pair
        for pair in _pairs(workspace, tasks, verbalizer)
        if args.unit_model in (None, pair.unit_model)
    ]
    if not pairs:
        wanted = f"{args.prompt_task or 'any task'} with {args.unit_model or 'any unit model'}"
        known = ", ".join(f"{p.task} {p.unit_model}" for p in _pairs(workspace, task_names()))
        rows = workspace.rows("*", args.unit_model or "*", "train")
        raise UserError(
            f"{rows}: no quantised data for {wanted}; make it with "
            f"preprocess/runner.py{f'; existing data: {known}' if known else ''}"
        )
    if args.unit_model or not needs_lm:
        return pairs
    with_lm = [pair for pair in pairs if lm_folder(workspace, pair.unit_model).is_dir()]
    for pair in pairs if with_lm else ():
        if pair not in with_lm:
            print(f"{pair.task} {pair.unit_model}: skipped, it has no unit LM yet")
    return with_lm or pairs


def pair_of(workspace: Workspace, samples: Path) -> Pair | None:
    """Return the task and unit model in a sample file's name, or None if their rows are missing.

    Raises ``UserError`` if the rows of a text task are missing: units alone cannot be scored.
    """
    tasks = [task for task in task_names() if samples.stem.startswith(f"samples_{task}_")]
    pairs = [
        pair
        for pair in _pairs(workspace, tasks)
        if samples.stem.startswith(f"samples_{pair.task}_{pair.unit_model}_")
    ]
    for task in [] if pairs else tasks:
        if (config := load_task(task)).is_text:
            folder = workspace.downstream_data(config.downstream)
            remedy = "score it in the workspace that contains them"
            raise UserError(f"{samples}: the rows of {task} are not in {folder}; {remedy}")
    return max(pairs, key=lambda pair: len(pair.unit_model), default=None)


def _pairs(workspace: Workspace, tasks: Iterable[str], verbalizer: str = "") -> list[Pair]:
    unit_models: dict[str, list[str]] = {}
    for split in sorted(workspace.root.glob("preprocess/*/data/*/train")):
        unit_models.setdefault(split.parents[2].name, []).append(split.parent.name)
    pairs = []
    for task in tasks:
        text = (CONFIG / f"{task}.yaml").read_text(encoding="utf-8", errors="replace")
        if any(downstream in text for downstream in unit_models):  # parsing every file takes 0.1 s
            config = load_task(task)
            names = unit_models.get(config.downstream, ())
            pairs += [Pair(task, name, config, verbalizer) for name in names]
    return pairs
