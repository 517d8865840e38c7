"""HuBERT and wav2vec 2.0 equal fairseq's own models, which get one file at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.speech2unit import hubert as hubert_module
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hubert import Hubert, Wav2Vec2
from tests.preprocess import ssl_checkpoints
from tests.preprocess.ssl_checkpoints import LARGE
from tests.reliability.hostile import refused

LENGTHS = [400, 719, 720, 5000, 16_000, 16_000, 16_000, 9_999, 21_337, 40_000, 4_321]
SETTINGS = pytest.mark.parametrize("settings", [{}, LARGE], ids=["base", "large"])


@pytest.fixture(scope="module")
def ragged() -> list[torch.Tensor]:
    """Return coloured noise of many lengths and levels; some lengths occur twice."""
    rng = np.random.default_rng(0)
    waves = []
    for number, length in enumerate(LENGTHS):
        noise = np.convolve(rng.standard_normal(length + 20), np.ones(21) / 21, "valid")
        waves.append(torch.from_numpy(0.02 * (number + 1) * noise + 0.01 * number).float())
    return waves


def hubert_alone(model: torch.nn.Module, wave: torch.Tensor, layer: int) -> torch.Tensor:
    return model.extract_features(wave[None], output_layer=layer)[0][0]


@torch.inference_mode()
def assert_each(
    reader: Hubert, waves: list[torch.Tensor], alone: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Check that a batch gives each file the features that fairseq's model gives it alone."""
    for wave, features in zip(waves, reader(waves), strict=True):
        expected = alone(wave)
        assert expected.std() > 0.1
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [1, 3])
@SETTINGS
def test_hubert_batches_equal_fairseq_on_each_file(tmp_path, ragged, settings, layer):
    model = ssl_checkpoints.hubert(tmp_path / "hubert.pt", **settings)
    reader = Hubert(Source(tmp_path / "hubert.pt", layer))
    assert (reader.dim, reader.frame_rate, reader.min_samples) == (48, 50.0, 400)
    assert_each(reader, ragged, lambda wave: hubert_alone(model, wave, layer))


@pytest.mark.parametrize("settings", [{}, {"layer_norm_first": False}], ids=["large", "post-norm"])
def test_wav2vec2_counts_layers_from_0_as_gslm_does(tmp_path, ragged, settings):
    model = ssl_checkpoints.wav2vec2(tmp_path / "w2v2.pt", **settings)

    def alone(wave: torch.Tensor) -> torch.Tensor:
        result = model(source=wave[None], mask=False, features_only=True, layer=1)
        return result["layer_results"][1][0].squeeze(1)

    assert_each(Wav2Vec2(Source(tmp_path / "w2v2.pt", 1, normalize=False)), ragged, alone)


def fairseq_hidden_states(model: torch.nn.Module, wave: torch.Tensor) -> torch.Tensor:
    """Return each layer's input and the encoder's output, as s3prl's hooks see them: (T, L, D)."""
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
    model.extract_features(wave[None], padding_mask=None)
    for hook in hooks:
        hook.remove()
    assert len(states) == ssl_checkpoints.SHAPE["encoder_layers"] + 1
    length = min(map(len, states))  # fairseq pads to even lengths and masks the padding
    return torch.stack([state[:length] for state in states], dim=1)


@SETTINGS
@pytest.mark.parametrize("reader", [Hubert, Wav2Vec2])
def test_all_layers_are_fairseqs_hidden_states(tmp_path, ragged, settings, reader):
    make = ssl_checkpoints.hubert if reader is Hubert else ssl_checkpoints.wav2vec2
    norm_first = {} if reader is Hubert else {"layer_norm_first": bool(settings)}
    model = make(tmp_path / "model.pt", normalize=False, **settings | norm_first)
    states = reader(Source(tmp_path / "model.pt", all_layers=True))
    assert_each(states, ragged, lambda wave: fairseq_hidden_states(model, wave))


