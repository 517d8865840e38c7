"""Torch files: read as tensors and plain settings, never code; written whole or not at all."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode

from pipeline.errors import UserError
from pipeline.files import writing

# What checkpoints hold beside tensors. Each of these only stores the values it is given.
_SETTINGS = [argparse.Namespace, OrderedDict, defaultdict, dict, list, int, Any]
_OMEGACONF = [DictConfig, ListConfig, ContainerMetadata, Metadata, AnyNode]
_NUMPY = [
    *(
        (function, f"{package}.multiarray.{name}")
        for name, function in (
            ("scalar", np.core.multiarray.scalar),
            ("_reconstruct", np.core.multiarray._reconstruct),
        )
        for package in ("numpy.core", "numpy._core")
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")},
]
torch.serialization.add_safe_globals([*_SETTINGS, *_OMEGACONF, *_NUMPY])

_MOST_VALUES = 200_000  # in a checkpoint; real ones have some thousand
_PLAIN = {str, int, float, bool, type(None)}
_MOST_SHARED = 8  # times that a byte of the file may appear in tensors; tied weights are in two


def allow_fairseq() -> None:
    """From here on ``torch.load(weights_only=True)``, its default, accepts fairseq's own
    checkpoints: its meters and ``Dictionary`` too only store what they are given.
    """
    from fairseq import meters  # fairseq takes seconds to import; not every reader needs it
    from fairseq.data import Dictionary

    kept = [meters.AverageMeter, meters.TimeMeter, meters.StopwatchMeter, meters.MetersDict]
    torch.serialization.add_safe_globals([*kept, Dictionary])


def save_torch(value: Any, path: Path) -> None:
    """Write a torch file atomically. Raises ``OSError`` when the disk is full."""
    with writing(path, "wb") as handle:  # torch.save(path) would raise RuntimeError there
        torch.save(value, handle)


def load_torch(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    ``mapped``: leave the tensors in the file until they are copied, so that an optimizer's state
    takes no memory; the file must not be written over until then. (Before 1.6 torch wrote another
    format, which is read whole.)
    Raises ``UserError`` when it is missing, is no torch file, would run code, or declares more than
    it holds: what is returned is no larger than a few times the file, also when it is copied.
    """
    if not path.is_file():
        raise UserError(f"{path}: checkpoint not found")
    try:
        is_archive = _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_archive)
        _check_contents(state, path.stat().st_size)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint that can be read without running its code "
            f"({_reason(error)}); get it again from its source"
        ) from None
    except Exception as error:  # torch's reader raises anything on bytes that are no checkpoint
        raise UserError(f"{path}: damaged or not a torch checkpoint ({_reason(error)})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: expected a checkpoint dictionary, found {type(state).__name__}")
    return state


def _reason(error: Exception) -> str:
    return ascii((str(error) or type(error).__name__).split("\n")[0][:300])[1:-1]


def _check_archive(path: Path) -> bool:
    """Whether it is a zip archive, as torch writes since 1.6. Raises ``ValueError`` for a zip bomb:
    torch never compresses what it writes.
    """
    with open(path, "rb") as handle:
        if handle.read(2) != b"PK":
            return False
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > path.stat().st_size:
        raise ValueError(f"declares {declared:,} bytes, the file has {path.stat().st_size:,}")
    return True


def _check_contents(state: Any, size: int) -> None:
    """Raises ``ValueError`` for what a file of ``size`` bytes may not hold: tensors larger than
    their storage, lists in lists that grow beyond measure where they are copied, arrays of objects.
    """
    waiting, count, declared = [state], 0, 0
    while waiting:
        value = waiting.pop()
        if type(value) in _PLAIN:
            continue
        inner: Any = ()
        if isinstance(value, torch.Tensor):
            declared += _check_tensor(value)
        elif isinstance(value, np.ndarray):
            declared += value.nbytes
            if value.dtype.hasobject:
                raise ValueError("an array of objects")
        elif isinstance(value, dict):
            inner = (*value.keys(), *value.values())
        elif isinstance(value, (list, tuple)):
            inner = value
        elif isinstance(value, (argparse.Namespace, DictConfig, ListConfig, AnyNode)):
            inner = [entry for name, entry in vars(value).items() if name != "_parent"]
        count += len(inner)
        if count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values")
        if declared > _MOST_SHARED * size:
            raise ValueError(f"declares tensors of {declared:,} bytes, the file has {size:,}")
        waiting.extend(inner)


def _check_tensor(tensor: torch.Tensor) -> int:
    """The bytes that the tensor takes. Raises ``ValueError`` where they are not all there."""
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    if not plain or tensor.device.type != "cpu":
        raise ValueError("a tensor of another kind than numbers in their order")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} that is not all in the file")
    return size


def save_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write named tensors atomically, in a format that holds nothing but tensors."""
    contents = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    with writing(path, "wb") as handle:
        handle.write(contents)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors onto the CPU. Raises ``UserError`` when the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: not found")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not a safetensors file ({reason}); get it again") from None
