"""HuBERT and wav2vec 2.0 against fairseq's own models, one file at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from preprocess.speech2unit import hubert as hubert_module
from preprocess.speech2unit.fairseq_checkpoint import parse_conv_layers
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hubert import Hubert, Wav2Vec2
from tests.preprocess import ssl_checkpoints
from tests.preprocess.ssl_checkpoints import LARGE

LENGTHS = [400, 719, 720, 5000, 16_000, 16_000, 16_000, 9_999, 21_337, 40_000, 4_321]


@pytest.fixture(scope="module")
def ragged() -> list[torch.Tensor]:
    """Coloured noise of many lengths and levels, some lengths twice."""
    rng = np.random.default_rng(0)
    waves = []
    for number, length in enumerate(LENGTHS):
        noise = np.convolve(rng.standard_normal(length + 20), np.ones(21) / 21, "valid")
        waves.append(torch.from_numpy(0.02 * (number + 1) * noise + 0.01 * number).float())
    return waves


def hubert_alone(model: torch.nn.Module, wave: torch.Tensor, layer: int) -> torch.Tensor:
    with torch.inference_mode():
        return model.extract_features(wave[None], output_layer=layer)[0][0]


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("settings", [{}, LARGE], ids=["base", "large"])
def test_hubert_batches_equal_fairseq_on_each_file(tmp_path, ragged, settings, layer):
    model = ssl_checkpoints.hubert(tmp_path / "hubert.pt", **settings)
    reader = Hubert(Source(tmp_path / "hubert.pt", layer))
    assert (reader.dim, reader.frame_rate, reader.min_samples) == (48, 50.0, 400)
    with torch.inference_mode():
        features = reader(ragged)
    for wave, feature in zip(ragged, features, strict=True):
        expected = hubert_alone(model, wave, layer)
        assert expected.std() > 0.1
        torch.testing.assert_close(feature, expected, atol=1e-4, rtol=0)


def fairseq_hidden_states(model: torch.nn.Module, wave: torch.Tensor) -> torch.Tensor:
    """Each encoder layer's input and the encoder's output, as s3prl's hooks see them: (T, L, D)."""
    states = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: states.append((args or (kwargs["x"],))[0][:, 0]),
            with_kwargs=True,
        )
        for layer in model.encoder.layers
    ]
    hooks.append(
        model.encoder.register_forward_hook(lambda *called: states.append(called[-1][0][0]))
    )
    with torch.inference_mode():
        model.extract_features(wave[None], padding_mask=None)
    for hook in hooks:
        hook.remove()
    length = min(map(len, states))  # fairseq pads to even lengths, and masks that
    return torch.stack([state[:length] for state in states], dim=1)


