"""The Moonshine reader, with a tiny model of the same interface and with the real encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from preprocess.speech2unit.features import Source, feature_reader
from preprocess.speech2unit.moonshine import Moonshine
from tests.conftest import REPOSITORY
from tests.preprocess.corpora import tone
from tests.preprocess.onnx_models import write_encoder

REAL = REPOSITORY / "pretrained_models" / "moonshine_tiny_en.ort"
MOST = 30 * 16_000  # samples that the encoder gets at once


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, np.ndarray]:
    return tmp_path / "encoder.onnx", write_encoder(tmp_path / "encoder.onnx")


def convolved(samples: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return (T, D): the tiny model's output for the samples, computed frame by frame."""
    starts = range(0, len(samples) - 894, 384)
    return np.stack([weight @ samples[start : start + 895] for start in starts])


@pytest.mark.parametrize(
    "samples", [895, 1278, 1279, 16_000, MOST, MOST + 1, MOST + 895, 2_345_678]
)
def test_frames_are_where_the_audio_is(
    encoder: tuple[Path, np.ndarray], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The added zeros move no frame. Pieces join without a seam. ``all_layers`` gives one layer."""
    path, weight = encoder
    reader = Moonshine(Source(path))
    lengths, encode = [], reader._encode
    monkeypatch.setattr(reader, "_encode", lambda x: lengths.append(len(x)) or encode(x))
    (features,) = reader([noise(samples)])
    frames = (((samples - 127) // 64 + 1 - 7) // 3 + 1 - 3) // 2 + 1  # the three convolutions
    assert features.shape == (frames, 4)
    expected = convolved(noise(samples).numpy(), weight)
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-4)
    if samples > MOST:
        assert len(lengths) > 1 and max(lengths) <= MOST
        assert min(lengths) > MOST / 3, "no short rest at the end"
    (layers,) = Moonshine(Source(path, all_layers=True))([noise(samples)])
    assert torch.equal(layers, features.unsqueeze(1))


def test_what_is_not_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ckpt_path: moonshine needs its checkpoint"):
        feature_reader("moonshine", Source())
    with pytest.raises(UserError, match="download.py moonshine100"):
        Moonshine(Source(tmp_path / "none.ort"))
    path = tmp_path / "encoder.onnx"
    write_encoder(path, mask="lengths")
    with pytest.raises(UserError, match="found the inputs input_values, lengths; get the file"):
        Moonshine(Source(path))
    with pytest.raises(UserError, match="layer: moonshine does not use it; leave it empty"):
        Moonshine(Source(path, layer=6))
    for damage in (b"", b"no model", path.read_bytes()[:-300]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="not an ONNX Runtime model") as error:
            Moonshine(Source(path))
        assert str(path) in str(error.value)


@pytest.mark.skipif(
    not REAL.is_file(), reason="needs python pretrained_models/download.py moonshine100"
)
def test_the_real_encoder_gives_a_batch_the_features_of_single_files() -> None:
    reader = Moonshine(Source(REAL))
    assert reader.dim == 288
    waveforms = [torch.from_numpy(tone(1.0, 200)).float(), noise(16_000), noise(7_000, 1)]
    together = reader(waveforms)
    assert [len(features) for features in together] == [40, 40, 16]
    for features, waveform in zip(together, waveforms, strict=True):
        assert torch.isfinite(features).all()
        assert torch.equal(features, Moonshine(Source(REAL))([waveform])[0])
