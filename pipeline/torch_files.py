"""Torch files: read as tensors and plain settings, never code; written whole or not at all."""

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

# What checkpoints hold beside tensors. Each of these only stores the values it is given.
_SETTINGS = [argparse.Namespace, OrderedDict, defaultdict, dict, list, int, Any]
_OMEGACONF = [DictConfig, ListConfig, ContainerMetadata, Metadata, AnyNode]
_NUMPY = [
    *(
        (value.__reduce__()[0], f"{package}.multiarray.{name}")
        for name, value in (("scalar", np.float64()), ("_reconstruct", np.array(0)))
        for package in ("numpy.core", "numpy._core")  # before numpy 2 and since
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")},
]
torch.serialization.add_safe_globals([*_SETTINGS, *_OMEGACONF, *_NUMPY])

# What fairseq imports for the scores of other tasks: slow, and not used here
_UNUSED = {
    "sacrebleu": {"__version__": "2", "BLEU": argparse.Namespace(TOKENIZERS=["none", "13a"])},
    "scipy": {},
    "scipy.stats": {"pearsonr": None, "spearmanr": None},
    "sklearn": {"metrics": None},
    "sklearn.metrics": {"f1_score": None, "matthews_corrcoef": None},
}


def allow_fairseq() -> None:
    """From here on ``torch.load`` accepts what fairseq's own checkpoints hold: its meters and
    ``Dictionary`` too only store what they are given.
    """
    with _stand_ins():
        from fairseq import meters
        from fairseq.data import Dictionary

    kept = [meters.AverageMeter, meters.TimeMeter, meters.StopwatchMeter, meters.MetersDict]
    torch.serialization.add_safe_globals([*kept, Dictionary])


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Let imports find modules with the names of ``_UNUSED`` instead of the packages, let hydra
    forget the settings of what fairseq registers (they are for hydra's command line), and let
    fairseq's packages list none of their models and tasks, all of which they would import.
    """
    from hydra.core.config_store import ConfigStore  # with fairseq alone

    (folder,) = importlib.util.find_spec("fairseq").submodule_search_locations
    listdir = os.listdir

    def listed(path: str = ".") -> list[str]:
        return [] if str(path).startswith(folder) else listdir(path)

    absent = _UNUSED.keys() - sys.modules.keys()
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(_UNUSED[name])
    try:
        with mock.patch.object(ConfigStore, "store"), mock.patch.object(os, "listdir", listed):
            yield
    finally:
        for name in absent:
            del sys.modules[name]


def save_torch(value: Any, path: Path) -> None:
    """Write a torch file atomically. Raises ``OSError`` when the disk is full."""
    with writing(path, "wb") as handle:  # torch.save(path) would raise RuntimeError there
        torch.save(value, handle)


def load_torch(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    ``mapped``: leave the tensors in the file until they are copied, so that an optimizer's state
    takes no memory; the file must not be written over until then.
    Raises ``UserError`` when it is missing, no torch file, another project's, or would run code.
    """
    state = load_torch_values(path, mapped)
    if not isinstance(state, dict):
        raise UserError(f"{path}: expected a checkpoint dictionary, found {type(state).__name__}")
    if foreign := _foreign(state):
        raise UserError(f"{path}: this is {foreign}")
    return state


def load_torch_values(path: Path, mapped: bool = False) -> Any:
    """The same for whatever a torch file holds: a tensor, a list."""
    if path.is_dir():
        raise UserError(f"{path}: this is {kind_of_file(path)}; name fairseq's checkpoint, a file")
    if not path.is_file():
        raise UserError(f"{path}: checkpoint not found")
    try:
        mapped = mapped and zipfile.is_zipfile(path)  # before 1.6 torch wrote another format
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch's reader raises anything on bytes that are no checkpoint
        if is_out_of_memory(error):
            raise
        said = ascii((str(error) or type(error).__name__).split("\n")[0][:300])[1:-1]
        reason = f"damaged or not a torch checkpoint ({said})"
        if kind := kind_of_file(path):
            reason = f"this is {kind}; expected a torch checkpoint"
        elif isinstance(error, pickle.UnpicklingError):
            reason = f"not a checkpoint that can be read without running its code ({said})"
        raise UserError(f"{path}: {reason}; get it again from its source") from None


_SPEECH = (
    "expected fairseq's checkpoint (pretrained_models/download.py hubert100 gets HuBERT Base's)"
)
_LM = "expected fairseq's unit LM (pretrained_models/download.py gets one, train_ulm.py trains one)"
_FOREIGN = {  # by a key
    r".*feature_projection\.projection\.weight": "a Hugging Face HuBERT or wav2vec 2.0; expected "
    "its folder, with config.json, or fairseq's checkpoint",
    r"(transformer\.)?(h\.0\..*|wte\.weight)|model\.(decoder\.)?(layers\.0\..*|embed_tokens\.weight)"
    r"|gpt_neox\.layers\.0\..*|lm_head\.weight": f"a Hugging Face language model; {_LM}",
    "Featurizer|Downstream|Upstream": f"a downstream model of s3prl's; {_SPEECH}",
    "task_cfg|model_cfg|model_weight": f"a speech model in s3prl's form; {_SPEECH}",
}


def _foreign(state: Mapping[Any, Any]) -> str | None:
    """What another project's checkpoint is, and what is expected instead; else None."""
    for pattern, kind in _FOREIGN.items():
        if any(isinstance(name, str) and re.fullmatch(pattern, name) for name in state):
            return kind
    if isinstance(settings := state.get("cfg"), dict) and "extractor_mode" in settings:
        return f"a WavLM, whose attention is another; {_SPEECH}"
    return None


def save_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write named tensors atomically, in a format that holds nothing but tensors."""
    contents = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    with writing(path, "wb") as handle:
        handle.write(contents)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors onto the CPU. Raises ``UserError`` for a missing or damaged file."""
    if not path.is_file():
        raise UserError(f"{path}: not found")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        reason = kind_of_file(path) or str(error).split("\n")[0]
        raise UserError(f"{path}: not a safetensors file ({reason}); get it again") from None
