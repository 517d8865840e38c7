"""Torch files: read tensors and plain settings without running code; write atomically."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode

from pipeline.errors import UserError, is_out_of_memory
from pipeline.files import kind_of_file, writing

# Classes in checkpoints, in addition to tensors. Each class only stores the values it is given.
_SETTINGS = [argparse.Namespace, OrderedDict, defaultdict, dict, list, int, Any]
_OMEGACONF = [DictConfig, ListConfig, ContainerMetadata, Metadata, AnyNode]
_NUMPY = [
    *(
        (value.__reduce__()[0], f"{package}.multiarray.{name}")
        for name, value in (("scalar", np.float64()), ("_reconstruct", np.array(0)))
        for package in ("numpy.core", "numpy._core")  # before numpy 2, and since numpy 2
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")},
]
torch.serialization.add_safe_globals([*_SETTINGS, *_OMEGACONF, *_NUMPY])

# Modules that fairseq imports for the scores of other tasks: slow to import, not used here
_UNUSED = {
    "sacrebleu": {"__version__": "2", "BLEU": argparse.Namespace(TOKENIZERS=["none", "13a"])},
    "scipy": {},
    "scipy.stats": {"pearsonr": None, "spearmanr": None},
    "sklearn": {"metrics": None},
    "sklearn.metrics": {"f1_score": None, "matthews_corrcoef": None},
}


def allow_fairseq() -> None:
    """Let ``torch.load`` accept fairseq's meters and ``Dictionary``, which fairseq's checkpoints
    contain. These classes too only store the values they are given.
    """
    with _stand_ins():
        from fairseq import meters
        from fairseq.data import Dictionary

    classes = [meters.AverageMeter, meters.TimeMeter, meters.StopwatchMeter, meters.MetersDict]
    torch.serialization.add_safe_globals([*classes, Dictionary])


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Make fairseq import less. Stand-in modules replace the packages in ``_UNUSED``. hydra stores
    no settings of fairseq (they are for hydra's command line). ``os.listdir`` hides fairseq's
    files: its packages would list, and then import, all their models and tasks.
    """
    from hydra.core.config_store import ConfigStore  # installed only with fairseq

    (folder,) = importlib.util.find_spec("fairseq").submodule_search_locations
    listdir = os.listdir

    def listdir_without_fairseq(path: str = ".") -> list[str]:
        return [] if str(path).startswith(folder) else listdir(path)

    stand_ins = _UNUSED.keys() - sys.modules.keys()
    for name in stand_ins:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(_UNUSED[name])
    hidden = mock.patch.object(os, "listdir", listdir_without_fairseq)
    try:
        with mock.patch.object(ConfigStore, "store"), hidden:
            yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def save_torch(value: Any, path: Path) -> None:
    """Write a torch file atomically. Raises ``OSError`` if the disk is full."""
    with writing(path, "wb") as handle:  # torch.save(path) would always raise RuntimeError
        try:
            torch.save(value, handle)
        except RuntimeError as error:  # closing the zip file fails too, and hides the first error
            if not isinstance(error.__context__, OSError):
                raise
            raise error.__context__ from None


def load_torch(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    ``mapped``: keep the tensors in the file until they are copied, so that an optimizer's state
    takes no memory. The file must not be overwritten before that.
    Raises ``UserError`` if the file is missing, is no torch file, or belongs to another project, or
    if reading it would run code.
    """
    state = load_torch_values(path, mapped)
    if not isinstance(state, dict):
        raise UserError(f"{path}: expected a checkpoint dictionary, found {type(state).__name__}")
    if foreign := _foreign(state):
        raise UserError(f"{path}: this is {foreign}")
    return state


def load_torch_values(path: Path, mapped: bool = False) -> Any:
    """Read any value from a torch file, for example a tensor or a list (see ``load_torch``)."""
    if path.is_dir():
        raise UserError(f"{path}: this is {kind_of_file(path)}; expected a fairseq checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: checkpoint not found; correct the path, or put the file there")
    try:
        mapped = mapped and zipfile.is_zipfile(path)  # torch before 1.6 wrote another format
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises many types on bytes that are no checkpoint
        if is_out_of_memory(error):
            raise
        message = ascii((str(error) or type(error).__name__).split("\n")[0][:300])[1:-1]
        reason = f"damaged or not a torch checkpoint ({message})"
        if kind := kind_of_file(path):
            reason = f"this is {kind}; expected a torch checkpoint"
        elif isinstance(error, pickle.UnpicklingError):
            reason = f"this checkpoint cannot be read without running code from it ({message})"
        raise UserError(f"{path}: {reason}; get it again from its source") from None


_SPEECH = "expected fairseq's checkpoint; pretrained_models/download.py hubert100 gets HuBERT Base"
_LM = "expected a fairseq unit LM; pretrained_models/download.py gets one, train_ulm.py trains one"
_FOREIGN = {  # a pattern for a key of the checkpoint -> what the checkpoint is
    r".*feature_projection\.projection\.weight": "a Hugging Face HuBERT or wav2vec 2.0; expected "
    "the model's folder, with config.json, or fairseq's checkpoint",
    r"(transformer\.)?(h\.0\..*|wte\.weight)|model\.(decoder\.)?(layers\.0\..*|embed_tokens\.weight)"
    r"|gpt_neox\.layers\.0\..*|lm_head\.weight": f"a Hugging Face language model; {_LM}",
    "Featurizer|Downstream|Upstream": f"a downstream model of s3prl; {_SPEECH}",
    "task_cfg|model_cfg|model_weight": f"a speech encoder in s3prl's format; {_SPEECH}",
}


def _foreign(state: Mapping[Any, Any]) -> str | None:
    """Return what another project's checkpoint is and what is expected instead; else None."""
    for pattern, kind in _FOREIGN.items():
        if any(isinstance(name, str) and re.fullmatch(pattern, name) for name in state):
            return kind
    if isinstance(settings := state.get("cfg"), dict) and "extractor_mode" in settings:
        return f"a WavLM, which has another kind of attention; {_SPEECH}"
    return None


def save_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write named tensors atomically, in a format that stores only tensors."""
    contents = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    with writing(path, "wb") as handle:
        handle.write(contents)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors onto the CPU. Raises ``UserError`` if the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: not found")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        reason = kind_of_file(path) or str(error).split("\n")[0]
        raise UserError(f"{path}: not a safetensors file ({reason}); get it again") from None
