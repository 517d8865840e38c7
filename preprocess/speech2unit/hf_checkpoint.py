"""Read HuBERT and wav2vec 2.0 in Hugging Face's form: config.json next to model.safetensors or
pytorch_model.bin. Names are translated to fairseq's, so that one network computes both forms.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.torch_files import load_safetensors, load_torch_values
from preprocess.speech2unit.fairseq_checkpoint import (
    Settings,
    Weights,
    check_only,
    checked_settings,
    shown,
)
from preprocess.speech2unit.features import SAMPLE_RATE

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SOURCE = "the download of the model"  # read_json's errors say to run this again
_ONLY = {  # setting -> the only value that our forward pass supports
    "hidden_act": "gelu",
    "conv_pos_batch_norm": False,
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "layer_norm_eps": 1e-5,
    "adapter_attn_dim": None,
}
_EXTRACTORS = {"group": "default", "layer": "layer_norm"}
_CONVS = ("conv_dim", "conv_kernel", "conv_stride")
# fairseq's setting -> the setting in config.json; the defaults are the same
_SETTINGS = {
    "conv_bias": "conv_bias",
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "layer_norm_first": "do_stable_layer_norm",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
}
# names of weights: (pattern of Hugging Face's, fairseq's)
_NAMES = (
    (r"^(hubert|wav2vec2)\.", ""),  # the prefix in a recogniser or a pretraining model
    (r"^feature_projection\.layer_norm", "layer_norm"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"(conv_layers\.\d+)\.layer_norm\.", r"\1.2.1."),
    (r"pos_conv_embed\.conv", "pos_conv.0"),
    (r"(\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"\.attention\.", ".self_attn."),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
)


def is_hugging_face(path: Path) -> bool:
    """Return whether ``path`` is a Hugging Face model: a folder, or weights next to config.json."""
    is_weights = path.name in _WEIGHTS and (path.parent / _CONFIG).is_file()
    return path.is_dir() or (path.is_file() and (path.suffix == ".safetensors" or is_weights))


def fingerprint(path: Path) -> str:
    """Return a checkpoint's SHA-256. For a Hugging Face model, it covers weights and JSON files."""
    if not is_hugging_face(path):
        return sha256(path)
    weights = _weights_file(path)
    files = [weights, *(weights.parent / name for name in (_CONFIG, _PREPROCESSOR))]
    digests = [sha256(file) for file in files if file.is_file()]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def load_hf_checkpoint(
    path: Path, models: tuple[str, ...], device: torch.device
) -> tuple[Settings, Weights]:
    """Read a checkpoint of one of ``models`` (values of ``model_type``). Raises ``UserError`` as
    ``load_fairseq_checkpoint`` does. Without a preprocessor_config.json, the waveform is normalised
    if the convolutions have layer norms, as in fairseq's checkpoints.
    """
    file = _weights_file(path)
    path = file.parent / _CONFIG
    config = read_json(path, _SOURCE)
    if (kind := config.get("model_type")) not in models:
        raise UserError(f"{path}: model_type is {shown(kind)}; expected {' or '.join(models)}")
    check_only(_ONLY, config, path)
    norm = config.get("feat_extract_norm", "group")
    if norm not in list(_EXTRACTORS):  # a list, because the value may be unhashable
        raise UserError(f"{path}: feat_extract_norm={shown(norm)}; expected group or layer")
    model = {name: config[hf_name] for name, hf_name in _SETTINGS.items() if hf_name in config}
    defaults = zip(*Settings().conv_feature_layers)
    columns = [config.get(key, list(column)) for key, column in zip(_CONVS, defaults)]
    try:
        layers = tuple(zip(*columns, strict=True))
    except (TypeError, ValueError):
        layers = ()
    if not layers or not all(type(n) is int and n > 0 for layer in layers for n in layer):
        raise UserError(f"{path}: {', '.join(_CONVS)}: expected three lists of sizes, equally long")
    model |= {"conv_feature_layers": layers, "extractor_mode": _EXTRACTORS[norm]}
    model["normalize"] = _normalize(file.parent / _PREPROCESSOR, norm == "layer")
    settings = checked_settings(model, path, _SETTINGS)
    is_safe = file.suffix == ".safetensors"
    tensors = load_safetensors(file) if is_safe else load_torch_values(file, mapped=True)
    if not isinstance(tensors, dict):
        raise UserError(f"{file}: expected named tensors, found {type(tensors).__name__}")
    weights = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, str(name))
        weights[name if norm == "layer" else name.replace(".2.1.", ".2.")] = tensor
    return settings, Weights(weights, file, device)


def _weights_file(path: Path) -> Path:
    """Return the path of the weights. Raises ``UserError`` if they or config.json are missing."""
    if path.is_file():
        return path
    files = [path / name for name in _WEIGHTS if (path / name).is_file()]
    if not files or not (path / _CONFIG).is_file():
        expected = f"expected {_CONFIG} and {' or '.join(_WEIGHTS)} in this folder"
        remedy = "get the whole model, or name the file of a fairseq checkpoint"
        raise UserError(f"{path}: {expected}; {remedy}")
    return files[0]


def _normalize(path: Path, default: bool) -> bool:
    if not path.is_file():
        return default
    settings = read_json(path, _SOURCE)
    if (rate := settings.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise UserError(f"{path}: sampling_rate={shown(rate)}; expected {SAMPLE_RATE}")
    normalize = settings.get("do_normalize", True)  # transformers' default
    if not isinstance(normalize, bool):
        raise UserError(f"{path}: do_normalize={shown(normalize)}; expected true or false")
    return normalize
