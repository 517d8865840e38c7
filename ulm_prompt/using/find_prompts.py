"""Which prompt a ``--prompt`` means: a task's name, a checkpoints folder, an exported folder or a
file of either.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data.tasks import task_names
from ulm_prompt.using.prompt_record import RECORD, TENSORS, is_export, is_name

BEST = "checkpoint_best.pt"
# the prompt that comes with the repository, beside its LM and k-means
SHIPPED = REPOSITORY / "pretrained_models" / "shipped" / "commands_moonshine100"
_FOLDER = re.compile(r"(?P<task>.+?)_(?P<unit_model>.+)_checkpoints_(?P<date>.+)")


def find_prompt(
    word: str, workspace: Workspace, unit_model: str | None = None, model_date: str | None = None
) -> Path:
    """The file with the prompt's tensors.

    A task's name stands for its only finished checkpoint in the workspace; ``unit_model`` and
    ``model_date`` narrow the search. Raises ``UserError`` where there is none, or several.
    """
    if word in task_names():
        return _of_task(word, workspace, unit_model, model_date)
    path = Path(word).expanduser()
    if path.is_dir():
        for name in (TENSORS, BEST):
            if (path / name).is_file():
                return path / name
        raise UserError(f"--prompt {word}: neither {TENSORS} nor {BEST} in this folder")
    if path.name in (RECORD, "README.md") and is_export(path.parent):
        return path.parent / TENSORS
    if path.is_file() and path.suffix in (".pt", ".safetensors"):
        return path
    known = ", ".join(task_names())
    raise UserError(
        f"--prompt {word}: no such task ({known}), checkpoints folder, exported folder or .pt file"
    )


def shipped_prompt() -> Path:
    """The prompt that comes with the repository. Raises ``UserError`` where it is missing."""
    if not is_export(SHIPPED):
        raise UserError(
            f"{SHIPPED}: the prompt of the repository is missing; restore it (git checkout "
            "pretrained_models) and run python pretrained_models/download.py moonshine100, or "
            "name another prompt with --prompt"
        )
    return SHIPPED


def is_shipped(path: Path) -> bool:
    """Whether ``path`` holds the tensors of the repository's prompt."""
    return path.resolve() == (SHIPPED / TENSORS).resolve()


def task_and_unit_model(path: Path) -> tuple[str, str]:
    """What the checkpoint at ``path`` was trained for, by its card or the name of its folder."""
    folder = path.resolve().parent
    if (folder / RECORD).is_file():
        card = read_json(folder / RECORD, "ulm_prompt/train.py")
        if {"task", "unit_model"} <= card.keys():
            for name in ("task", "unit_model"):
                if not is_name(card[name]):  # it takes part in paths
                    found = ascii(card[name])[:60]
                    raise UserError(f"{folder / RECORD}: {name}: expected a name, found {found}")
            return card["task"], card["unit_model"]
    match = _FOLDER.fullmatch(folder.name)
    if match is None:
        raise UserError(
            f"{path}: nothing says which task it is for; expected a folder like "
            "KS_hubert100_checkpoints_DATE, or export it first with ulm_prompt/export.py"
        )
    tasks = [task for task in task_names() if folder.name.startswith(f"{task}_")]
    if not tasks:
        return match["task"], match["unit_model"]
    task = max(tasks, key=len)
    return task, folder.name.removeprefix(f"{task}_").rsplit("_checkpoints_", 1)[0]


def _of_task(
    task: str, workspace: Workspace, unit_model: str | None, model_date: str | None
) -> Path:
    pattern = workspace.checkpoints(task, unit_model or "*", model_date or "*")
    folders = sorted(pattern.parent.glob(pattern.name))
    found = [
        folder
        for folder in folders
        if _is_finished(folder) and task_and_unit_model(folder / BEST)[0] == task
    ]
    if not found:
        running = f"; {folders[0].name} is not finished" if folders else ""
        raise UserError(
            f"--prompt {task}: no trained prompt at {pattern}{running}; train one with "
            "ulm_prompt/train.py, or name a folder"
        )
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise UserError(
            f"--prompt {task}: {len(found)} prompts: {names}; choose one with --unit_model or "
            "--model_date, or name its folder"
        )
    return found[0] / (TENSORS if is_export(found[0]) else BEST)


def _is_finished(folder: Path) -> bool:
    """Training has ended: the card then counts what was trained. A published one has no card."""
    if is_export(folder):
        return True
    if not (folder / BEST).is_file():
        return False
    if not (folder / RECORD).is_file():
        return True
    card = read_json(folder / RECORD, "ulm_prompt/train.py")
    return bool(card.get("trained_parameters"))
