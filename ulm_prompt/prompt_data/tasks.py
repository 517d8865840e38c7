"""The prompt tasks: one YAML each in ulm_prompt/config/, and which of them have data in a
workspace.
"""

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
MAX_LABELS = 200  # as fairseq; the published script cuts at 1,500 symbols, the row among them
PAPER_ORDER = ("KS", "IC", "ASR", "SF")  # the columns of the paper's tables; other tasks follow


@dataclass
class TaskConfig:
    """One task's file in ulm_prompt/config/; every field is explained there."""

    downstream: str = MISSING
    labels_per_utterance: int = MISSING
    prefix_prompt_length: int = MISSING
    recipe: str = "published"
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def is_sequence(self) -> bool:
        """Whether an utterance has any number of labels: a text, not a class."""
        return self.labels_per_utterance == 0


@dataclass(frozen=True)
class Pair:
    """A task and a unit model that have data together. ``verbalizer``: the name under which
    another map than verbal.json's is kept.
    """

    task: str
    unit_model: str
    config: TaskConfig
    verbalizer: str = ""

    @property
    def data_name(self) -> str:
        """The name of its binaries' folder."""
        return f"{self.task}-{self.verbalizer}" if self.verbalizer else self.task


def label_limit(max_labels: int | None, longest: int) -> int:
    """Where an answer is cut; ``longest``: the most labels that an utterance of train has."""
    return max_labels or max(MAX_LABELS, longest + longest // 4)


def task_names() -> list[str]:
    """Every task with a config file, the paper's first."""
    return list(in_paper_order({path.stem: path for path in CONFIG.glob("*.yaml")}))


def in_paper_order(by_task: dict[str, Any]) -> dict[str, Any]:
    """The same mapping with the paper's tasks first, then the others by name."""
    order = sorted(by_task, key=lambda name: ((*PAPER_ORDER, name).index(name), name))
    return {name: by_task[name] for name in order}


def load_task(name: str) -> TaskConfig:
    """Read a task's config. Raises ``UserError`` for an unknown task or key."""
    if name not in (known := task_names()):
        expected = f"expected one of {', '.join(known)}, or add {CONFIG / name}.yaml"
        raise UserError(f"--prompt_task {name}: no such task{near(name, known)}; {expected}")
    return load_config(TaskConfig, CONFIG / f"{name}.yaml")


def add_selection(parser: argparse.ArgumentParser, verbalizer: bool = False) -> None:
    """Add the flags that narrow a stage's work; with ``verbalizer`` also that of a second map."""
    if verbalizer:
        kept = "use the map and data kept under this name (default: verbal.json)"
        parser.add_argument("--verbalizer", default="", metavar="NAME", help=kept)
    parser.add_argument("--prompt_task", help="only this task, for example KS (default: all)")
    parser.add_argument("--unit_model", help="only this unit model, for example hubert100")
    add_workspace(parser)


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add the flag that every stage has."""
    folder = "the folder of data and outputs"
    parser.add_argument("--workspace", type=Path, default=REPOSITORY, help=folder)


def add_dtype(add_argument: Callable[..., object]) -> None:
    """Add the flag that says in which dtype a prompt answers."""
    choices = ("auto", "float32", "bfloat16", "float16")
    auto = "auto: bfloat16 where the machine computes it much faster, else float32"
    add_argument("--dtype", default="auto", choices=choices, help=auto)


def print_next(args: argparse.Namespace, *words: object, verbalizer: bool = True) -> None:
    """Print the command of the next stage, with the data that ``args`` chose. ``verbalizer``:
    whether that stage has the flag.
    """
    flags: list[str] = []
    for name in ("verbalizer", "prompt_task", "unit_model", "workspace")[not verbalizer :]:
        value = getattr(args, name, None)
        if value and value != REPOSITORY:
            flags += [f"--{name}", str(value)]
    print(f"next: python {shlex.join([*map(str, words), *flags])}")


def find_pairs(args: argparse.Namespace, needs_lm: bool = False) -> list[Pair]:
    """The pairs of task and unit model with a train split in the workspace, narrowed by the flags.

    With ``needs_lm`` and no ``--unit_model``, unit models without an LM are left out, and named.
    Raises ``UserError`` when a flag names something unknown, or there are no pairs.
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
        raise UserError(
            f"{args.workspace / 'preprocess'}: no quantised data for {wanted}; make it with "
            f"preprocess/runner.py{f'; there is {known}' if known else ''}"
        )
    if args.unit_model or not needs_lm:
        return pairs
    with_lm = [pair for pair in pairs if lm_folder(workspace, pair.unit_model).is_dir()]
    for pair in pairs if with_lm else ():
        if pair not in with_lm:
            print(f"{pair.task} {pair.unit_model}: passed over, it has no unit LM yet")
    return with_lm or pairs


def pair_of(workspace: Workspace, samples: Path) -> Pair | None:
    """The task and unit model of a sample file, by its name; None without rows in the workspace.

    Raises ``UserError`` without them when the answers are texts: units alone cannot be scored.
    """
    tasks = [task for task in task_names() if samples.stem.startswith(f"samples_{task}_")]
    pairs = [
        pair
        for pair in _pairs(workspace, tasks)
        if samples.stem.startswith(f"samples_{pair.task}_{pair.unit_model}_")
    ]
    for task in [] if pairs else tasks:
        if (config := load_task(task)).is_sequence:
            folder = workspace.downstream_data(config.downstream)
            raise UserError(f"{samples}: the rows of {task} are not in {folder}; score it there")
    return max(pairs, key=lambda pair: len(pair.unit_model), default=None)


def _pairs(workspace: Workspace, tasks: Iterable[str], verbalizer: str = "") -> list[Pair]:
    unit_models: dict[str, list[str]] = {}
    for split in sorted(workspace.root.glob("preprocess/*/data/*/train")):
        unit_models.setdefault(split.parents[2].name, []).append(split.parent.name)
    pairs = []
    for task in tasks:
        text = (CONFIG / f"{task}.yaml").read_text(encoding="utf-8", errors="replace")
        if any(downstream in text for downstream in unit_models):  # to parse all takes 0.1 s
            config = load_task(task)
            of_task = unit_models.get(config.downstream, ())
            pairs += [Pair(task, unit_model, config, verbalizer) for unit_model in of_task]
    return pairs
