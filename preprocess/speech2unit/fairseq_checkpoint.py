"""Read settings and weights of fairseq's HuBERT and wav2vec 2.0 checkpoints, of any version since
2020. No code in the file runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.errors import UserError
from pipeline.torch_files import allow_fairseq, load_torch
from preprocess.speech2unit.features import SAMPLE_RATE

_ONLY = {  # setting -> the only value that our forward pass supports
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "crop_seq_to_multiple": 1,
    "quantize_input": False,
    "activation_fn": "gelu",
}
# model -> speech recognisers fine-tuned from it; their files contain its settings and weights
_FINE_TUNED = {
    "hubert": ("hubert_ctc", "hubert_seq2seq"),
    "wav2vec2": ("wav2vec_ctc", "wav2vec_seq2seq"),
}
_FINE_TUNED_PREFIX = "w2v_encoder.w2v_model."
_WEIGHT_NORM = {"0": "weight_g", "1": "weight_v"}  # the two parts; torch >= 2.1 numbers them
_NEWER = re.compile(r"parametrizations\.weight\.original([01])$")
_NUMBER = r"([1-9]\d{0,5})"
_CONV = re.compile(rf"\({_NUMBER},{_NUMBER},{_NUMBER}\),?")
_CONVS = re.compile(rf"\[((?:{_CONV.pattern})+)\](?:\*{_NUMBER})?")


class Settings(NamedTuple):
    """The network's shape, by fairseq's names. Defaults apply if an old checkpoint has no value."""

    extractor_mode: str = "default"
    # (channels, kernel, stride) of each layer
    conv_feature_layers: tuple[tuple[int, int, int], ...] = (
        (512, 10, 5), *4 * [(512, 3, 2)], *2 * [(512, 2, 2)]
    )  # fmt: skip
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    layer_norm_first: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    normalize: bool = False  # layer-norm the waveform first (a setting of the checkpoint's task)


class Weights:
    """A checkpoint's tensors by the names that the reader uses. Unrequested tensors, such as those
    of a training criterion, stay in the file. ``dtype``: of returned tensors; ``exact``: float32.
    """

    def __init__(self, tensors: Mapping[Any, Any], path: Path, device: torch.device) -> None:
        self._tensors = {
            _NEWER.sub(lambda match: _WEIGHT_NORM[match[1]], str(name)): tensor
            for name, tensor in tensors.items()
        }
        self._path, self._device = path, device
        self.dtype = torch.float32

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int, exact: bool = False) -> torch.Tensor:
        """Return a tensor on the device. Raises ``UserError`` if it is missing or misshapen."""
        tensor = self._tensors.get(name)
        stored = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else "nothing"
        if stored != shape:
            problem = f"{self._path}: expected the weight {name} {shape}, found {stored}"
            raise UserError(f"{problem}; the file is damaged or another model's, get it again")
        dtype = torch.float32 if exact else self.dtype
        return tensor.detach().to(self._device, dtype, copy=True)

    def linear(self, name: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``name.weight`` (rows, columns) and ``name.bias`` (rows,)."""
        return self.take(f"{name}.weight", rows, columns), self.take(f"{name}.bias", rows)

    def norm(self, name: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``name.weight`` (size,) and ``name.bias`` (size,), float32."""
        return tuple(self.take(f"{name}.{part}", size, exact=True) for part in ("weight", "bias"))


def load_fairseq_checkpoint(
    path: Path, models: tuple[str, ...], device: torch.device
) -> tuple[Settings, Weights]:
    """Read a checkpoint of one of ``models`` (fairseq's names), or a recogniser fine-tuned from it.
    Raises ``UserError`` for a missing, damaged or other file, and for unsupported settings.
    """
    allow_fairseq()
    state = load_torch(path, mapped=True)
    model, task = _stored(state, "model", path), _stored(state, "task", path)
    name = model.get("_name") or model.get("arch")
    is_fine_tuned = name in [recogniser for base in models for recogniser in _FINE_TUNED[base]]
    if is_fine_tuned:
        inner = model.get("w2v_args")
        inner = {"args": inner} if isinstance(inner, argparse.Namespace) else {"cfg": inner}
        model, task = _stored(inner, "model", path), _stored(inner, "task", path)
        name = model.get("_name") or model.get("arch")
    if name not in models:
        raise UserError(f"{path}: the model is {shown(name)}; expected {' or '.join(models)}")
    check_only({"sample_rate": SAMPLE_RATE}, task, path)
    weights = state.get("model")
    if not isinstance(weights, dict):
        raise UserError(f"{path}: contains no weights; get the file again")
    if is_fine_tuned:
        weights = {str(key).removeprefix(_FINE_TUNED_PREFIX): w for key, w in weights.items()}
    check_only(_ONLY, model, path)
    if "conv_feature_layers" in model:
        model["conv_feature_layers"] = _conv_layers(str(model["conv_feature_layers"]), path)
    model["normalize"] = bool(task.get("normalize", False))
    return checked_settings(model, path), Weights(weights, path, device)


def _stored(state: dict[str, Any], part: str, path: Path) -> dict[str, Any]:
    """Return a part of the settings: ``cfg.model``, ``cfg.task``, or (fairseq < 0.10) ``args``."""
    try:
        stored = state.get("args")
        if stored is None:
            stored = (state.get("cfg") or {})[part]
        return dict(vars(stored) if isinstance(stored, argparse.Namespace) else stored)
    except Exception:  # the value may be anything: a list, an interpolation of a missing key
        only_weights = all(isinstance(value, torch.Tensor) for value in state.values())
        reason = ": the file contains only weights" if only_weights else ""
        names = "args or cfg, for a fine-tuned recogniser also w2v_args"
        problem = f"the settings ({names}) are missing{reason}"
        raise UserError(f"{path}: {problem}; get the whole checkpoint again") from None


def _conv_layers(text: str, path: Path) -> tuple[tuple[int, ...], ...]:
    """Parse ``[(512,10,5)] + [(512,3,2)] * 4``, which fairseq evaluates as Python."""
    layers: list[tuple[int, ...]] = []
    for term in text.replace(" ", "").split("+"):
        if not (match := _CONVS.fullmatch(term)):
            form = "lists of (channels,kernel,stride), added and multiplied"
            raise UserError(f"{path}: conv_feature_layers={text[:80]!r}; expected {form}")
        layers += [tuple(map(int, conv)) for conv in _CONV.findall(match[1])] * int(match[5] or 1)
    return tuple(layers)


def check_only(only: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    """Check that each setting has the only value that our forward pass supports (``only``)."""
    for key, expected in only.items():
        value = settings.get(key, expected)
        if type(value) is not type(expected) or value != expected:
            raise UserError(f"{path}: {key}={shown(value)} is not supported; expected {expected}")


def checked_settings(
    model: dict[str, Any], path: Path, names: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings in ``model``, checked. ``names``: the file's names, if not fairseq's."""
    settings = Settings(**{key: model[key] for key in Settings._fields if key in model})
    for key, default in Settings._field_defaults.items():
        value = getattr(settings, key)
        problem = ""
        if type(value) is not type(default) or (type(default) is int and value < 1):
            problem = f"is not a value that {'transformers' if names else 'fairseq'} writes"
        elif key in ("encoder_attention_heads", "conv_pos_groups"):
            problem = "does not divide the width" if settings.encoder_embed_dim % value else ""
        elif key == "extractor_mode" and value not in ("default", "layer_norm"):
            problem = "is not supported"
        if problem:
            raise UserError(f"{path}: {(names or {}).get(key, key)}={shown(value)} {problem}")
    return settings


def shown(value: Any) -> str:
    """Return a value of a file as short text on one line."""
    return ascii(str(value))[1:-1][:80]
