"""Which prompt a word means: a task's name, ``hf:USER/NAME``, or the path of a folder or file with
its tensors.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError, near
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data.prompt_record import (
    BEST,
    README,
    RECORD,
    TENSORS,
    is_export,
    read_record,
)
from ulm_prompt.prompt_data.tasks import task_names
from ulm_prompt.using import hub

# the prompt that comes with the repository, beside its LM and k-means
SHIPPED = REPOSITORY / "pretrained_models" / "shipped" / "commands_moonshine100"


def find_prompt(
    word: str, workspace: Workspace, unit_model: str | None = None, model_date: str | None = None
) -> Path:
    """The file with the prompt's tensors.

    A task's name means its only finished prompt in the workspace; ``unit_model`` and ``model_date``
    narrow the search. ``hf:USER/NAME`` is downloaded. Any other word is a path. Raises
    ``UserError`` for no prompt, or several.
    """
    if word in task_names():
        return _only_prompt(word, workspace, unit_model, model_date)
    path = hub.downloaded(word) if word.startswith(hub.PREFIX) else Path(word).expanduser()
    if path.name in (RECORD, README):
        path = path.parent
    if path.is_dir():
        for tensors in (path / TENSORS, path / BEST):
            if tensors.is_file():
                return tensors
        raise UserError(f"--prompt {word}: neither {TENSORS} nor {BEST} in this folder")
    if path.is_file() and path.suffix in (".pt", ".safetensors"):
        return path
    meant = near(word, task_names())
    raise UserError(
        f"--prompt {word}: no such task{meant} of {', '.join(task_names())}, checkpoints folder, "
        "exported folder or .pt file"
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
    """What the prompt at ``path`` was trained for, by its record or the name of its folder."""
    if record := read_record(path.parent):  # the Hub's cache has links to files without a folder
        return record.task, record.unit_model
    folder = path.resolve().parent
    tasks = [task for task in task_names() if folder.name.startswith(f"{task}_")]
    task = max(tasks, key=len, default="")
    unit_model = folder.name.removeprefix(f"{task}_").rpartition("_checkpoints_")[0]
    if not (task and unit_model):
        raise UserError(
            f"{path}: nothing says which task it is for; expected a folder like "
            "KS_hubert100_checkpoints_DATE, or export it first with ulm_prompt/export.py"
        )
    return task, unit_model


def _only_prompt(
    task: str, workspace: Workspace, unit_model: str | None, model_date: str | None
) -> Path:
    pattern = workspace.checkpoints(task, unit_model or "*", model_date or "*")
    folders = sorted(pattern.parent.glob(pattern.name))
    finished = [
        folder
        for folder in folders
        if (is_export(folder) or (folder / BEST).is_file())
        and task_and_unit_model(folder / BEST)[0] == task
        # training has ended when the record counts what was trained; a published one has none
        and ((record := read_record(folder)) is None or record.trained_parameters > 0)
    ]
    if not finished:
        trained = pattern.parent.glob(workspace.checkpoints(task, "*", "*").name)
        instead = near(pattern.name, [folder.name for folder in trained])
        if folders:
            instead = f"; {folders[0].name} is not finished"
        raise UserError(
            f"--prompt {task}: no trained prompt at {pattern}{instead}; train one with "
            "ulm_prompt/train.py, or name a folder"
        )
    if len(finished) > 1:
        names = ", ".join(folder.name for folder in finished)
        raise UserError(
            f"--prompt {task}: {len(finished)} prompts: {names}; choose one with --unit_model or "
            "--model_date, or name its folder"
        )
    return find_prompt(str(finished[0]), workspace)
