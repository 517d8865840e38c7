"""The unit LM: fairseq's stock ``TransformerLanguageModel``, loaded strictly from its own
checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer_lm import TransformerLanguageModel

from pipeline.errors import UserError
from pipeline.torch_files import load_torch

HOW_TO_GET = (
    "download a released one (pretrained_models/download.py) or train one (ulm_prompt/train_ulm.py)"
)


@dataclass(frozen=True)
class UnitLM:
    """A loaded LM, its symbols, and a fingerprint of its weights that prompts are tied to."""

    model: TransformerLanguageModel
    dictionary: Dictionary
    fingerprint: str


def load_dictionary(folder: Path) -> Dictionary:
    """Read ``dict.txt``. Raises ``UserError`` when it is missing or malformed."""
    path = folder / "dict.txt"
    if not path.is_file():
        raise UserError(f"{path}: not found; {HOW_TO_GET}")
    dictionary = Dictionary()
    try:
        with open(path, encoding="utf-8-sig") as handle:  # Windows' line ends too
            dictionary.add_from_file(handle)
    except (ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path}: not a fairseq dict ({str(error).splitlines()[0]})") from None
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
    state = load_torch(path)
    weights = state.get("model")
    if not isinstance(weights, dict) or "decoder.embed_tokens.weight" not in weights:
        raise UserError(f"{path}: no language model in it; {HOW_TO_GET}")
    rows = weights["decoder.embed_tokens.weight"].shape[0]
    if rows != len(dictionary):
        raise UserError(
            f"{folder / 'dict.txt'}: {len(dictionary)} symbols, but {path.name} has {rows}; "
            "take both from the same archive"
        )
    settings = _settings(state, path)
    settings.dropout = settings.attention_dropout = dropout
    settings.activation_dropout = settings.relu_dropout = 0.0
    source = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = TransformerLanguageModel.build_model(settings, source)
    _load_strictly(model, weights, path)
    return UnitLM(model.eval(), dictionary, fingerprint(model))


def _settings(state: dict[str, Any], path: Path) -> argparse.Namespace:
    """The model's settings from a checkpoint of either age (``args``, or ``cfg`` since fairseq
    0.10).
    """
    stored = state.get("args") or (state.get("cfg") or {}).get("model")
    if stored is None:
        raise UserError(f"{path}: its settings (args or cfg) are missing; {HOW_TO_GET}")
    values = vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)
    settings = argparse.Namespace(**values)
    arch = values.get("arch") or values.get("_name") or "transformer_lm"
    if not str(arch).startswith("transformer_lm"):
        raise UserError(f"{path}: architecture {arch}; expected a fairseq transformer_lm")
    if not values.get("decoder_normalize_before", True):
        raise UserError(f"{path}: a post-norm LM; expected layer norms before each block")
    ARCH_CONFIG_REGISTRY.get(arch, ARCH_CONFIG_REGISTRY["transformer_lm_big"])(settings)
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
        "base_layers": 0,
    }.items():
        if getattr(settings, name, expected) != expected:
            raise UserError(
                f"{path}: {name}={getattr(settings, name)} is not supported; expected {expected}"
            )
    return settings


def _load_strictly(model: TransformerLanguageModel, weights: dict[str, Any], path: Path) -> None:
    weights = dict(weights)
    model.upgrade_state_dict(weights)
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
            raise UserError(f"{path}: {problem} {names[0]}{more}; {HOW_TO_GET}")
    model.load_state_dict(weights, strict=True)


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
