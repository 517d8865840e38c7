"""Small HuBERT and wav2vec 2.0 checkpoints in fairseq's released formats, with random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

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


def hubert(path: Path, normalize: bool = False, **settings: object) -> torch.nn.Module:
    """Write a checkpoint as hubert_base_ls960.pt is (``cfg``, pretraining heads, task state) and
    return fairseq's own model, ready to be compared with.
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
    model = _spread(HubertModel(config, task, [dictionary]))
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
    """Write a checkpoint as wav2vec_vox_new.pt is (one Namespace, ``args``); return the model."""
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(**(SHAPE | LARGE | settings))
    torch.manual_seed(2)
    model = _spread(Wav2Vec2Model(config))
    args = argparse.Namespace(
        **_plain(config), arch="wav2vec2", task="audio_pretraining", normalize=normalize
    )
    torch.save({"args": args, "model": model.state_dict()}, path)
    return model


def _plain(config: object) -> dict[str, object]:
    kinds = (int, float, str, bool, type(None))
    return {
        key: value if isinstance(value, kinds) else str(value)
        for key, value in vars(config).items()
    }


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases away from 1 and 0, so that leaving one out shows."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "encoder.layers" in name:
                weight.mul_(5)
    return model.eval()
