"""Which prompt a word means: a task's name, ``hf:USER/NAME`` on the Hugging Face Hub (through the
optional huggingface_hub), or the path of a folder or file with its tensors.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError, near
from pipeline.unit_models import NAME
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

# the prompt that comes with the repository, beside its LM and k-means
SHIPPED = REPOSITORY / "pretrained_models" / "shipped" / "commands_moonshine100"
HUB = "hf:"
SHARED = [
    README,
    RECORD,
    TENSORS,
]  # a shared folder's files; no other goes to or comes from the Hub


def find_prompt(
    word: str, workspace: Workspace, unit_model: str | None = None, model_date: str | None = None
) -> Path:
    """The file with the prompt's tensors. A task means its only finished prompt in the workspace,
    of ``unit_model`` and ``model_date``. Raises ``UserError`` for no prompt, or several.
    """
    if word in task_names():
        return _only_prompt(word, workspace, unit_model, model_date)
    path = _downloaded(word) if word.startswith(HUB) else Path(word).expanduser()
    if path.name in (RECORD, README):
        path = path.parent
    if path.is_dir():
        for tensors in (path / TENSORS, path / BEST):
            if tensors.is_file():
                return tensors
        raise UserError(f"--prompt {word}: neither {TENSORS} nor {BEST} in this folder")
    if path.is_file() and path.suffix in (".pt", ".safetensors"):
        return path
    raise UserError(
        f"--prompt {word}: no such task{near(word, task_names())} of {', '.join(task_names())}, "
        "checkpoints folder, exported folder or .pt file"
    )


def shipped_prompt() -> Path:
    """The prompt that comes with the repository. Raises ``UserError`` where it is missing."""
    if not is_export(SHIPPED):
        raise UserError(
            f"{SHIPPED}: missing; git checkout pretrained_models restores it, and python "
            "pretrained_models/download.py moonshine100 what it needs; or name a --prompt"
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
    finished = [folder for folder in folders if _is_finished(folder, task)]
    if len(finished) == 1:
        return find_prompt(str(finished[0]), workspace)
    if finished:
        problem = f"{len(finished)} prompts: {', '.join(folder.name for folder in finished)}"
        remedy = "choose one with --unit_model or --model_date"
    else:
        trained = pattern.parent.glob(workspace.checkpoints(task, "*", "*").name)
        instead = near(pattern.name, [folder.name for folder in trained])
        instead = f"; {folders[0].name} is not finished" if folders else instead
        problem = f"no trained prompt at {pattern}{instead}"
        remedy = "train one with ulm_prompt/train.py"
    raise UserError(f"--prompt {task}: {problem}; {remedy}, or name a folder")


def _is_finished(folder: Path, task: str) -> bool:
    """Whether the folder holds a prompt of ``task``, and its record, if any, counts what was
    trained.
    """
    if not (is_export(folder) or (folder / BEST).is_file()):
        return False
    is_finished = (record := read_record(folder)) is None or record.trained_parameters > 0
    return is_finished and task_and_unit_model(folder / BEST)[0] == task


def check_hub_name(name: str, flag: str) -> None:
    """Raises ``UserError`` where ``name`` is not USER/NAME, or huggingface_hub is missing."""
    user, _, repository = name.partition("/")
    if not (NAME.fullmatch(user) and NAME.fullmatch(repository)):
        raise UserError(f"{flag}: expected USER/NAME, letters, digits, and _ . - in both")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError(
            f"{flag}: huggingface_hub is not installed; get it by "
            "python -m pip install huggingface_hub"
        ) from None


@functools.cache
def _downloaded(word: str) -> Path:
    """The folder of ``hf:USER/NAME[@REVISION]`` in huggingface_hub's cache, which also serves
    without the Hub.
    """
    flag = f"--prompt {word}"
    name, _, revision = word.removeprefix(HUB).partition("@")
    check_hub_name(name, flag)
    from huggingface_hub import snapshot_download

    with _hub_errors(flag):
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=SHARED))


def push(folder: Path, name: str) -> str:
    """Upload a shared prompt's files to the repository ``name``, new or not; returns the commit.
    Raises ``UserError`` where that fails.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="speechprompt")
    with _hub_errors(f"--push {name} (the folder {folder} is complete)"):
        api.create_repo(name, exist_ok=True)
        files = {"folder_path": folder, "allow_patterns": SHARED}
        message = f"Upload the prompt {folder.name}"
        return api.upload_folder(repo_id=name, commit_message=message, **files).oid


@contextlib.contextmanager
def _hub_errors(flag: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{flag}: the Hub cannot be reached, and it is not in the cache") from error
    except (errors.HTTPError, errors.LocalTokenNotFoundError) as error:  # httpx2's, which it uses
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if status in (401, 403, 404) or isinstance(error, errors.LocalTokenNotFoundError):
            reason = "no such repository or revision, or you may not use it; correct the name, or "
            reason += "log in (hf auth login, or HF_TOKEN)"
        raise UserError(f"{flag}: {reason}") from error
