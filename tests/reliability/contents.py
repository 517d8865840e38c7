"""What a workspace holds, by file, in a form in which two runs of the same work are equal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.torch_files import allow_fairseq, load_torch
from ulm_prompt.scoring.scores import valid_curve

# how and when it was made, not what: the command line, TensorBoard's file names, seconds spent
_APART = ("provenance.json",)
_HOW = ("made_by", "command", "git_revision", "versions", "files", "checkpoint")


def contents(workspace: Path) -> dict[str, str]:
    """File -> digest, temporaries and locks apart. Raises for a file that cannot be read whole:
    half-written.
    """
    found = {}
    for path in sorted(workspace.rglob("*")):
        name = str(path.relative_to(workspace))
        skipped = path.name in _APART or "tfevents" in name or name.startswith("corpora")
        passing = any(map(_passing, path.relative_to(workspace).parts))
        if path.is_file() and not skipped and not passing:
            found[name] = _digest(path)
    return found


def temporaries(workspace: Path) -> list[Path]:
    """What a finished run must not leave. A lock that a killed one left holds nobody."""
    found = (path for path in workspace.rglob("*") if _passing(path.name))
    return [path for path in found if path.suffix != ".lock"]


def _passing(name: str) -> bool:
    """Whether it is the name of a lock, of what is not yet whole or no longer needed."""
    return name.startswith(".") or name.endswith((".tmp", ".old", ".part"))


def _digest(path: Path) -> str:
    if path.suffix == ".pt":
        allow_fairseq()
        return _of_tensors(load_torch(path))
    if path.name == "train.log":
        scores = {
            update: {name: value for name, value in each.items() if name not in ("wps", "wall")}
            for update, each in valid_curve(path).items()
        }
        return _of_json(scores)
    if path.suffix == ".json":
        return _of_json(_without_how(json.loads(path.read_text())))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _without_how(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_how(entry) for key, entry in value.items() if key not in _HOW}


def _of_tensors(state: Any) -> str:
    """Of the weights and the optimizer's moments; not of the seconds that a checkpoint counts."""
    digest = hashlib.sha256()

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                walk(f"{name}.{key}", value[key])

    for part in ("model", "last_optimizer_state"):
        walk(part, state.get(part))
    return digest.hexdigest()
