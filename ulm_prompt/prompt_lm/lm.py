"""The unit LM: fairseq's stock ``TransformerLanguageModel``, read strictly from its checkpoint, and
the number format to compute in.
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

HOW_TO_GET = (
    "download a released one (pretrained_models/download.py) or train one (ulm_prompt/train_ulm.py)"
)
CHECKPOINT, DICT = "checkpoint_best.pt", "dict.txt"
LARGE = 30_000_000  # LM parameters; on smaller LMs bfloat16 saves little or is slower
# Only these settings are read from a checkpoint: fairseq evaluates some of the others as Python.
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
_MOST_POSITIONS = 1 << 17  # fairseq computes a table of them when it builds the model
_EMBEDDING, _FIRST_HIDDEN = "decoder.embed_tokens.weight", "decoder.layers.0.fc1.weight"
_FINAL_NORM, _VERSION = "decoder.layer_norm.weight", "decoder.version"
# computed, not learned: fairseq stored these until 2023, and a table of sines before that
_POSITIONS = re.compile(r"\.embed_positions\.(_float_tensor|weights)$")


def choose_dtype(name: str, device: torch.device, parameters: int) -> tuple[torch.dtype, str]:
    """The dtype that ``name``, auto or torch's, stands for, and the reason in words. ``auto`` looks
    at what the processor or card is and at the LM's ``parameters``, and times nothing: a result
    does not depend on how busy the machine is.
    """
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "mps":
        return torch.float32, "bfloat16 is not measured on Apple's GPU"
    fast, what = multiplies_bfloat16(device)
    if not fast:
        return torch.float32, f"{what} would be slower in it"
    if parameters < LARGE:
        return torch.float32, f"an LM of {parameters / 1e6:.1f}M parameters is too small to gain"
    return torch.bfloat16, f"{what}; --dtype float32 for float32"


@dataclass(frozen=True)
class UnitLM:
    """A unit LM, its symbols, and a fingerprint of its weights that prompts are tied to."""

    untouched: TransformerLanguageModel  # shared by all that load this LM: never change it
    dictionary: Dictionary
    fingerprint: str
    dropout: float = 0.0

    @cached_property
    def model(self) -> TransformerLanguageModel:
        """A copy that may be trained, moved and rounded, in evaluation mode."""
        model = copy.deepcopy(self.untouched)
        for name, module in model.named_modules():
            if name.endswith("dropout_module") and "activation" not in name:
                module.p = self.dropout
        return model

    @property
    def parameters(self) -> int:
        """The number of its weights."""
        return sum(weight.numel() for weight in self.untouched.parameters())

    @property
    def identity(self) -> dict[str, Any]:
        """What a prompt's record says of its LM: weights, symbols in their order, size."""
        return {
            "lm_fingerprint": self.fingerprint,
            "dict_fingerprint": dict_fingerprint(self.dictionary),
            "lm_parameters": self.parameters,
        }


def load_dictionary(folder: Path) -> Dictionary:
    """Read ``dict.txt``. Raises ``UserError`` when it is missing, malformed or ambiguous."""
    path = folder / DICT
    if not path.is_file():
        raise UserError(f"{path}: not found; {HOW_TO_GET}")
    dictionary = Dictionary()
    try:
        with open(path, encoding="utf-8-sig") as handle:  # Windows' line ends too
            dictionary.add_from_file(handle)
    except Exception as error:  # fairseq raises a bare one for text that is not UTF-8
        raise UserError(f"{path}: not a fairseq dict ({_reason(error)})") from None
    if len(dictionary.indices) != len(dictionary):  # by its flag #fairseq:overwrite
        raise UserError(f"{path}: not a unit LM's dict (a symbol stands there twice)")
    if min(dictionary.count) < 0:
        raise UserError(f"{path}: not a fairseq dict (a count below zero)")
    return dictionary


