"""HuBERT, wav2vec 2.0 and k-means files as older software wrote them."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
import torch

from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hubert import Hubert, Wav2Vec2
from tests.conftest import stage
from tests.preprocess import ssl_checkpoints

SPLITS = ("train", "valid", "test")


def test_old_hubert_and_kmeans_give_the_units_of_the_old_reader(data: Path, tmp_path: Path) -> None:
    """A HuBERT by fairseq e55e094 and a k-means by scikit-learn 0.24.2: 980 of 980 units."""
    old = data / "old_formats" / "hubert_fairseq_e55e094"
    expected = dict(line.split("|") for line in (old / "units.txt").read_text().splitlines())
    table = tmp_path / "table.csv"
    with open(table, "w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["path", "label", "split"])
        rows.writerows([name, "word", SPLITS[n % 3]] for n, name in enumerate(expected))
    audio = data / "audio" / "speech_commands" / "speech_commands_test_set_v0.01"
    settings = (
        f"datarc.root_path={audio}", f"datarc.table={table}", "fairseqrc.feature_type=hubert",
        f"fairseqrc.ckpt_path={old / 'hubert.pt'}", f"fairseqrc.km_path={old / 'km.bin'}",
        "fairseqrc.layer=3",
    )  # fmt: skip
    for action in ("generate_manifest", "quantized"):
        stage(
            "preprocess/runner.py", "--workspace", tmp_path, "--downstream", "table",
            "--unit_model", "old50", "--action", action, "--set", *settings,
        )  # fmt: skip
    quantized = tmp_path / "preprocess" / "table" / "data" / "old50" / "quantized"
    lines = [line for split in SPLITS for line in (quantized / split).read_text().splitlines()]
    found = dict(line.split("|") for line in lines)
    assert found.keys() == expected.keys()
    pairs = [
        pair
        for name, units in expected.items()
        for pair in zip(units.split(), found[name].split(), strict=True)
    ]
    assert len(pairs) == 980
    assert sum(one == other for one, other in pairs) == 980


@pytest.fixture(params=["hubert", "wav2vec2"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, type[Hubert]]:
    """A checkpoint, the name of its kind, and its reader."""
    path = tmp_path / "model.pt"
    if request.param == "hubert":
        ssl_checkpoints.hubert(path)
        return request.param, path, Hubert
    ssl_checkpoints.wav2vec2(path)
    return request.param, path, Wav2Vec2


def features(reader: type[Hubert], path: Path) -> torch.Tensor:
    wave = torch.sin(torch.arange(8000) * 0.05) + 0.3 * torch.sin(torch.arange(8000) * 0.31)
    return reader(Source(path, 2))([wave])[0]


def test_weight_norm_by_its_new_names(family: tuple[str, Path, type[Hubert]]) -> None:
    """torch's parametrised spelling, which converters and newer fairseq forks write."""
    _, path, reader = family
    expected = features(reader, path)
    state = torch.load(path, weights_only=False)
    for number, name in enumerate(("weight_g", "weight_v")):
        weight = state["model"].pop(f"encoder.pos_conv.0.{name}")
        state["model"][f"encoder.pos_conv.0.parametrizations.weight.original{number}"] = weight
    torch.save(state, path)
    assert torch.equal(features(reader, path), expected)


@pytest.mark.parametrize("age", ["args", "cfg"])
def test_recogniser_trained_on_from_the_model(
    family: tuple[str, Path, type[Hubert]], age: str
) -> None:
    """Fine-tuned checkpoints hold the model's settings as ``w2v_args`` and prefix its weights."""
    kind, path, reader = family
    expected = features(reader, path)
    state = torch.load(path, weights_only=False)
    inner = state["args"] or argparse.Namespace(**state["cfg"]["model"], **{"normalize": False})
    inner.arch = kind
    weights = {f"w2v_encoder.w2v_model.{name}": w for name, w in state["model"].items()}
    weights["w2v_encoder.proj.weight"] = torch.zeros(32, 48)
    name = {"hubert": "hubert_ctc", "wav2vec2": "wav2vec_ctc"}[kind]
    if age == "args":
        outer = {"args": argparse.Namespace(arch=name, w2v_args=inner, normalize=True)}
    else:
        model = {"_name": kind, **{k: v for k, v in vars(inner).items() if k != "_name"}}
        nested = {"model": model, "task": {"normalize": inner.normalize, "sample_rate": 16_000}}
        outer = {"cfg": {"model": {"_name": name, "w2v_args": nested}, "task": {}}}
    torch.save({**outer, "model": weights}, path)
    assert torch.equal(features(reader, path), expected)


def test_torch_files_before_1_6_in_half_precision(family: tuple[str, Path, type[Hubert]]) -> None:
    """wav2vec_small.pt's keys: no zip archive, an ``args`` without what came later, EMA beside."""
    kind, path, reader = family
    state = torch.load(path, weights_only=False)
    state["model"] = {name: weight.half() for name, weight in state["model"].items()}
    torch.save(state, path)
    expected = features(reader, path)
    settings = state["args"] or argparse.Namespace(**state["cfg"]["model"], normalize=False)
    settings.arch = kind
    later = ("layer_type", "pos_conv_depth", "_name", "conv_pos_batch_norm")
    for name in set(later) & set(vars(settings)):
        delattr(settings, name)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": [{"lr": 0.1}]}
    old = {
        "args": settings,
        "model": {**state["model"], "_ema": torch.zeros(1)},
        "optimizer_history": [{"num_updates": 4}],
        "extra_state": {"ema": {"mask_emb": torch.zeros(48)}, "best": 1.5},
        "last_optimizer_state": optimizer,
    }
    torch.save(old, path, _use_new_zipfile_serialization=False)
    assert torch.equal(features(reader, path), expected)
