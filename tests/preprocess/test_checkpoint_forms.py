"""HuBERT and wav2vec 2.0 in other forms give the same numbers as fairseq's file with the same
weights. The forms are Hugging Face's folders and files written by older software.

Against transformers' own models (5.24, random weights) the largest difference was 9e-6.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans

from pipeline.devices import Ranks
from pipeline.rows import SPLITS
from pipeline.unit_models import listed_unit_model
from pipeline.workspace import Workspace
from preprocess.actions.quantize import Quantizing
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hf_checkpoint import fingerprint
from preprocess.speech2unit.hubert import Hubert, Wav2Vec2
from pretrained_models.fetching.pretrained import PretrainedModels
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.ssl_checkpoints import LARGE
from tests.preprocess.tasks import preprocessor
from tests.reliability.hostile import refused

WAVES = [
    (0.1 + 0.2 * number) * torch.randn(length, generator=torch.Generator().manual_seed(number))
    for number, length in enumerate((16_000, 5_000, 400))
]
MAKE = {Hubert: ssl_checkpoints.hubert, Wav2Vec2: ssl_checkpoints.wav2vec2}
READERS = pytest.mark.parametrize("reader", MAKE)


def features(reader: type[Hubert], path: Path, **source: object) -> torch.Tensor:
    return torch.cat(reader(Source(path, **source))(WAVES))


@pytest.mark.parametrize("new", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("large", [True, False])
@READERS
def test_hugging_face(tmp_path: Path, reader: type[Hubert], large: bool, new: bool) -> None:
    """Any layer, of the bare model or of a recogniser, given as a folder or as a weights file."""
    base = {"extractor_mode": "default", "conv_bias": False, "layer_norm_first": False}
    MAKE[reader](tmp_path / "model.pt", normalize=False, **(LARGE if large else base))
    prefix = "" if new else f"{reader.models[0]}."
    folder = ssl_checkpoints.hugging_face(tmp_path / "hf", tmp_path / "model.pt", new, prefix)
    weights = folder / ("model.safetensors" if new else "pytorch_model.bin")
    for layers in ({"layer": 2}, {"all_layers": True}):
        expected = features(reader, tmp_path / "model.pt", normalize=False, **layers)
        assert expected.std() > 0.1
        for path in (folder, weights):
            assert torch.equal(features(reader, path, normalize=False, **layers), expected)
    assert fingerprint(folder) == fingerprint(weights) != fingerprint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("preprocessor", "norm", "requested", "expected"),
    [
        ({"do_normalize": True}, "group", None, True),
        ({"do_normalize": False}, "layer", None, False),
        ({"do_normalize": True}, "group", False, False),
        ({}, "group", None, True),  # transformers' default
        (None, "group", None, False),
        (None, "layer", None, True),
    ],
)
def test_what_says_whether_waveforms_are_normalised(
    tmp_path: Path, preprocessor: dict | None, norm: str, requested: bool | None, expected: bool
) -> None:
    """It works as in fairseq. The reader's note and the folder's fingerprint depend on it."""
    path = tmp_path / "model.pt"
    ssl_checkpoints.hubert(path, **(LARGE if norm == "layer" else {}))
    folder = ssl_checkpoints.hugging_face(tmp_path / "hf", path)
    before = fingerprint(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        assert fingerprint(folder) != before
    reader = Hubert(Source(folder, 2, requested))
    expected_features = features(Hubert, path, layer=2, normalize=expected)
    assert torch.equal(torch.cat(reader(WAVES)), expected_features)
    assert reader.note == f"; of {folder}, waveforms {'' if expected else 'not '}normalised"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ssl_checkpoints.hubert(tmp_path / "model.pt")
    return ssl_checkpoints.hugging_face(tmp_path / "hf", tmp_path / "model.pt")


def a_weight(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors")

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "wavlm"}, "model_type is wavlm; expected hubert"),
        ({"model_type": {}}, "model_type is {}; expected hubert"),
        ({"num_hidden_layers": "3"}, "layers=3 is not a value that transformers writes"),
        ({"num_attention_heads": 7}, "num_attention_heads=7 does not divide"),
        ({"hidden_act": "relu"}, "hidden_act=relu is not supported"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim=16 is not supported; expected None"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001 is not supported; expected 1e-05"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True is not supp"),
        ({"feat_extract_norm": "rms"}, "feat_extract_norm=rms; expected group or layer"),
        ({"feat_extract_norm": []}, "feat_extract_norm=[]; expected group"),
        ({"conv_dim": [32]}, "expected three lists of sizes, equally long"),
        ({"conv_dim": 32}, "expected three lists of sizes, equally long"),
        ({"conv_dim": ["open()"] * 7}, "expected three lists of sizes, equally long"),
        ({"sampling_rate": 8000}, "sampling_rate=8000; expected 16000"),
        ({"do_normalize": 1}, "do_normalize=1; expected true"),
        (
            a_weight("encoder.layers.0.feed_forward.output_dense.weight"),
            "encoder.layers.0.fc2.weight",
        ),
        (a_weight("encoder.pos_conv_embed.conv.parametrizations.weight.original1"), "weight_v ("),
        (without("config.json"), "expected config.json and model.safetensors or pytorch_model.bin"),
        (without("model.safetensors"), "expected config.json and model.safetensors or pytorch"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder: Path, change: object, expected: str) -> None:
    if isinstance(change, dict):
        is_preprocessor = {"sampling_rate", "do_normalize"} & set(change)
        path = folder / ("preprocessor_config.json" if is_preprocessor else "config.json")
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | change))
    else:
        change(folder)
    assert expected in refused(lambda: Hubert(Source(folder, 2)))
    if not (folder / "config.json").exists():
        message = refused(lambda: Hubert(Source(folder / "model.safetensors", 2)))
        assert f"{folder / 'config.json'}: not found; run the download of the model" in message


def test_a_thousand_clusters_of_a_folder_make_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mHuBERT has this form (with layer 11): a folder and a joblib k-means, both named by path."""
    ssl_checkpoints.hubert(tmp_path / "model.pt")
    ssl_checkpoints.hugging_face(tmp_path / "models" / "hf", tmp_path / "model.pt")
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands")
    model = MiniBatchKMeans(1000, n_init=1, init="random", random_state=0)
    frames = np.random.default_rng(0).standard_normal((1200, 48)).astype(np.float32)
    joblib.dump(model.fit(frames), tmp_path / "models" / "km.bin")
    known = {"feature_type": "hubert", "checkpoint": "mhubert", "layer": 3, "clusters": 1000}
    known["kmeans"] = {"path": "models/km.bin"}
    table = {
        "checkpoints": {"mhubert": {"path": "models/hf"}},
        "unit_models": {"mhubert1000": known},
    }
    (tmp_path / "pretrained_models").mkdir()
    (tmp_path / "pretrained_models" / "my_unit_models.yaml").write_text(json.dumps(table))
    settings = ("taskrc.unit_model=mhubert1000", "fairseqrc.km_clusters=1000")
    preprocessor("fluent_commands", tmp_path, *settings).generate_manifest()
    units = {}
    for path in ("models/hf", "model.pt"):
        task = preprocessor("fluent_commands", tmp_path, *settings, f"fairseqrc.ckpt_path={path}")
        Quantizing(task).run(Ranks(), skip_bad=False)
        printed = capsys.readouterr().out
        units[path] = [(task.quantized / split).read_bytes() for split in SPLITS]
        assert ("hf, waveforms not normalised" in printed) == (path == "models/hf")
        assert "features in float32 on" in printed and "1000 clusters of" in printed
    assert units["models/hf"] == units["model.pt"]
    assert max(int(unit) for unit in units["model.pt"][0].split(b"|")[1].split()[:-1]) > 200
    checkpoint = listed_unit_model("mhubert1000", Workspace(tmp_path)).checkpoint
    assert PretrainedModels(Workspace(tmp_path)).get(checkpoint, 1) == "exists, your own"