def load_unit_lm(folder: Path, dropout: float = 0.0) -> UnitLM:
    """Load ``folder``'s checkpoint_best.pt and dict.txt into the stock model. A process reads and
    hashes the files once, until they change. ``dropout``: the LM's, 0 while it is frozen.

    Raises ``UserError`` for a missing file, a dict of another size, another architecture, and
    missing, unexpected or misshapen weights.
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
        raise UserError(f"{path}: no language model in it; {HOW_TO_GET}")
    if (rows := len(weights[_EMBEDDING])) != len(dictionary):
        raise UserError(
            f"{folder / DICT}: {len(dictionary)} symbols, but {path.name} has {rows}; "
            "take both from the same archive"
        )
    settings = _settings(state, path)
    source = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    try:
        model = TransformerLanguageModel.build_model(settings, source)
    except Exception as error:  # fairseq raises anything for sizes that do not go together
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: settings of no unit LM ({_reason(error)})") from None
    load_weights(model, weights, path)
    for name, parameter in model.named_parameters():  # the file's pages take no memory
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
    """The settings in ``args`` or, since fairseq 0.10, ``cfg``, of the weights' sizes."""
    try:
        stored = state.get("args") or (state.get("cfg") or {})["model"]
        values = vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)
    except Exception:  # they may be anything: a list, an interpolation that leads nowhere
        raise UserError(f"{path}: its settings (args or cfg) are missing; {HOW_TO_GET}") from None

    def check(name: str, value: Any, expected: Any) -> None:
        if type(value) not in (bool, int, float, str, type(None)) or value != expected:
            what = f"{path}: {name}={ascii(value)[:80]}"
            raise UserError(f"{what} is not supported; expected {expected}")

    arch = str(values.get("arch") or values.get("_name") or "transformer_lm")
    if not arch.startswith("transformer_lm"):
        raise UserError(f"{path}: architecture {arch[:80]!r}; expected a fairseq transformer_lm")
    for name, expected in _SUPPORTED.items():  # before fairseq looks at them
        check(name, values.get(name, expected), expected)
    complete = argparse.Namespace(**values)
    ARCH_CONFIG_REGISTRY.get(arch, ARCH_CONFIG_REGISTRY["transformer_lm_big"])(complete)
    weights = state["model"]
    width = weights[_EMBEDDING].shape[1]
    sizes = {
        "decoder_layers": len(
            {n.split(".")[2] for n in weights if n.startswith("decoder.layers.")}
        ),
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
    ARCH_CONFIG_REGISTRY["transformer_lm_big"](settings)  # fairseq's own values for all else
    return settings


def load_weights(
    model: TransformerLanguageModel, weights: dict[str, torch.Tensor], path: Path
) -> None:
    """Copy the weights of any fairseq version, read from ``path``, into ``model``. Raises
    ``UserError`` unless they are those of ``model``, by name and shape.
    """
    if _FINAL_NORM not in weights:  # version 3 began with it; fairseq computes without it before
        raise UserError(f"{path}: is missing {_FINAL_NORM}; {HOW_TO_GET}")
    weights = {name: value for name, value in weights.items() if not _POSITIONS.search(name)}
    weights[_VERSION] = torch.tensor([3.0])
    model.upgrade_state_dict(weights)  # fairseq's own: from old names to today's
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
    """SHA-256 over the names and float32 bytes of all weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.float().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def dict_fingerprint(dictionary: Dictionary) -> str:
    """SHA-256 over the symbols in their order, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()[:16]


def unit_embeddings(folder: Path, units: list[str]) -> np.ndarray:
    """The LM's embeddings of ``units``: (U, D). Raises ``UserError`` for one that it lacks."""
    lm = load_unit_lm(folder)
    indices = [lm.dictionary.index(unit) for unit in units]
    if lm.dictionary.unk() in indices:
        unknown = units[indices.index(lm.dictionary.unk())]
        raise UserError(f"{folder / DICT}: unit {unknown} is not in it")
    return lm.untouched.decoder.embed_tokens.weight.detach()[indices].numpy()
