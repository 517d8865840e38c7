"""Settings beside weights that do not fit them: refused in one line."""

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
        {"decoder_layers": 4},
        {"decoder_ffn_embed_dim": 40},
        {"decoder_attention_heads": 5},
        {"decoder_attention_heads": 0},
        {"decoder_layers": "3"},
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
    "lies", [{"hiddenGar": 65}, {"nLevelsGRU": 9}, {"hiddenEncoder": 65}], ids=str
)
def test_settings_of_cpc(tmp_path: Path, lies: dict) -> None:
    path = ssl_checkpoints.cpc(tmp_path / "cpc.pt")
    state = torch.load(path)
    torch.save({**state, "config": state["config"] | lies}, path)
    refused(lambda: Cpc(Source(path, None, None, CPU, all_layers=True)))


@pytest.mark.parametrize(
    "lies",
    [
        {"encoder_embed_dim": 40},
        {"encoder_layers": 9},
        {"conv_pos": 64},
        {"conv_pos_groups": 7},
        {"encoder_attention_heads": 7},
        {"conv_feature_layers": "[(32,10,5)] * 3"},
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
