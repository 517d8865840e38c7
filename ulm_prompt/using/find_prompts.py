"""Find the prompt for a value of --prompt: the name of a task, ``hf:USER/NAME`` on the Hugging Face
Hub (needs the optional huggingface_hub), or the path of a folder or file with the tensors.
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

# the prompt in the repository; the LM and k-means are in the parent folder
SHIPPED = REPOSITORY / "pretrained_models" / "shipped" / "commands_moonshine100"
HUB = "hf:"
# the files of a shared folder; only these files are uploaded to or downloaded from the Hub
SHARED = [README, RECORD, TENSORS]


def find_prompt(
    word: str, workspace: Workspace, unit_model: str | None = None, model_date: str | None = None
) -> Path:
    """Return the path of the prompt's tensors. The name of a task means the only finished prompt in
    the workspace with this task, ``unit_model`` and ``model_date``. Raises ``UserError`` for no
    prompt, or several.
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
        raise UserError(f"--prompt {word}: this folder contains neither {TENSORS} nor {BEST}")
    if path.is_file() and path.suffix in (".pt", ".safetensors"):
        return path
    raise UserError(
        f"--prompt {word}: no such task{near(word, task_names())}, folder or file; expected a "
        f"task ({', '.join(task_names())}), checkpoints folder, exported folder or .pt file"
    )


def shipped_prompt() -> Path:
    """Return the folder of the repository's prompt. Raises ``UserError`` if it is missing."""
    if not is_export(SHIPPED):
        raise UserError(
            f"{SHIPPED}: missing; restore it with git checkout pretrained_models, get its encoder "
            "with python pretrained_models/download.py moonshine100, or name another --prompt"
        )
    return SHIPPED


def is_shipped(path: Path) -> bool:
    """Return whether ``path`` is the tensors file of the repository's prompt."""
    return path.resolve() == (SHIPPED / TENSORS).resolve()


def task_and_unit_model(path: Path) -> tuple[str, str]:
    """Return task and unit model of the prompt at ``path``, from the record or the folder name."""
    if record := read_record(path.parent):  # before resolve(): files in the Hub's cache are links
        return record.task, record.unit_model
    folder = path.resolve().parent
    tasks = [task for task in task_names() if folder.name.startswith(f"{task}_")]
    task = max(tasks, key=len, default="")
    unit_model = folder.name.removeprefix(f"{task}_").rpartition("_checkpoints_")[0]
    if not (task and unit_model):
        raise UserError(
            f"{path}: unknown task; expected a folder name like KS_hubert100_checkpoints_DATE, or "
            "a folder written by ulm_prompt/export.py"
        )
    return task, unit_model


def _only_prompt(
    task: str, workspace: Workspace, unit_model: str | None, model_date: str | None
) -> Path:
    pattern = workspace.checkpoints(task, unit_model or "*", model_date or "*")
    folders = sorted(pattern.parent.glob(pattern.name))
    finished = [folder for folder in folders if _has_finished_prompt(folder, task)]
    if len(finished) == 1:
        return find_prompt(str(finished[0]), workspace)
    if finished:
        problem = f"{len(finished)} prompts: {', '.join(folder.name for folder in finished)}"
        remedy = "choose one with --unit_model or --model_date"
    else:
        trained = pattern.parent.glob(workspace.checkpoints(task, "*", "*").name)
        hint = near(pattern.name, [folder.name for folder in trained])
        hint = f"; {folders[0].name} is not finished" if folders else hint
        problem = f"no trained prompt at {pattern}{hint}"
        remedy = "train one with ulm_prompt/train.py"
    raise UserError(f"--prompt {task}: {problem}; {remedy}, or name a folder")


def _has_finished_prompt(folder: Path, task: str) -> bool:
    """Return whether ``folder`` contains a finished prompt of ``task``, of any run."""
    if not (is_export(folder) or (folder / BEST).is_file()):
        return False
    record = read_record(folder)  # trained_parameters is 0 until training has finished
    is_finished = record is None or record.trained_parameters > 0
    return is_finished and task_and_unit_model(folder / BEST)[0] == task


def check_hub_name(name: str, flag: str) -> None:
    """Raise ``UserError`` if ``name`` is not USER/NAME, or huggingface_hub is missing."""
    user, _, repository = name.partition("/")
    if not (NAME.fullmatch(user) and NAME.fullmatch(repository)):
        raise UserError(f"{flag}: expected USER/NAME, with only letters, digits, _ . and -")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError(
            f"{flag}: huggingface_hub is not installed; run python -m pip install huggingface_hub"
        ) from None


@functools.cache
def _downloaded(word: str) -> Path:
    """Download ``hf:USER/NAME[@REVISION]``. Return the folder in huggingface_hub's cache, which
    also works without a network.
    """
    flag = f"--prompt {word}"
    name, _, revision = word.removeprefix(HUB).partition("@")
    check_hub_name(name, flag)
    from huggingface_hub import snapshot_download

    with _hub_errors(flag):
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=SHARED))


def push(folder: Path, name: str) -> str:
    """Upload the files of a shared prompt to the repository ``name``, which is created if missing.
    Returns the commit. Raises ``UserError`` if the upload fails.
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
    """Raise ``UserError`` in place of the errors of huggingface_hub."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{flag}: not in the cache, and the Hub cannot be reached") from error
    except (errors.HTTPError, errors.LocalTokenNotFoundError) as error:  # HTTPError is httpx2's
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if status in (401, 403, 404) or isinstance(error, errors.LocalTokenNotFoundError):
            reason = "no such repository or revision, or no permission; correct the name, or "
            reason += "log in (hf auth login, or HF_TOKEN)"
        raise UserError(f"{flag}: {reason}") from error
