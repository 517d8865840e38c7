"""Write HuBERT, wav2vec 2.0 and CPC checkpoints in the released formats, with random weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from preprocess.speech2unit.cpc import KERNELS

CPC_LEVELS = 4  # layers of the LSTM
SHAPE = {
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "conv_pos": 128,
    "conv_pos_groups": 16,
}
LARGE = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}


def hubert(
    path: Path, normalize: bool = False, spread: bool = True, **settings: object
) -> torch.nn.Module:
    """Write a checkpoint like hubert_base_ls960.pt (``cfg``, pretraining heads, task state). Return
    fairseq's model, for comparison.
    """
    from fairseq.data import Dictionary
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    dictionary = Dictionary()
    for unit in range(10):
        dictionary.add_symbol(str(unit))
    config = HubertConfig(label_rate=50, **(SHAPE | settings))
    task = HubertPretrainingConfig(data="/nowhere", label_rate=50, normalize=normalize)
    torch.manual_seed(1)
    model = HubertModel(config, task, [dictionary]).eval()
    if spread:
        _spread(model)
    state = {
        "args": None,
        "cfg": {
            "model": _plain(config) | {"_name": "hubert"},
            "task": {"_name": "hubert_pretraining", "normalize": normalize, "sample_rate": 16_000},
        },
        "model": model.state_dict(),
        "task_state": {"dictionaries": [dictionary]},
        "optimizer_history": [{"num_updates": 3}],
    }
    torch.save(state, path)
    return model


def wav2vec2(path: Path, normalize: bool = True, **settings: object) -> torch.nn.Module:
    """Write a checkpoint like wav2vec_vox_new.pt (one Namespace, ``args``); return the model."""
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(**(SHAPE | LARGE | settings))
    torch.manual_seed(2)
    model = _spread(Wav2Vec2Model(config))
    args = argparse.Namespace(
        **_plain(config), arch="wav2vec2", task="audio_pretraining", normalize=normalize
    )
    torch.save({"args": args, "model": model.state_dict()}, path)
    return model


def cpc(path: Path, channels: int = 32, hidden: int = 24, gain: float = 2) -> Path:
    """Write a checkpoint like cpc_big_ll6kh_top_ctc.pt, with a training head that is not read."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(channels, hidden, CPC_LEVELS)
    # gain: torch's initial weights give nearly constant features, whose units depend on rounding
    weights = {f"gAR.baseNet.{name}": gain * value for name, value in lstm.state_dict().items()}
    for index, kernel in enumerate(KERNELS):
        conv = torch.nn.Conv1d(channels if index else 1, channels, kernel)
        weights[f"gEncoder.conv{index}.weight"] = conv.weight.data
        weights[f"gEncoder.conv{index}.bias"] = 0.5 + conv.bias.data
        weights[f"gEncoder.batchNorm{index}.weight"] = 1 + 0.3 * torch.randn(1, channels, 1)
        weights[f"gEncoder.batchNorm{index}.bias"] = 0.3 * torch.randn(1, channels, 1)
    weights["cpcCriterion.wPrediction.weight"] = torch.zeros(3)
    config = {"hiddenEncoder": channels, "hiddenGar": hidden, "nLevelsGRU": CPC_LEVELS}
    torch.save({"weights": weights, "config": config}, path)
    return path


def _plain(config: object) -> dict[str, object]:
    plain_types = (int, float, str, bool, type(None))
    return {
        key: value if isinstance(value, plain_types) else str(value)
        for key, value in vars(config).items()
    }


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Move norms and biases away from 1 and 0, so that a missing one changes the result."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "encoder.layers" in name:
                weight.mul_(5)
    return model.eval()


# from fairseq's names of weights to those in transformers, as in its conversion scripts
_TRANSFORMERS_NAMES = {
    "post_extract_proj": "feature_projection.projection",
    "encoder.pos_conv.0": "encoder.pos_conv_embed.conv",
    "self_attn_layer_norm": "layer_norm",
    "self_attn.": "attention.",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
}


def hugging_face(folder: Path, checkpoint: Path, new: bool = True, prefix: str = "") -> Path:
    """Write a checkpoint of ``hubert`` or ``wav2vec2`` as transformers does. ``new``: safetensors
    and torch's newer names of a weight norm; otherwise a pickle and the older names.
    """
    state = torch.load(checkpoint, weights_only=False)
    model = vars(state["args"]) if state["args"] else state["cfg"]["model"]
    layers = eval(model["conv_feature_layers"])
    kind = "hubert" if "_name" in model and model["_name"] == "hubert" else "wav2vec2"
    weights = {}
    for name, weight in state["model"].items():
        parts = name.split(".")
        if name.startswith("layer_norm."):
            name = f"feature_projection.{name}"
        elif name.startswith("feature_extractor."):
            part = "conv" if parts[3] == "0" else "layer_norm"
            name = ".".join([*parts[:3], part, parts[-1]])
        for fairseq_name, new_name in _TRANSFORMERS_NAMES.items():
            name = name.replace(fairseq_name, new_name)
        if new:
            for number, part in enumerate(("weight_g", "weight_v")):
                name = name.replace(part, f"parametrizations.weight.original{number}")
        weights[prefix + name] = weight.contiguous()
    folder.mkdir(parents=True)
    config = {
        "model_type": kind,
        "hidden_size": model["encoder_embed_dim"],
        "num_hidden_layers": model["encoder_layers"],
        "num_attention_heads": model["encoder_attention_heads"],
        "intermediate_size": model["encoder_ffn_embed_dim"],
        "conv_bias": model["conv_bias"],
        "feat_extract_norm": {"default": "group"}.get(model["extractor_mode"], "layer"),
        "do_stable_layer_norm": model["layer_norm_first"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
    } | dict(zip(("conv_dim", "conv_kernel", "conv_stride"), zip(*layers)))
    (folder / "config.json").write_text(json.dumps(config))
    if new:
        save_file(weights, folder / "model.safetensors")
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    return folder
