"""The unit LM: fairseq's stock ``TransformerLanguageModel``, loaded strictly from its checkpoint,
and the choice of the dtype.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer_lm import TransformerLanguageModel

from pipeline.devices import multiplies_bfloat16
from pipeline.errors import UserError, is_out_of_memory
from pipeline.torch_files import load_torch

HOW_TO_GET = "download an LM (pretrained_models/download.py) or train one (ulm_prompt/train_ulm.py)"
CHECKPOINT, DICT = "checkpoint_best.pt", "dict.txt"
LARGE = 30_000_000  # LM parameters; on smaller LMs bfloat16 saves little or is slower
# Only these settings are read from a checkpoint: fairseq evaluates some other ones as Python.
_SWITCHES = ("share_decoder_input_output_embed", "no_scale_embedding")
_LENGTHS = ("max_target_positions", "tokens_per_sample")
_READ = (*_SWITCHES, *_LENGTHS, "activation_fn", "decoder_attention_heads")
_SUPPORTED = {
    "decoder_normalize_before": True,
    **dict.fromkeys(("decoder_layerdrop", "base_layers"), 0),
    **dict.fromkeys(("adaptive_softmax_cutoff", "decoder_layers_to_keep"), None),
    **dict.fromkeys(("decoder_learned_pos", "no_token_positional_embeddings"), False),
    **dict.fromkeys(("adaptive_input", "character_embeddings", "layernorm_embedding"), False),
    "no_decoder_final_norm": False,
}
_MOST_POSITIONS = 1 << 17  # fairseq computes a table of all positions when it builds the model
_EMBEDDING, _FIRST_HIDDEN = "decoder.embed_tokens.weight", "decoder.layers.0.fc1.weight"
_FINAL_NORM, _VERSION = "decoder.layer_norm.weight", "decoder.version"
# not learned: fairseq stored ``_float_tensor`` until 2023, and earlier the sines as ``weights``
_POSITIONS = re.compile(r"\.embed_positions\.(_float_tensor|weights)$")


def choose_dtype(name: str, device: torch.device, parameters: int) -> tuple[torch.dtype, str]:
    """Return a dtype and the reason in words. ``name``: auto, or the name of a torch dtype.
    ``parameters``: the size of the LM. ``auto`` depends only on this size and on the kind of
    processor or GPU. It measures no time, so a busy machine does not change a result.
    """
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "mps":
        return torch.float32, "bfloat16 is not measured on Apple's GPU"
    is_fast, hardware = multiplies_bfloat16(device)
    if not is_fast:
        return torch.float32, f"{hardware}: bfloat16 would be slower"
    if parameters < LARGE:
        return torch.float32, f"an LM of {parameters / 1e6:.1f}M parameters: bfloat16 gains little"
    return torch.bfloat16, f"{hardware}; --dtype float32 for float32"


@dataclass(frozen=True)
class UnitLM:
    """A unit LM, its symbols, and the fingerprint of its weights, which prompts record."""

    untouched: TransformerLanguageModel  # shared by all users of this LM: never change it
    dictionary: Dictionary
    fingerprint: str
    dropout: float = 0.0

    @cached_property
    def model(self) -> TransformerLanguageModel:
        """A copy in evaluation mode, which may be trained, moved and converted."""
        model = copy.deepcopy(self.untouched)
        for name, module in model.named_modules():
            if name.endswith("dropout_module") and "activation" not in name:
                module.p = self.dropout
        return model

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self.untouched.parameters())

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of a prompt's record that describe the LM: weights, symbols and size."""
        return {
            "lm_fingerprint": self.fingerprint,
            "dict_fingerprint": dict_fingerprint(self.dictionary),
            "lm_parameters": self.parameters,
        }


def load_dictionary(folder: Path) -> Dictionary:
    """Read ``dict.txt``. Raises ``UserError`` if it is missing, malformed or ambiguous."""
    path = folder / DICT
    if not path.is_file():
        raise UserError(f"{path}: not found; {HOW_TO_GET}")
    dictionary = Dictionary()
    try:
        with open(path, encoding="utf-8-sig") as handle:  # reads Windows line ends too
            dictionary.add_from_file(handle)
    except Exception as error:  # fairseq raises a plain Exception if the text is not UTF-8
        raise UserError(f"{path}: not a fairseq dict ({_reason(error)})") from None
    if len(dictionary.indices) != len(dictionary):  # fairseq's flag #fairseq:overwrite allows it
        raise UserError(f"{path}: not a unit LM's dict (duplicate symbol)")
    if min(dictionary.count) < 0:
        raise UserError(f"{path}: not a fairseq dict (negative count)")
    return dictionary


def load_unit_lm(folder: Path, dropout: float = 0.0) -> UnitLM:
    """Load checkpoint_best.pt and dict.txt of ``folder`` into the stock model. A process keeps the
    last LM, so it reads unchanged files once. ``dropout``: of the LM, 0 while the LM is frozen.

    Raises ``UserError`` if a file is missing, if the dict has another size, if the architecture is
    not supported, or if weights are missing, unexpected or misshapen.
    """
    versions = []
    for path in (folder / DICT, folder / CHECKPOINT):
        if not path.is_file():
            raise UserError(f"{path}: not found; {HOW_TO_GET}")
        status = path.stat()
        versions += [status.st_ino, status.st_ctime_ns, status.st_size]
    return UnitLM(*_read(folder, *versions), dropout)


