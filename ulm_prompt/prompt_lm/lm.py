"""The unit LM: fairseq's stock ``TransformerLanguageModel``, loaded strictly from its own
checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer_lm import TransformerLanguageModel

from pipeline.errors import UserError
from pipeline.torch_files import load_torch

HOW_TO_GET = (
    "download a released one (pretrained_models/download.py) or train one (ulm_prompt/train_ulm.py)"
)
# What is taken of a checkpoint's settings, and the least and the most that a number may be.
# fairseq
# evaluates others as Python (xformers_att_config, character_filters, *_cutoff): nothing else is.
_SIZES = {
    "decoder_layers": 1 << 10,
    "decoder_embed_dim": 1 << 16,
    "decoder_ffn_embed_dim": 1 << 20,
    "decoder_attention_heads": 1 << 16,
    "max_target_positions": 1 << 17,  # of a table that no file holds
    "tokens_per_sample": 1 << 17,
}
_SWITCHES = ("share_decoder_input_output_embed", "no_scale_embedding")
_FIRST = "decoder.embed_tokens.weight"
_FINAL_NORM, _VERSION = "decoder.layer_norm.weight", "decoder.version"
# fairseq stored these until 2023, and a table of sines before that: they are computed, not
# learned
_OF_POSITIONS = re.compile(r"\.embed_positions\.(_float_tensor|weights)$")


@dataclass(frozen=True)
class UnitLM:
    """A loaded LM, its symbols, and a fingerprint of its weights that prompts are tied to."""

    model: TransformerLanguageModel
    dictionary: Dictionary
    fingerprint: str

    @property
    def parameters(self) -> int:
        """How many numbers its weights are."""
        return sum(weight.numel() for weight in self.model.parameters())


def load_dictionary(folder: Path) -> Dictionary:
    """Read ``dict.txt``. Raises ``UserError`` when it is missing or malformed, or holds a symbol
    twice: an index then has two meanings.
    """
    path = folder / "dict.txt"
    if not path.is_file():
        raise UserError(f"{path}: not found; {HOW_TO_GET}")
    dictionary = Dictionary()
    try:
        with open(path, encoding="utf-8-sig") as handle:  # Windows' line ends too
            dictionary.add_from_file(handle)
    except Exception as error:  # fairseq raises a bare one for text that is not UTF-8
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        raise UserError(f"{path}: not a fairseq dict ({reason})") from None
    symbols = dictionary.symbols
    if len(dictionary.indices) != len(symbols):  # by its flag #fairseq:overwrite
        twice = next(symbol for symbol in symbols if symbols.count(symbol) > 1)
        raise UserError(f"{path}: not a unit LM's dict (the symbol {ascii(twice)[:80]} twice)")
    if min(dictionary.count) < 0:
        raise UserError(f"{path}: not a fairseq dict (a count below zero)")
    return dictionary


def load_unit_lm(folder: Path, dropout: float = 0.0) -> UnitLM:
    """Load ``folder``'s checkpoint_best.pt and dict.txt into the stock model.

    ``dropout`` sets the LM's dropouts, 0 while it is frozen. Raises ``UserError`` naming what does
    not fit: a missing file, a dict of another size, missing, unexpected or misshapen weights, an
    architecture other than ours.
    """
    dictionary = load_dictionary(folder)
    path = folder / "checkpoint_best.pt"
    if not path.is_file():
        raise UserError(f"{path}: not found; {HOW_TO_GET}")
    state = load_torch(path, mapped=True)
    weights = state.get("model")
    if not are_weights(weights) or _FIRST not in weights or weights[_FIRST].ndim != 2:
        raise UserError(f"{path}: no language model in it; {HOW_TO_GET}")
    rows = weights[_FIRST].shape[0]
    if rows != len(dictionary):
        raise UserError(
            f"{folder / 'dict.txt'}: {len(dictionary)} symbols, but {path.name} has {rows}; "
            "take both from the same archive"
        )
    settings = _settings(state, path)
    settings.dropout = settings.attention_dropout = dropout
    settings.activation_dropout = settings.relu_dropout = 0.0
    source = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    _check_sizes(settings, weights, path)
    model = TransformerLanguageModel.build_model(settings, source)
    load_weights(model, weights, path)
    return UnitLM(model.eval(), dictionary, fingerprint(model))


def are_weights(state: Any) -> bool:
    """Whether these are tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )


