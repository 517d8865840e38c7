"""The cells of the paper's tables, as paper.yaml lists them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from omegaconf import MISSING

from pipeline.config import load_config, load_yaml
from pipeline.errors import UserError
from pipeline.rows import SPLITS
from pipeline.unit_models import PretrainedFile, find_unit_model, lm_folder
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task

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


# What a cell needs and does not find, and how to get it.


LABELS = "labels.json"  # what stage 1 leaves beside the rows
DEMO = "demo.json"  # the demo leaves it in its corpora


def missing(cell: Cell, paper: Paper, workspace: Workspace) -> list[str]:
    """A line for each missing file, ``path: how to get it``; none when the cell can be made."""
    if cell.method == "FT-DM" and cell.pair.config.is_sequence:
        return [f"{cell.task}: its downstream model (SUPERB's, 43M parameters) is not built here"]
    if cell.method == "FT-DM":
        return _corpus(cell, paper, workspace) + _speech_model(cell, workspace, kmeans=False)
    lines = []
    rows = workspace.rows(cell.pair.config.downstream, cell.unit_model, "train").parent
    if not has_rows(cell, workspace):
        lines += _corpus(cell, paper, workspace) + _speech_model(cell, workspace, kmeans=True)
        if lines:
            lines.append(f"{rows}: or units that were quantised elsewhere, instead of these")
    elif cell.pair.config.is_sequence and not (rows / LABELS).is_file():
        lines.append(f"{rows / LABELS}: what each label number of these rows stands for")
    if cell.method != "n-grams" and not has_lm(cell, workspace):
        lines.append(_lm(cell, workspace))
    return lines


def has_rows(cell: Cell, workspace: Workspace) -> bool:
    """Whether the corpus is quantised already. The demo's is not the corpus."""
    downstream = cell.pair.config.downstream
    rows = [workspace.rows(downstream, cell.unit_model, split) for split in SPLITS]
    quantised_here = (rows[0].parent / "quantized").is_dir()
    if quantised_here and (_root(cell, workspace) / DEMO).is_file():
        return False
    return all(path.is_file() for path in rows)


def has_lm(cell: Cell, workspace: Workspace) -> bool:
    """Whether a unit LM is there."""
    folder = lm_folder(workspace, cell.unit_model)
    return all((folder / name).is_file() for name in ("checkpoint_best.pt", "dict.txt"))


def _root(cell: Cell, workspace: Workspace) -> Path:
    """The corpus folder."""
    config = load_yaml(REPOSITORY / "preprocess" / cell.pair.config.downstream / "config.yaml")
    return workspace.root / Path(config.datarc.root_path).expanduser()


def _corpus(cell: Cell, paper: Paper, workspace: Workspace) -> list[str]:
    root = _root(cell, workspace)
    if not root.is_dir():
        return [f"{root}: {paper.tasks[cell.task].corpus}"]
    if (root / DEMO).is_file():
        return [
            f"{root}: holds the demo's corpus; take another --workspace for "
            f"{paper.tasks[cell.task].corpus}"
        ]
    return []


def _speech_model(cell: Cell, workspace: Workspace, kmeans: bool) -> list[str]:
    known = find_unit_model(cell.unit_model, workspace)
    if not known.is_described:
        return [f"{cell.unit_model}: describe it in pretrained_models/my_unit_models.yaml"]
    lines = []
    if known.checkpoint is not None:
        lines += _file(known.checkpoint, _download(cell, workspace, "checkpoint"))
    if kmeans and not known.km_path.is_file():
        lines.append(f"{known.km_path}: {_download(cell, workspace, 'kmeans')}")
    return lines


def _file(file: PretrainedFile, how: str) -> list[str]:
    return [f"{part}: {how}" for part in file.parts if not part.is_file()]


def _lm(cell: Cell, workspace: Workspace) -> str:
    train = f"python ulm_prompt/train_ulm.py --unit_model {cell.unit_model} --date tables"
    return (
        f"{lm_folder(workspace, cell.unit_model)}: {_download(cell, workspace, 'lm')}, or {train} "
        f"--config medium{_flag(workspace)}"
    )


def _download(cell: Cell, workspace: Workspace, kind: str) -> str:
    script = "python pretrained_models/download.py"
    return f"{script} {cell.unit_model} --only {kind}{_flag(workspace)}"


def _flag(workspace: Workspace) -> str:
    return "" if workspace.root == REPOSITORY else f" --workspace {workspace.root}"


# What a cell needs to know of a unit LM, read once: the file of a large one takes seconds.


class UnitLMFacts(NamedTuple):
    """What runs are tied to, and what a prompt's size depends on."""

    fingerprint: str
    symbols: int
    width: int
    layers: int


def unit_lm_facts(folder: Path) -> UnitLMFacts:
    """Of the LM in ``folder``. Raises ``UserError`` where it is missing or cannot be used."""
    times = (folder / name for name in ("checkpoint_best.pt", "dict.txt"))
    return _read(folder, tuple(path.stat().st_mtime_ns for path in times if path.is_file()))


@functools.cache
def _read(folder: Path, _times: tuple[int, ...]) -> UnitLMFacts:
    from ulm_prompt.prompt_lm.lm import load_unit_lm

    lm = load_unit_lm(folder)
    decoder = lm.model.decoder
    return UnitLMFacts(
        lm.fingerprint,
        len(lm.dictionary),
        decoder.embed_tokens.embedding_dim,
        len(decoder.layers),
    )
