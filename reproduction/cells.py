"""The cells of the paper's tables, as paper.yaml lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError
from ulm_prompt.tasks import Pair, load_task

PAPER = Path(__file__).with_name("paper.yaml")
METHODS = ("PT", "PT-v2", "FT-LM", "FT-DM", "n-grams")
FIRST_SEED = 100501  # the published one


@dataclass
class TaskEntry:
    """A column's figure, and where its corpus is to be had."""

    metric: str = MISSING
    corpus: str = MISSING
    test_utterances: int | None = None


@dataclass
class Cell:
    """One method on one task and unit model; paper.yaml explains the fields."""

    method: str = MISSING
    task: str = MISSING
    unit_model: str = MISSING
    published: float | None = None
    parameters: str | None = None
    prompt: int | None = None
    own_lm: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.method} {self.task} {self.unit_model}"

    @property
    def pair(self) -> Pair:
        return Pair(self.task, self.unit_model, load_task(self.task))

    def run_name(self, seed: int) -> str:
        """What people know this cell's run by."""
        return f"{self} seed {seed}"

    def date(self, seed: int) -> str:
        """What the stages know this cell's run by."""
        return f"{self.method}-seed{seed}"


@dataclass
class Paper:
    """The whole of paper.yaml."""

    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)


def load_paper(path: Path) -> Paper:
    """Read a table of cells. Raises ``UserError`` for anything but what paper.yaml explains."""
    paper = load_config(Paper, path)
    for cell in paper.cells:
        if cell.method not in METHODS or cell.method not in paper.methods:
            raise UserError(f"{path}: {cell}: expected a method of {', '.join(METHODS)}")
        if cell.task not in paper.tasks:
            raise UserError(f"{path}: {cell}: its task is not among the tasks")
        if cell.method.startswith("PT") and not cell.prompt:
            raise UserError(f"{path}: {cell}: expected prompt: P, the published prompt's length")
    return paper
