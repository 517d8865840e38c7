"""A HuBERT or wav2vec 2.0 checkpoint of fairseq's: its settings and its weights, of any age since
2020. Nothing that the file holds runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.errors import UserError
from pipeline.torch_files import allow_fairseq, load_torch

# fairseq's defaults (HubertConfig, Wav2Vec2Config): an old checkpoint lacks what came later
_DEFAULTS: dict[str, Any] = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "layer_norm_first": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
}
# what our forward pass does not do, and the value that leaves it undone
_REFUSED: dict[str, Any] = {
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "crop_seq_to_multiple": 1,
    "quantize_input": False,
    "activation_fn": "gelu",
}
# speech recognisers fine-tuned from the model, whose settings and weights they hold
_FINE_TUNED = {
    "hubert": ("hubert_ctc", "hubert_seq2seq"),
    "wav2vec2": ("wav2vec_ctc", "wav2vec_seq2seq"),
}
_INSIDE = "w2v_encoder.w2v_model."
# what torch >= 2.1 calls the two parts of a weight norm
_WEIGHT_NORM = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
_CONV_TERM = re.compile(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d+))?")
_CONV_LAYER = re.compile(r"\((\d+),(\d+),(\d+)\)")
_MOST_CONV_LAYERS = 32


class Weights:
    """A checkpoint's tensors by fairseq's names. What is not asked for, such as a training
    criterion's, stays in the file. ``names``: patterns of fairseq's names and what the file says
    instead. ``dtype``: of what ``take`` and ``linear`` return, ``exact`` tensors apart.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        path: Path,
        device: torch.device,
        names: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._tensors = tensors
        self._path = path
        self._device = device
        self._names = names
        self.dtype = torch.float32

    def __contains__(self, name: str) -> bool:
        return self._name(name) in self._tensors

    def _name(self, name: str) -> str:
        for pattern, instead in self._names:
            name = re.sub(pattern, instead, name)
        for end, new in _WEIGHT_NORM.items():
            if name.endswith(end) and name not in self._tensors:
                newer = name.removesuffix(end) + new
                return newer if newer in self._tensors else name
        return name

    def take(self, name: str, *shape: int, exact: bool = False) -> torch.Tensor:
        """Return one tensor on the device, of ``dtype`` or, if ``exact``, float32. Raises
        ``UserError`` where it is missing or has another shape.
        """
        name = self._name(name)
        tensor = self._tensors.get(name)
        stored = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else "nothing"
        if stored != shape:
            raise UserError(
                f"{self._path}: expected the weight {name} {shape}, found {stored}; "
                "the file is damaged or another model's, get it again"
            )
        dtype = torch.float32 if exact else self.dtype
        return tensor.detach().to(self._device, dtype, copy=True)

    def linear(self, name: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``name.weight`` (rows, columns) and ``name.bias`` (rows,)."""
        return self.take(f"{name}.weight", rows, columns), self.take(f"{name}.bias", rows)

    def norm(self, name: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``name.weight`` (size,) and ``name.bias`` (size,), float32."""
        return tuple(self.take(f"{name}.{part}", size, exact=True) for part in ("weight", "bias"))


class Settings(NamedTuple):
    """The shape of the network. ``conv_layers`` holds (channels, kernel, stride) of each layer."""

    extractor_mode: str
    conv_layers: tuple[tuple[int, int, int], ...]
    conv_bias: bool
    encoder_layers: int
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_attention_heads: int
    layer_norm_first: bool
    conv_pos: int
    conv_pos_groups: int
    normalize: bool  # layer-norm the waveform first (the checkpoint's task says so)


def load_fairseq_checkpoint(
    path: Path | None, models: tuple[str, ...], device: torch.device
) -> tuple[Settings, Weights]:
    """Read a checkpoint whose model is one of ``models`` (fairseq's registered names), or a speech
    recogniser that was fine-tuned from one.

    Raises ``UserError`` for a missing or damaged file, one that would run code, another model, or
    settings that our forward pass does not know.
    """
    if path is None:
        raise UserError(f"fairseqrc.ckpt_path: empty; name the {models[0]} checkpoint")
    allow_fairseq()
    state = load_torch(path, mapped=True)
    model, task = _stored(state, "model", path), _stored(state, "task", path)
    name = model.get("_name") or model.get("arch")
    fine_tuned = name in [other for kind in models for other in _FINE_TUNED[kind]]
    if fine_tuned:
        inner = model.get("w2v_args")
        inner = {"args": inner} if isinstance(inner, argparse.Namespace) else {"cfg": inner}
        model, task = _stored(inner, "model", path), _stored(inner, "task", path)
        name = model.get("_name") or model.get("arch")
    if name not in models:
        raise UserError(f"{path}: its model is {shown(name)}; expected {' or '.join(models)}")
    if task.get("sample_rate", 16_000) != 16_000:
        rate = shown(task["sample_rate"])
        raise UserError(f"{path}: trained on {rate} Hz; expected 16000 Hz")
    weights = state.get("model")
    if not isinstance(weights, dict):
        raise UserError(f"{path}: no weights in it; get the file again")
    if fine_tuned:
        weights = {str(name).removeprefix(_INSIDE): weight for name, weight in weights.items()}
    normalize = bool(task.get("normalize", False))
    return check_settings(model, normalize, path), Weights(weights, path, device)


def _stored(state: dict[str, Any], part: str, path: Path) -> dict[str, Any]:
    """One part of the settings. Since fairseq 0.10 they are ``cfg.model`` and ``cfg.task``, before
    it one ``args``.
    """
    try:
        stored = state.get("args")
        if stored is None:
            stored = (state.get("cfg") or {})[part]
        return vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)
    except Exception:  # anything may stand there: a list, an interpolation that leads nowhere
        alone = all(isinstance(value, torch.Tensor) for value in state.values())
        found = ": these are weights alone" if alone else ""
        raise UserError(
            f"{path}: its settings (args or cfg, for a fine-tuned recogniser also w2v_args) are "
            f"missing{found}; get the whole checkpoint again"
        ) from None