@lru_cache(maxsize=1)
def _read(folder: Path, *_versions: int) -> tuple[TransformerLanguageModel, Dictionary, str]:
    dictionary = load_dictionary(folder)
    path = folder / CHECKPOINT
    state = load_torch(path, mapped=True)
    weights = state.get("model")
    tables = (_EMBEDDING, _FIRST_HIDDEN)
    if not (are_weights(weights) and all(getattr(weights.get(t), "ndim", 0) == 2 for t in tables)):
        raise UserError(f"{path}: contains no language model; {HOW_TO_GET}")
    if (rows := len(weights[_EMBEDDING])) != len(dictionary):
        raise UserError(
            f"{folder / DICT}: {len(dictionary)} symbols, but {path.name} has {rows}; "
            "take both from the same archive"
        )
    settings = _settings(state, path)
    source = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    try:
        model = TransformerLanguageModel.build_model(settings, source)
    except Exception as error:  # fairseq raises any type for sizes that do not match
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not the settings of a unit LM ({_reason(error)})") from None
    load_weights(model, weights, path)
    for name, parameter in model.named_parameters():  # pages of a mapped file need no memory
        stored = weights.get(name)
        if stored is not None and stored.dtype == torch.float32:
            parameter.data = stored
    return model.eval(), dictionary, _fingerprint(model)


def are_weights(state: Any) -> bool:
    """Whether ``state`` is a dictionary of tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )


def _settings(state: dict[str, Any], path: Path) -> argparse.Namespace:
    """Return the settings of ``args`` or, since fairseq 0.10, ``cfg``. Check sizes and support."""
    try:
        stored = state.get("args") or (state.get("cfg") or {})["model"]
        values = vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)
    except Exception:  # they may be of any type: a list, an interpolation that fails
        raise UserError(f"{path}: the settings (args or cfg) are missing; {HOW_TO_GET}") from None

    def check(name: str, value: Any, expected: Any) -> None:
        if type(value) not in (bool, int, float, str, type(None)) or value != expected:
            setting = f"{name}={ascii(value)[:80]}"
            raise UserError(f"{path}: {setting} is not supported; expected {expected}")

    arch = str(values.get("arch") or values.get("_name") or "transformer_lm")
    if not arch.startswith("transformer_lm"):
        raise UserError(f"{path}: architecture {arch[:80]!r}; expected a fairseq transformer_lm")
    for name, expected in _SUPPORTED.items():  # before fairseq reads them
        check(name, values.get(name, expected), expected)
    complete = argparse.Namespace(**values)
    ARCH_CONFIG_REGISTRY.get(arch, ARCH_CONFIG_REGISTRY["transformer_lm_big"])(complete)
    weights = state["model"]
    width = weights[_EMBEDDING].shape[1]
    layers = {name.split(".")[2] for name in weights if name.startswith("decoder.layers.")}
    sizes = {
        "decoder_layers": len(layers),
        **dict.fromkeys(("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"), width),
        "decoder_ffn_embed_dim": len(weights[_FIRST_HIDDEN]),
    }
    for name, size in sizes.items():
        check(name, getattr(complete, name), size)
    read = {name: getattr(complete, name) for name in _READ if hasattr(complete, name)}
    for name in _SWITCHES:
        check(name, read.get(name, False), bool(read.get(name, False)))
    for name in _LENGTHS:
        value = read.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= _MOST_POSITIONS):
            check(name, value, f"1 to {_MOST_POSITIONS:,}")
    dropouts = ("dropout", "attention_dropout", "activation_dropout", "relu_dropout")
    settings = argparse.Namespace(**sizes, **read, **dict.fromkeys(dropouts, 0.0))
    ARCH_CONFIG_REGISTRY["transformer_lm_big"](settings)  # fairseq's defaults for the rest
    return settings


def load_weights(
    model: TransformerLanguageModel, weights: dict[str, torch.Tensor], path: Path
) -> None:
    """Copy the ``weights``, read from ``path``, into ``model``. fairseq's decoder version must be 3
    or later. Raises ``UserError`` if names or shapes differ from the weights of ``model``.
    """
    if _FINAL_NORM not in weights:  # new in version 3; fairseq computes older LMs without it
        raise UserError(f"{path}: is missing {_FINAL_NORM}; {HOW_TO_GET}")
    weights = {name: value for name, value in weights.items() if not _POSITIONS.search(name)}
    weights[_VERSION] = torch.tensor([3.0])
    model.upgrade_state_dict(weights)  # fairseq renames old weights
    expected = model.state_dict()
    for problem, names in {
        "is missing": expected.keys() - weights.keys(),
        "has unexpected": weights.keys() - expected.keys(),
        "has misshapen": {
            f"{name} {tuple(weights[name].shape)} for {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        },
    }.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {problem} {min(names)[:200]}{more}; {HOW_TO_GET}")
    model.load_state_dict(weights, strict=True)


def _reason(error: Exception) -> str:
    return ascii(str(error).split("\n")[0][:200])[1:-1]


def _fingerprint(model: torch.nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over all weights' names and float32 bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.float().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def dict_fingerprint(dictionary: Dictionary) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over the symbols in their order."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()[:16]


def unit_embeddings(folder: Path, units: list[str]) -> np.ndarray:
    """Return the LM's embeddings of ``units``, (U, D). Raises ``UserError`` for an unknown unit."""
    lm = load_unit_lm(folder)
    indices = [lm.dictionary.index(unit) for unit in units]
    if lm.dictionary.unk() in indices:
        unknown = units[indices.index(lm.dictionary.unk())]
        raise UserError(f"{folder / DICT}: unit {unknown} is missing")
    return lm.untouched.decoder.embed_tokens.weight.detach()[indices].numpy()
