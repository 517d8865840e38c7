"""Prompts on the Hugging Face Hub: ``hf:USER/NAME`` gets one, ``push`` shares one, and the facts
that the Hub reads at the top of a README. huggingface_hub is an optional package.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.unit_models import NAME
from ulm_prompt.prompt_data.prompt_record import README, RECORD, TENSORS, PromptRecord

PREFIX = "hf:"
_FILES = [README, RECORD, TENSORS]  # no other is uploaded or downloaded
_LICENCES = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "lgpl-3.0",
    "mit", "mpl-2.0", "unlicense",
}  # fmt: skip
_METRICS = {"accuracy": "accuracy", "macro F1": "f1", "slot type F1": "f1"}
_METRICS |= {"WER": "wer", "CER": "cer", "slot value CER": "cer"}  # our scores, as the Hub calls it


def check(name: str, flag: str) -> None:
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
def downloaded(word: str) -> Path:
    """The local folder of ``hf:USER/NAME`` or ``hf:USER/NAME@REVISION``, in huggingface_hub's
    cache, which serves where the Hub cannot be reached.

    Raises ``UserError`` for a repository that does not exist or cannot be reached.
    """
    flag = f"--prompt {word}"
    name, _, revision = word.removeprefix(PREFIX).partition("@")
    check(name, flag)
    from huggingface_hub import snapshot_download

    with _errors(flag):
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_FILES))


def push(folder: Path, name: str) -> str:
    """Upload a shared prompt's files to the repository ``name``, which is made where it does not
    exist. Returns the commit. Raises ``UserError`` where that fails.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="speechprompt")
    with _errors(f"--push {name} (the folder {folder} is complete)"):
        api.create_repo(name, exist_ok=True)
        message = f"Upload the prompt {folder.name}"
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=_FILES, commit_message=message
        )
    return commit.oid


@contextlib.contextmanager
def _errors(flag: str) -> Iterator[None]:
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


def front_matter(record: PromptRecord, corpus: str, name: str) -> str:
    """The YAML between ``---`` that the Hub reads: licence, corpus, task, scores in %."""
    kind = "automatic-speech-recognition" if record.is_text else "audio-classification"
    facts: dict[str, Any] = {
        "library_name": "speechprompt",
        "pipeline_tag": kind,
        "tags": ["speechprompt", "prompt-tuning", "speech", record.unit_model],
        "datasets": [corpus],
    }
    if record.license:
        licence = record.license.lower()
        known = licence in _LICENCES
        facts["license"] = licence if known else "other"
        if not known:
            facts["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.")
    metrics = [
        {"type": _METRICS[score], "name": title, "value": value}
        for title, value in record.test.items()
        if (score := title.removesuffix(" within labels")) in _METRICS
    ]
    if metrics:
        facts["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
        dataset = {"type": corpus, "name": corpus, "split": "test"}
        task = {"type": kind, "name": record.task}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        facts["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"
