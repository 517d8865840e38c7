"""HuBERT and wav2vec 2.0 in Hugging Face's form: the numbers of fairseq's file of the same weights.

Against transformers' own models (5.24, random weights) the largest difference was 9e-6.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans

from pipeline.files import kind_of_file
from pipeline.rows import SPLITS
from pipeline.unit_models import unit_model
from pipeline.workspace import Workspace
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hf_checkpoint import fingerprint
from preprocess.speech2unit.hubert import Hubert, Wav2Vec2
from pretrained_models.fetching.pretrained import PretrainedModels
from tests.conftest import stage
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.ssl_checkpoints import LARGE
from tests.reliability.hostile import refused

WAVES = [
    (0.1 + 0.2 * number) * torch.randn(length, generator=torch.Generator().manual_seed(number))
    for number, length in enumerate((16_000, 5_000, 400))
]


def features(reader: type[Hubert], path: Path, **source: object) -> torch.Tensor:
    return torch.cat(reader(Source(path, **source))(WAVES))


@pytest.mark.parametrize("new", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("reader", [Hubert, Wav2Vec2])
def test_the_numbers_of_fairseqs_file(
    tmp_path: Path, reader: type[Hubert], large: bool, new: bool
) -> None:
    """Any layer, whether of the bare model or inside a recogniser, by its folder or its weights."""
    make = ssl_checkpoints.hubert if reader is Hubert else ssl_checkpoints.wav2vec2
    settings = LARGE if large else {key: type(value)() for key, value in LARGE.items()}
    if not large:
        settings["extractor_mode"] = "default"
    make(tmp_path / "model.pt", normalize=False, **settings)
    prefix = "" if new else f"{reader.models[0]}."
    folder = ssl_checkpoints.hugging_face(tmp_path / "hf", tmp_path / "model.pt", new, prefix)
    weights = folder / ("model.safetensors" if new else "pytorch_model.bin")
    for asked in ({"layer": 2}, {"all_layers": True}):
        expected = features(reader, tmp_path / "model.pt", normalize=False, **asked)
        assert expected.std() > 0.1
        for path in (folder, weights):
            assert torch.equal(features(reader, path, normalize=False, **asked), expected)
    assert fingerprint(folder) == fingerprint(weights) != fingerprint(tmp_path / "model.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ssl_checkpoints.hubert(tmp_path / "model.pt")
    return ssl_checkpoints.hugging_face(tmp_path / "hf", tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("preprocessor", "norm", "asked", "expected"),
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
    tmp_path: Path, preprocessor: dict | None, norm: str, asked: bool | None, expected: bool
) -> None:
    """As in fairseq, and the reader says which. The folder's fingerprint covers it."""
    path = tmp_path / "model.pt"
    ssl_checkpoints.hubert(path, **(LARGE if norm == "layer" else {}))
    folder = ssl_checkpoints.hugging_face(tmp_path / "hf", path)
    before = fingerprint(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        assert fingerprint(folder) != before
    reader = Hubert(Source(folder, 2, asked))
    wanted = features(Hubert, path, layer=2, normalize=expected)
    assert torch.equal(torch.cat(reader(WAVES)), wanted)
    assert reader.note == f"; of {folder}, waveforms {'' if expected else 'not '}normalised"


def changed(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | values))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def a_weight(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors")

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed("config.json", model_type="wavlm"), "model_type is wavlm; expected hubert"),
        (changed("config.json", model_type="wav2vec2"), "is wav2vec2; expected hubert"),
        (changed("config.json", num_hidden_layers="3"), "num_hidden_layers=3 is not what transf"),
        (changed("config.json", num_attention_heads=7), "num_attention_heads=7 does not divide"),
        (changed("config.json", hidden_act="relu"), "hidden_act=relu is not supported"),
        (changed("config.json", adapter_attn_dim=16), "adapter_attn_dim=16; only None"),
        (changed("config.json", layer_norm_eps=1e-3), "layer_norm_eps=0.001; only 1e-05"),
        (changed("config.json", conv_pos_batch_norm=True), "conv_pos_batch_norm=True is not supp"),
        (changed("config.json", feat_extract_norm="rms"), "feat_extract_norm=rms; expected"),
        (changed("config.json", feat_extract_norm=[]), "feat_extract_norm=[]; expected group"),
        (changed("config.json", model_type={}), "model_type is {}; expected hubert"),
        (changed("config.json", conv_dim=[32]), "expected three lists of one length"),
        (changed("config.json", conv_dim=["open()"] * 7), "conv_feature_layers="),
        (changed("preprocessor_config.json", sampling_rate=8000), "sampling_rate=8000; expected"),
        (changed("preprocessor_config.json", do_normalize=1), "do_normalize=1; expected true"),
        (a_weight("encoder.layers.0.feed_forward.output_dense.weight"), "output_dense.weight"),
        (a_weight("encoder.pos_conv_embed.conv.parametrizations.weight.original1"), "original1 ("),
        (without("config.json"), "expected config.json and model.safetensors or pytorch_model.bin"),
        (without("model.safetensors"), "expected config.json and model.safetensors or pytorch"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    folder: Path, change: Callable[[Path], None], expected: str
) -> None:
    change(folder)
    assert expected in refused(lambda: Hubert(Source(folder, 2)))