@pytest.mark.parametrize("settings", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_all_layers_are_fairseqs_hidden_states(tmp_path, ragged, settings, family):
    make, reader = {
        "hubert": (ssl_checkpoints.hubert, Hubert),
        "wav2vec2": (ssl_checkpoints.wav2vec2, Wav2Vec2),
    }[family]
    if family == "wav2vec2" and not settings:
        settings = {"layer_norm_first": False}
    model = make(tmp_path / "model.pt", normalize=False, **settings)
    features = reader(Source(tmp_path / "model.pt", all_layers=True))(ragged)
    for wave, feature in zip(ragged, features, strict=True):
        expected = fairseq_hidden_states(model, wave)
        assert expected.shape[1] == ssl_checkpoints.SHAPE["encoder_layers"] + 1
        torch.testing.assert_close(feature, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_waveform_is_normalised_as_the_checkpoint_or_the_config_says(
    tmp_path, ragged, stored, asked
):
    model = ssl_checkpoints.hubert(tmp_path / "hubert.pt", normalize=stored, **LARGE)
    reader = Hubert(Source(tmp_path / "hubert.pt", 2, asked))
    wave = ragged[3]
    heard = torch.nn.functional.layer_norm(wave, wave.shape)
    expected = hubert_alone(model, heard if (stored if asked is None else asked) else wave, 2)
    torch.testing.assert_close(reader([wave])[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rest", [0, 399, 400, 3000])
def test_long_files_are_cut_as_published(tmp_path, ragged, monkeypatch, rest):
    monkeypatch.setattr(hubert_module, "_PIECE", 16_000)
    model = ssl_checkpoints.hubert(tmp_path / "hubert.pt", normalize=True)
    wave = torch.cat([ragged[4], ragged[9]])[: 32_000 + rest]
    heard = torch.nn.functional.layer_norm(wave, wave.shape)  # the whole file, then the pieces
    pieces = [piece for piece in heard.split(16_000) if len(piece) >= 400]
    expected = torch.cat([hubert_alone(model, piece, 2) for piece in pieces])
    features = Hubert(Source(tmp_path / "hubert.pt", 2))([ragged[0], wave])
    torch.testing.assert_close(features[1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"layer_norm_first": False}], ids=["large", "post-norm"])
def test_wav2vec2_counts_layers_from_0_as_gslm_does(tmp_path, ragged, settings):
    model = ssl_checkpoints.wav2vec2(tmp_path / "w2v2.pt", **settings)
    reader = Wav2Vec2(Source(tmp_path / "w2v2.pt", 1, normalize=False))
    with torch.inference_mode():
        features = reader(ragged)
        for wave, feature in zip(ragged, features, strict=True):
            result = model(source=wave[None], mask=False, features_only=True, layer=1)
            expected = result["layer_results"][1][0].squeeze(1)
            torch.testing.assert_close(feature, expected, atol=1e-4, rtol=0)


def test_wrong_checkpoints_are_refused(tmp_path):
    path = tmp_path / "hubert.pt"
    with pytest.raises(UserError, match="checkpoint not found"):
        Hubert(Source(path, 2))
    ssl_checkpoints.wav2vec2(path)
    with pytest.raises(UserError, match="its model is wav2vec2; expected hubert"):
        Hubert(Source(path, 2))
    ssl_checkpoints.hubert(path)
    for layer in (None, 0, 4):
        with pytest.raises(UserError, match="has the layers 1 to 3"):
            Hubert(Source(path, layer))
    changes = {
        "fc1.weight .*found nothing": ("model", "encoder.layers.0.fc1.weight", None),
        r"weight .*found \(3,\)": ("model", "encoder.layer_norm.weight", torch.ones(3)),
        "layer_type=conformer is not supported": ("cfg", "layer_type", "conformer"),
        "encoder_layers=many is not what fairseq": ("cfg", "encoder_layers", "many"),
        "extractor_mode=group is not": ("cfg", "extractor_mode", "group"),
        "pos_conv.0.weight_v .*64": ("cfg", "conv_pos", 64),
        "encoder_attention_heads=7": ("cfg", "encoder_attention_heads", 7),
    }
    for message, (part, key, value) in changes.items():
        state = torch.load(path, weights_only=True)
        target = state["model"] if part == "model" else state["cfg"]["model"]
        target.pop(key, None)
        if value is not None:
            target[key] = value
        torch.save(state, tmp_path / "changed.pt")
        with pytest.raises(UserError, match=message):
            Hubert(Source(tmp_path / "changed.pt", 2))


def test_conv_layers_are_read_and_not_run(tmp_path):
    released = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] + [(512,2,2)]"
    assert parse_conv_layers(released, tmp_path) == tuple(eval(released))
    sentinel = tmp_path / "ran"
    ssl_checkpoints.hubert(tmp_path / "hubert.pt")
    state = torch.load(tmp_path / "hubert.pt", weights_only=True)
    state["cfg"]["model"]["conv_feature_layers"] = f"[open({str(sentinel)!r}, 'w')]"
    torch.save(state, tmp_path / "hubert.pt")
    with pytest.raises(UserError, match="conv_feature_layers"):
        Hubert(Source(tmp_path / "hubert.pt", 2))
    assert not sentinel.exists()


@pytest.mark.parametrize("normalize", [False, True])
def test_where_a_long_recording_may_be_cut(tmp_path, monkeypatch, normalize):
    """Piece by piece the features are those of the whole, unless it is normalised as a whole."""
    monkeypatch.setattr(hubert_module, "_PIECE", 4_000)
    ssl_checkpoints.hubert(tmp_path / "hubert.pt")
    reader = Hubert(Source(tmp_path / "hubert.pt", 2, normalize))
    if normalize:
        assert not hasattr(reader, "pieces")
        return
    wave = torch.randn(10_100, generator=torch.Generator().manual_seed(0))
    size, overlap = reader.pieces
    cuts = [wave[i : i + size + overlap] for i in range(0, len(wave), size)]
    with torch.inference_mode():
        parts = torch.cat([reader([cut])[0] for cut in cuts])
        torch.testing.assert_close(parts, reader([wave])[0], atol=0, rtol=0)