@pytest.mark.parametrize("requested", [None, True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_waveform_is_normalised_as_the_checkpoint_or_the_config_says(
    tmp_path, ragged, stored, requested
):
    model = ssl_checkpoints.hubert(tmp_path / "hubert.pt", normalize=stored, **LARGE)
    normalized = lambda wave: torch.nn.functional.layer_norm(wave, wave.shape)  # noqa: E731
    prepare = normalized if (stored if requested is None else requested) else torch.clone
    reader = Hubert(Source(tmp_path / "hubert.pt", 2, requested))
    assert_each(reader, ragged[3:4], lambda wave: hubert_alone(model, prepare(wave), 2))


@pytest.mark.parametrize("rest", [0, 399, 400, 3000])
def test_long_files_are_cut_as_published(tmp_path, ragged, monkeypatch, rest):
    monkeypatch.setattr(hubert_module, "_PIECE", 16_000)
    model = ssl_checkpoints.hubert(tmp_path / "hubert.pt", normalize=True)

    def in_pieces(wave: torch.Tensor) -> torch.Tensor:
        wave = torch.nn.functional.layer_norm(wave, wave.shape)  # the whole file, before the cut
        pieces = [piece for piece in wave.split(16_000) if len(piece) >= 400]
        return torch.cat([hubert_alone(model, piece, 2) for piece in pieces])

    wave = torch.cat([ragged[4], ragged[9]])[: 32_000 + rest]
    reader = Hubert(Source(tmp_path / "hubert.pt", 2))
    assert not hasattr(reader, "pieces"), "normalised as a whole"
    assert_each(reader, [ragged[3], wave], in_pieces)


def test_piece_by_piece_a_long_recording_has_the_same_features(tmp_path, monkeypatch):
    monkeypatch.setattr(hubert_module, "_PIECE", 4_000)
    ssl_checkpoints.hubert(tmp_path / "hubert.pt")
    reader = Hubert(Source(tmp_path / "hubert.pt", 2, False))
    wave = torch.randn(10_100, generator=torch.Generator().manual_seed(0))
    size, overlap = reader.pieces
    cuts = [wave[i : i + size + overlap] for i in range(0, len(wave), size)]
    with torch.inference_mode():
        parts = torch.cat([reader([cut])[0] for cut in cuts])
        torch.testing.assert_close(parts, reader([wave])[0], atol=0, rtol=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ssl_checkpoints.hubert(tmp_path / "hubert.pt")
    return tmp_path / "hubert.pt"


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "encoder.layers.0.fc1.weight", None, "0.fc1.weight (96, 48), found nothing"),
        ("model", "encoder.layer_norm.weight", torch.ones(3), "weight (48,), found (3,)"),
        ("cfg", "layer_type", "conformer", "layer_type=conformer is not supported"),
        ("cfg", "encoder_layers", "many", "encoder_layers=many is not a value that fairseq writes"),
        ("cfg", "extractor_mode", "group", "extractor_mode=group is not supported"),
        ("cfg", "conv_pos", 64, "encoder.pos_conv.0.weight_v (48, 3, 64)"),
        ("cfg", "encoder_attention_heads", 7, "encoder_attention_heads=7 does not divide"),
        ("cfg", "conv_feature_layers", "[open('it-ran', 'w')]", 'conv_feature_layers="[open'),
        ("cfg", "conv_feature_layers", "[(512,0,5)]", "conv_feature_layers='[(512,0,5)]'"),
    ],
)
def test_wrong_checkpoints_are_refused(path, monkeypatch, part, key, value, message):
    monkeypatch.chdir(path.parent)
    state = torch.load(path, weights_only=True)
    target = state["model"] if part == "model" else state["cfg"]["model"]
    target.pop(key, None)
    if value is not None:
        target[key] = value
    torch.save(state, path)
    assert message in refused(lambda: Hubert(Source(path, 2)))
    assert not Path("it-ran").exists()


def test_the_requested_checkpoint_and_layer_must_exist(path):
    assert "checkpoint not found" in refused(lambda: Hubert(Source(path.with_name("no.pt"), 2)))
    assert "hubert needs its checkpoint" in refused(lambda: Hubert(Source(None, 2)))
    for layer in (None, 0, 4):
        assert "has the layers 1 to 3" in refused(lambda n=layer: Hubert(Source(path, n)))
    assert "model is hubert; expected wav2vec2" in refused(lambda: Wav2Vec2(Source(path, 2)))
