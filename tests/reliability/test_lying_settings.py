"""Settings beside weights that lie about them: refused before a model is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preprocess.speech2unit.cpc import Cpc
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hubert import Hubert
from tests.preprocess import ssl_checkpoints
from tests.reliability.hostile import refused
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.lm import load_unit_lm

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "lies",
    [
        {"decoder_layers": 1000},
        {"decoder_layers": 10**9},
        {"decoder_ffn_embed_dim": 1 << 20},
        {"decoder_embed_dim": 1 << 16, "decoder_input_dim": 1 << 16, "decoder_output_dim": 1 << 16},
        {"decoder_attention_heads": 5},
        {"decoder_attention_heads": 0},
        {"max_target_positions": 10**9},
        {"max_target_positions": None, "tokens_per_sample": 10**12},
        {"decoder_layers": "3"},
        {"decoder_layers_to_keep": "1," * 10**6},
        {"activation_fn": "exec"},
        {"share_decoder_input_output_embed": [1]},
        {"decoder_learned_pos": torch.zeros(2)},
    ],
    ids=lambda lies: str(lies)[:40],
)
def test_settings_of_a_unit_lm(tmp_path: Path, lies: dict) -> None:
    tiny.write_lm(tmp_path)
    path = tmp_path / "checkpoint_best.pt"
    state = torch.load(path, weights_only=False)
    vars(state["args"]).update(lies)
    torch.save(state, path)
    assert str(tmp_path) in refused(lambda: load_unit_lm(tmp_path))


@pytest.mark.parametrize("lies", [{"args": [1]}, {"args": None, "cfg": [1]}, {"model": {"a": 1}}])
def test_parts_of_a_unit_lm(tmp_path: Path, lies: dict) -> None:
    tiny.write_lm(tmp_path)
    path = tmp_path / "checkpoint_best.pt"
    torch.save({**torch.load(path, weights_only=False), **lies}, path)
    refused(lambda: load_unit_lm(tmp_path))


@pytest.mark.parametrize(
    "lies", [{"hiddenGar": 65_536}, {"nLevelsGRU": 65_536}, {"hiddenEncoder": 65_536}], ids=str
)
def test_settings_of_cpc(tmp_path: Path, lies: dict) -> None:
    path = ssl_checkpoints.cpc(tmp_path / "cpc.pt")
    state = torch.load(path)
    torch.save({**state, "config": state["config"] | lies}, path)
    refused(lambda: Cpc(Source(path, None, None, CPU, all_layers=True)))


@pytest.mark.parametrize(
    "lies",
    [
        {"encoder_embed_dim": 10**9},
        {"encoder_layers": 10**9},
        {"conv_pos": 10**9},
        {"conv_pos_groups": 7},
        {"encoder_attention_heads": 7},
        {"conv_feature_layers": "[(999999999,10,5)]"},
        {"conv_feature_layers": "[(32,10,5)] * 999999999"},
        {"pos_conv_depth": torch.zeros(2)},
    ],
    ids=str,
)
def test_settings_of_hubert(tmp_path: Path, lies: dict) -> None:
    path = tmp_path / "hubert.pt"
    ssl_checkpoints.hubert(path)
    state = torch.load(path)
    state["cfg"]["model"] |= lies
    torch.save(state, path)
    refused(lambda: Hubert(Source(path, None, None, CPU, all_layers=True)))
