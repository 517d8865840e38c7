"""A HuBERT or wav2vec 2.0 in Hugging Face's form: config.json beside model.safetensors or
pytorch_model.bin. Its names become fairseq's, so that one network computes both forms.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.torch_files import load_safetensors, load_torch_values
from preprocess.speech2unit.fairseq_checkpoint import Settings, Weights, check_settings, shown

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SOURCE = "the download of the model"  # what an error of read_json says to run again
# fairseq's setting: config.json's. Both have the same defaults
_SETTINGS = {
    "conv_bias": "conv_bias",
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "layer_norm_first": "do_stable_layer_norm",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "conv_pos_batch_norm": "conv_pos_batch_norm",
    "activation_fn": "hidden_act",
}
# what our forward pass does not do, and the value that leaves it undone
_REFUSED = {
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "layer_norm_eps": 1e-5,
    "adapter_attn_dim": None,
}
_EXTRACTORS = {"group": "default", "layer": "layer_norm"}
_CONV = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
# fairseq's names of weights, and Hugging Face's
_NAMES = (
    (r"^layer_norm", "feature_projection.layer_norm"),
    (r"^post_extract_proj", "feature_projection.projection"),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
    (r"^encoder\.pos_conv\.0", "encoder.pos_conv_embed.conv"),
    (r"\.self_attn_layer_norm", ".layer_norm"),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


def is_hugging_face(path: Path) -> bool:
    """Whether ``path`` is a Hugging Face model: its folder, or its weights beside config.json."""
    is_weights = path.name in _WEIGHTS and (path.parent / CONFIG).is_file()
    return path.is_dir() or (path.is_file() and (path.suffix == ".safetensors" or is_weights))


def fingerprint(path: Path) -> str:
    """The SHA-256 of a speech model's checkpoint; of a Hugging Face model's files together."""
    if not is_hugging_face(path):
        return sha256(path)
    weights = _weights_file(path)
    files = [weights, *(weights.parent / name for name in (CONFIG, PREPROCESSOR))]
    digests = [sha256(file) for file in files if file.is_file()]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def load_hf_checkpoint(
    path: Path, models: tuple[str, ...], device: torch.device
) -> tuple[Settings, Weights]:
    """Read a model, or a recogniser fine-tuned from one, whose ``model_type`` is one of ``models``.

    Without preprocessor_config.json the waveform is normalised where the convolutions have layer
    norms, as with fairseq's own models. Raises ``UserError`` as ``load_fairseq_checkpoint``.
    """
    file = _weights_file(path)
    config_path = file.parent / CONFIG
    config = read_json(config_path, _SOURCE)
    if config.get("model_type") not in models:
        found = shown(config.get("model_type"))
        raise UserError(f"{config_path}: model_type is {found}; expected {' or '.join(models)}")
    for key, expected in _REFUSED.items():
        if (value := config.get(key, expected)) != expected:
            raise UserError(f"{config_path}: {key}={shown(value)}; only {expected} is supported")
    settings = _settings(config, config_path, _normalize(file.parent, config))
    is_safe = file.suffix == ".safetensors"
    tensors = load_safetensors(file) if is_safe else load_torch_values(file, mapped=True)
    if not isinstance(tensors, dict):
        raise UserError(f"{file}: expected named tensors, found {type(tensors).__name__}")
    inside = re.compile(rf"^({'|'.join(models)})\.")  # of a recogniser or a pretraining model
    tensors = {inside.sub("", str(name)): tensor for name, tensor in tensors.items()}
    return settings, Weights(tensors, file, device, _NAMES)


def _weights_file(path: Path) -> Path:
    """The file of the weights. Raises ``UserError`` for a folder without config.json or weights."""
    if path.is_file():
        return path
    files = [path / name for name in _WEIGHTS if (path / name).is_file()]
    if not files or not (path / CONFIG).is_file():
        raise UserError(
            f"{path}: expected {CONFIG} and {' or '.join(_WEIGHTS)} in this folder; get the whole "
            "model, or name fairseq's checkpoint, a file"
        )
    return files[0]


def _normalize(folder: Path, config: dict[str, Any]) -> bool:
    preprocessor, said = folder / PREPROCESSOR, None
    if preprocessor.is_file():
        settings = read_json(preprocessor, _SOURCE)
        if (rate := settings.get("sampling_rate", 16_000)) != 16_000:
            raise UserError(f"{preprocessor}: sampling_rate={shown(rate)}; expected 16000")
        said = settings.get("do_normalize", True)
        if not isinstance(said, bool):
            raise UserError(f"{preprocessor}: do_normalize={shown(said)}; expected true or false")
    return config.get("feat_extract_norm") == "layer" if said is None else said


def _settings(config: dict[str, Any], path: Path, normalize: bool) -> Settings:
    norm = config.get("feat_extract_norm", "group")
    if norm not in list(_EXTRACTORS):  # it may be anything
        raise UserError(f"{path}: feat_extract_norm={shown(norm)}; expected group or layer")
    shape = {key: config.get(key, default) for key, default in _CONV.items()}
    columns = list(shape.values())
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        raise UserError(f"{path}: {', '.join(shape)}: expected three lists of one length")
    conv_layers = " + ".join(f"[({c},{k},{s})]" for c, k, s in zip(*columns))
    model = {ours: config[theirs] for ours, theirs in _SETTINGS.items() if theirs in config}
    model |= {"extractor_mode": _EXTRACTORS[norm], "conv_feature_layers": conv_layers}
    return check_settings(model, normalize, path, _SETTINGS)