def test_a_weights_file_without_its_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    path = folder / "model.safetensors"
    message = refused(lambda: Hubert(Source(path, 2)))
    assert f"{folder / 'config.json'}: not found; run the download of the model" in message
    assert kind_of_file(path) == "a safetensors file"
    path.unlink()
    assert f"{path}: checkpoint not found" in refused(lambda: Hubert(Source(path, 2)))


def test_a_thousand_clusters_of_a_folder_make_units(tmp_path: Path) -> None:
    """mHuBERT's form: layer 3 here, 11 there; the k-means by joblib; both named by paths."""
    ssl_checkpoints.hubert(tmp_path / "model.pt")
    ssl_checkpoints.hugging_face(tmp_path / "models" / "hf", tmp_path / "model.pt")
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands")
    model = MiniBatchKMeans(1000, n_init=1, init="random", random_state=0)
    frames = np.random.default_rng(0).standard_normal((1200, 48)).astype(np.float32)
    joblib.dump(model.fit(frames), tmp_path / "models" / "km.bin")
    table = """
checkpoints:
  mhubert: {path: models/hf}
unit_models:
  mhubert1000:
    {feature_type: hubert, checkpoint: mhubert, layer: 3, clusters: 1000,
     kmeans: {path: models/km.bin}}
"""
    pretrained = tmp_path / "pretrained_models"
    pretrained.mkdir()
    (pretrained / "my_unit_models.yaml").write_text(table)
    flags = ("--workspace", tmp_path, "--downstream", "fluent_commands")
    flags += ("--unit_model", "mhubert1000", "--action")
    stage("preprocess/runner.py", *flags, "generate_manifest")
    folder = tmp_path / "preprocess/fluent_commands/data/mhubert1000/quantized"
    units = {}
    for path in ("models/hf", "model.pt"):
        more = ("--set", f"fairseqrc.ckpt_path={path}")
        printed = stage("preprocess/runner.py", *flags, "quantized", *more)
        units[path] = [(folder / split).read_bytes() for split in SPLITS]
        assert ("hf, waveforms not normalised" in printed) == (path == "models/hf")
        assert "features in float32 on" in printed and "1000 clusters of" in printed
    assert units["models/hf"] == units["model.pt"]
    assert max(int(unit) for unit in units["model.pt"][0].split(b"|")[1].split()[:-1]) > 200
    known = unit_model("mhubert1000", Workspace(tmp_path))
    assert PretrainedModels(Workspace(tmp_path)).get(known.checkpoint, 1) == "here, your own"