def test_old_hubert_and_kmeans_give_the_units_of_the_old_reader(data: Path, tmp_path: Path) -> None:
    """A HuBERT by fairseq e55e094 and a k-means by scikit-learn 0.24.2 give 980 of 980 units."""
    old = data / "old_formats" / "hubert_fairseq_e55e094"
    expected = dict(line.split("|") for line in (old / "units.txt").read_text().splitlines())
    rows = [f"{name},word,{SPLITS[n % 3]}" for n, name in enumerate(expected)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    audio = data / "audio" / "speech_commands" / "speech_commands_test_set_v0.01"
    task = preprocessor(
        "table", tmp_path, f"datarc.root_path={audio}", f"datarc.table={tmp_path / 'table.csv'}",
        "taskrc.unit_model=old50", "fairseqrc.km_clusters=50", "fairseqrc.feature_type=hubert",
        f"fairseqrc.ckpt_path={old / 'hubert.pt'}", f"fairseqrc.km_path={old / 'km.bin'}",
        "fairseqrc.layer=3",
    )  # fmt: skip
    task.generate_manifest()
    Quantizing(task).run(Ranks(), skip_bad=False)
    lines = [line for split in SPLITS for line in (task.quantized / split).read_text().splitlines()]
    assert dict(line.split("|") for line in lines) == expected
    assert sum(len(units.split()) for units in expected.values()) == 980


def weight_norm_by_its_new_names(state: dict, kind: str) -> dict:
    """Use torch's parametrised spelling, which converters and newer fairseq forks write."""
    for number, name in enumerate(("weight_g", "weight_v")):
        weight = state["model"].pop(f"encoder.pos_conv.0.{name}")
        state["model"][f"encoder.pos_conv.0.parametrizations.weight.original{number}"] = weight
    return state


def settings_of(state: dict, kind: str) -> argparse.Namespace:
    settings = state["args"] or argparse.Namespace(**state["cfg"]["model"], normalize=False)
    settings.arch = kind
    return settings


def recogniser(state: dict, kind: str, is_old: bool) -> dict:
    """Make a fine-tuned checkpoint: model settings in ``w2v_args``, and weights with a prefix."""
    inner = settings_of(state, kind)
    weights = {f"w2v_encoder.w2v_model.{name}": w for name, w in state["model"].items()}
    weights["w2v_encoder.proj.weight"] = torch.zeros(32, 48)
    name = {"hubert": "hubert_ctc", "wav2vec2": "wav2vec_ctc"}[kind]
    if is_old:
        outer = {"args": argparse.Namespace(arch=name, w2v_args=inner, normalize=True)}
    else:
        model = {"_name": kind, **{k: v for k, v in vars(inner).items() if k != "_name"}}
        nested = {"model": model, "task": {"normalize": inner.normalize, "sample_rate": 16_000}}
        outer = {"cfg": {"model": {"_name": name, "w2v_args": nested}, "task": {}}}
    return {**outer, "model": weights}


def without_later_settings(state: dict, kind: str) -> dict:
    """Use the keys of wav2vec_small.pt: an ``args`` without later settings, and an EMA."""
    settings = settings_of(state, kind)
    later = ("layer_type", "pos_conv_depth", "_name", "conv_pos_batch_norm")
    for name in set(later) & set(vars(settings)):
        delattr(settings, name)
    return {
        "args": settings,
        "model": {**state["model"], "_ema": torch.zeros(1)},
        "optimizer_history": [{"num_updates": 4}],
        "extra_state": {"ema": {"mask_emb": torch.zeros(48)}, "best": 1.5},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": [{}]},
    }


@pytest.mark.parametrize(
    "rewrite",
    [
        weight_norm_by_its_new_names,
        lambda state, kind: recogniser(state, kind, is_old=True),
        lambda state, kind: recogniser(state, kind, is_old=False),
        without_later_settings,
    ],
    ids=["weight norm", "recogniser, args", "recogniser, cfg", "before 2021"],
)
@READERS
def test_files_of_fairseq_of_any_age(
    tmp_path: Path, reader: type[Hubert], rewrite: Callable[[dict, str], dict]
) -> None:
    """They may be in half precision, or written by torch before 1.6 (no zip archive)."""
    path = tmp_path / "model.pt"
    MAKE[reader](path)
    state = torch.load(path, weights_only=False)
    state["model"] = {name: weight.half() for name, weight in state["model"].items()}
    torch.save(state, path)
    expected = features(reader, path, layer=2)
    for is_zip in (True, False):
        state = torch.load(path, weights_only=False)
        written = tmp_path / f"{is_zip}.pt"
        torch.save(rewrite(state, reader.models[0]), written, _use_new_zipfile_serialization=is_zip)
        assert torch.equal(features(reader, written, layer=2), expected)