def check_settings(
    model: dict[str, Any], normalize: bool, path: Path, names: Mapping[str, str] | None = None
) -> Settings:
    """The settings that a file holds, under fairseq's keys; ``names``: what the file calls them.

    Raises ``UserError`` for those that our forward pass does not know.
    """
    names = names or {}
    for key, expected in _REFUSED.items():
        value, name = model.get(key, expected), names.get(key, key)
        if type(value) is not type(expected) or value != expected:
            raise UserError(f"{path}: {name}={shown(value)} is not supported; expected {expected}")
    values = {key: model.get(key, default) for key, default in _DEFAULTS.items()}
    for key, default in _DEFAULTS.items():
        if type(values[key]) is not type(default) or (type(default) is int and values[key] < 1):
            name, writer = names.get(key, key), "transformers writes" if names else "fairseq writes"
            raise UserError(f"{path}: {name}={shown(values[key])} is not what {writer} there")
    if values["extractor_mode"] not in ("default", "layer_norm"):
        raise UserError(f"{path}: extractor_mode={values['extractor_mode']} is not supported")
    for key in ("encoder_attention_heads", "conv_pos_groups"):
        if values["encoder_embed_dim"] % values[key]:
            name = names.get(key, key)
            raise UserError(f"{path}: {name}={values[key]} does not divide its width")
    conv_layers = parse_conv_layers(values.pop("conv_feature_layers"), path)
    return Settings(conv_layers=conv_layers, normalize=normalize, **values)


def shown(value: Any) -> str:
    """A value of a file, short and on one line."""
    return ascii(str(value))[1:-1][:80]


def parse_conv_layers(text: str, path: Path) -> tuple[tuple[int, int, int], ...]:
    """Read ``[(512,10,5)] + [(512,3,2)] * 4`` (fairseq evaluates it as Python; we do not).

    Raises ``UserError`` for anything but sums of such lists.
    """
    terms = [_CONV_TERM.fullmatch(term) for term in text.replace(" ", "").split("+")]
    layers: list[tuple[int, int, int]] = []
    for term in terms:
        times = int(term[2] or 1) if term else _MOST_CONV_LAYERS + 1
        if times > _MOST_CONV_LAYERS:
            break
        layers += [(int(c), int(k), int(s)) for c, k, s in _CONV_LAYER.findall(term[1])] * times
    else:
        if 1 <= len(layers) <= _MOST_CONV_LAYERS and min(map(min, layers)) >= 1:
            return tuple(layers)
    raise UserError(
        f"{path}: conv_feature_layers={text[:80]!r}; expected 1 to {_MOST_CONV_LAYERS} layers as "
        "lists of (channels,kernel,stride), added and multiplied"
    )