def _settings(state: dict[str, Any], path: Path) -> argparse.Namespace:
    """The model's settings from a checkpoint of either age (``args``, or ``cfg`` since fairseq
    0.10).
    """
    try:
        stored = state.get("args") or (state.get("cfg") or {})["model"]
        values = vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)
    except Exception:  # a lie may be anything: a list, an interpolation that leads nowhere
        raise UserError(f"{path}: its settings (args or cfg) are missing; {HOW_TO_GET}") from None
    arch = str(values.get("arch") or values.get("_name") or "transformer_lm")
    if not arch.startswith("transformer_lm"):
        raise UserError(f"{path}: architecture {arch[:80]!r}; expected a fairseq transformer_lm")
    if not values.get("decoder_normalize_before", True):
        raise UserError(f"{path}: a post-norm LM; expected layer norms before each block")
    complete = argparse.Namespace(**values)
    ARCH_CONFIG_REGISTRY.get(arch, ARCH_CONFIG_REGISTRY["transformer_lm_big"])(complete)
    settings = argparse.Namespace(**_taken(vars(complete), path))
    for name, expected in {
        "decoder_input_dim": settings.decoder_embed_dim,
        "decoder_output_dim": settings.decoder_embed_dim,
        "decoder_learned_pos": False,
        "adaptive_input": False,
        "adaptive_softmax_cutoff": None,
        "character_embeddings": False,
        "layernorm_embedding": False,
        "no_token_positional_embeddings": False,
        "no_decoder_final_norm": False,
        "decoder_layerdrop": 0,
        "decoder_layers_to_keep": None,
        "base_layers": 0,
    }.items():
        found = getattr(complete, name, expected)
        if not isinstance(found, (bool, int, float, str, type(None))) or found != expected:
            raise UserError(
                f"{path}: {name}={ascii(found)[:80]} is not supported; expected {expected}"
            )
    ARCH_CONFIG_REGISTRY["transformer_lm_big"](settings)  # fairseq's own values for all else
    return settings


def _taken(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings that we take from a checkpoint. Raises ``UserError`` for one that lies."""

    def refused(name: str, expected: str) -> UserError:
        found = ascii(values[name])[:80]
        return UserError(f"{path}: {name}={found}: expected {expected}; {HOW_TO_GET}")

    taken = {
        name: values[name] for name in (*_SIZES, *_SWITCHES, "activation_fn") if name in values
    }
    for name in [name for name in taken if name in _SIZES]:
        value = taken[name]
        if value is None and name in ("max_target_positions", "tokens_per_sample"):
            continue
        if type(value) is not int or not 1 <= value <= _SIZES[name]:
            raise refused(name, f"1 to {_SIZES[name]:,}")
    for name in _SWITCHES:
        if type(values.get(name, False)) is not bool:
            raise refused(name, "True or False")
    if values["activation_fn"] not in utils.get_available_activation_fns():
        raise refused("activation_fn", ", ".join(utils.get_available_activation_fns()))
    if values["decoder_embed_dim"] % values["decoder_attention_heads"]:
        raise refused("decoder_attention_heads", "a divisor of decoder_embed_dim")
    return taken


def _check_sizes(
    settings: argparse.Namespace, weights: dict[str, torch.Tensor], path: Path
) -> None:
    """Raises ``UserError`` for settings of a model that is larger than its weights, before memory
    is taken for it.
    """
    width, hidden = settings.decoder_embed_dim, settings.decoder_ffn_embed_dim
    shapes = {_FIRST: (len(weights[_FIRST]), width)}
    layers = {name.split(".")[2] for name in weights if name.startswith("decoder.layers.")}
    for layer in range(min(settings.decoder_layers, len(layers) + 1)):
        name = f"decoder.layers.{layer}."
        shapes[f"{name}fc1.weight"] = (hidden, width)
        if f"{name}self_attn.in_proj_weight" in weights:  # as fairseq wrote it before 0.9
            shapes[f"{name}self_attn.in_proj_weight"] = (3 * width, width)
        else:
            shapes[f"{name}self_attn.k_proj.weight"] = (width, width)
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found != shape:
            problem = f"is missing {name}" if name not in weights else f"has misshapen {name}"
            raise UserError(f"{path}: {problem}, {found} for {shape}; {HOW_TO_GET}")


def load_weights(
    model: TransformerLanguageModel, weights: dict[str, torch.Tensor], path: Path
) -> None:
    """Load the weights of any fairseq version, read from ``path``, into ``model``.

    Raises ``UserError`` unless they are those of ``model``, by name and shape.
    """
    weights = {name: value for name, value in weights.items() if not _OF_POSITIONS.search(name)}
    if _FINAL_NORM in weights:  # with which version 3 began; fairseq takes none for version 1
        weights[_VERSION] = torch.tensor([3.0])
    model.upgrade_state_dict(weights)  # fairseq's own: from old names to today's
    if model.decoder.layer_norm is None:
        raise UserError(f"{path}: is missing {_FINAL_NORM}; {HOW_TO_GET}")
    _check_weights(model, weights, path)
    model.load_state_dict(weights, strict=True)


def _check_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(weights[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    for problem, names in (
        ("is missing", missing),
        ("has unexpected", unexpected),
        ("has misshapen", misshapen),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {problem} {names[0][:200]}{more}; {HOW_TO_GET}")


def fingerprint(model: torch.nn.Module) -> str:
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
    """The LM's embeddings of ``units``: (U, D), in their order."""
    lm = load_unit_lm(folder)
    indices = [lm.dictionary.index(unit) for unit in units]
    unknown = [unit for unit, index in zip(units, indices) if index == lm.dictionary.unk()]
    if unknown:
        raise UserError(f"{folder / 'dict.txt'}: unit {unknown[0]} is not in it")
    return lm.model.decoder.embed_tokens.weight.detach()[indices].numpy()
