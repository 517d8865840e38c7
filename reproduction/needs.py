"""What a cell needs and does not find, and how to get it."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import load_yaml
from pipeline.rows import SPLITS
from pipeline.unit_models import PretrainedFile, find_unit_model, lm_folder
from pipeline.workspace import REPOSITORY, Workspace
from reproduction.cells import Cell, Paper

DOWNLOAD = "python pretrained_models/download.py"


def missing(cell: Cell, paper: Paper, workspace: Workspace) -> list[str]:
    """A line for each missing file, ``path: how to get it``; none when the cell can be made."""
    if cell.method == "FT-DM" and cell.pair.config.is_sequence:
        return [f"{cell.task}: its downstream model (SUPERB's, 43M parameters) is not built here"]
    if cell.method == "FT-DM":
        return _corpus(cell, paper, workspace) + _speech_model(cell, workspace, kmeans=False)
    lines = []
    if not has_rows(cell, workspace):
        lines += _corpus(cell, paper, workspace) + _speech_model(cell, workspace, kmeans=True)
        if lines:
            rows = workspace.rows(cell.pair.config.downstream, cell.unit_model, "train").parent
            lines.append(f"{rows}: or units that were quantised elsewhere, instead of these")
    return lines if cell.method == "n-grams" else lines + _lm(cell, workspace)


def has_rows(cell: Cell, workspace: Workspace) -> bool:
    """Whether the corpus is quantised already."""
    downstream = cell.pair.config.downstream
    return all(workspace.rows(downstream, cell.unit_model, split).is_file() for split in SPLITS)


def _corpus(cell: Cell, paper: Paper, workspace: Workspace) -> list[str]:
    downstream = cell.pair.config.downstream
    config = load_yaml(REPOSITORY / "preprocess" / downstream / "config.yaml")
    root = workspace.root / Path(config.datarc.root_path).expanduser()
    return [] if root.is_dir() else [f"{root}: {paper.tasks[cell.task].corpus}"]


def _speech_model(cell: Cell, workspace: Workspace, kmeans: bool) -> list[str]:
    known = find_unit_model(cell.unit_model, workspace)
    if known is None:
        return [f"{cell.unit_model}: describe it in pretrained_models/my_unit_models.yaml"]
    lines = []
    if known.checkpoint is not None:
        lines += _file(known.checkpoint, f"{DOWNLOAD} {cell.unit_model} --only checkpoint")
    if kmeans and not known.km_path.is_file():
        lines.append(f"{known.km_path}: {DOWNLOAD} {cell.unit_model} --only kmeans")
    return lines


def _file(file: PretrainedFile, how: str) -> list[str]:
    return [f"{part}: {how}" for part in file.parts if not part.is_file()]


def _lm(cell: Cell, workspace: Workspace) -> list[str]:
    folder = lm_folder(workspace, cell.unit_model)
    if all((folder / name).is_file() for name in ("checkpoint_best.pt", "dict.txt")):
        return []
    train = f"python ulm_prompt/train_ulm.py --unit_model {cell.unit_model}"
    return [f"{folder}: {DOWNLOAD} {cell.unit_model} --only lm, or {train}"]
