"""What a cell needs and does not find, and how to get it."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import load_yaml
from pipeline.rows import SPLITS
from pipeline.unit_models import PretrainedFile, find_unit_model, lm_folder
from pipeline.workspace import REPOSITORY, Workspace
from reproduction.cells import Cell, Paper

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
    if known is None:
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
