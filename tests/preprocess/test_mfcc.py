"""MFCC features against a slow computation written from their definition."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from preprocess.speech2unit.features import Source, feature_reader
from preprocess.speech2unit.mfcc import Mfcc


@pytest.fixture
def waveform() -> torch.Tensor:
    time = torch.arange(12_345) / 16_000
    noise = torch.randn(12_345, generator=torch.Generator().manual_seed(1))
    return 0.2 * torch.sin(2 * torch.pi * 440 * time * (1 + time)) + 0.05 * noise + 0.1


def slow_mfcc(samples: np.ndarray) -> np.ndarray:
    """(frames, 13): Kaldi's MFCCs, one frame, filter and coefficient at a time, in float64."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    edges = np.linspace(*(1127 * np.log(1 + np.array([20.0, 8000.0]) / 700)), 25)
    mel = 1127 * np.log(1 + np.arange(257) * 16_000 / 512 / 700)
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        emphasised = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)]
        power = np.abs(np.fft.fft(np.array(emphasised) * window, 512)[:257]) ** 2
        energies = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            weight = np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))
            weight[256] = 0
            energies.append(np.maximum(weight, 0) @ power)
        logs = np.log(np.maximum(energies, np.finfo(np.float32).eps))  # (23,)
        row = []
        for order in range(13):
            cosines = np.cos(np.pi * order * (np.arange(23) + 0.5) / 23)
            lifter = 1 + 11 * np.sin(np.pi * order / 22)
            row.append(lifter * np.sqrt((2 if order else 1) / 23) * cosines @ logs)
        rows.append(row)
    return np.array(rows)


def slow_features(samples: np.ndarray) -> np.ndarray:
    """(frames, 130): deltas, mean and deviation, stacking, one frame at a time."""
    cepstra = slow_mfcc(samples)
    last = len(cepstra) - 1
    at = lambda rows, index: rows[min(max(index, 0), last)]  # noqa: E731
    deltas = [
        sum(step * at(cepstra, i + step) for step in (-2, -1, 0, 1, 2)) / 10
        for i in range(last + 1)
    ]
    frames = np.concatenate([cepstra, deltas], axis=1)
    frames = (frames - frames.mean(axis=0)) / frames.std(axis=0)
    return np.array(
        [
            np.concatenate([at(frames, i + step) for step in (-6, -3, 0, 3, 6)])
            for i in range(last + 1)
        ]
    )


def test_equals_slow_computation(waveform: torch.Tensor) -> None:
    (features,) = Mfcc(Source())([waveform])
    expected = slow_features(waveform.numpy())
    assert features.shape == expected.shape == (1 + (12_345 - 400) // 160, Mfcc.dim)
    np.testing.assert_allclose(features.numpy(), expected, atol=5e-3)


def test_batch_equals_single_files(waveform: torch.Tensor) -> None:
    waveforms = [waveform[:400], waveform, waveform[:5000], waveform[100:9000]]
    together = Mfcc(Source())(waveforms)
    for features, each in zip(together, waveforms, strict=True):
        assert torch.equal(features, Mfcc(Source())([each])[0])


def test_loudness_changes_nothing(waveform: torch.Tensor) -> None:
    loud, quiet = Mfcc(Source())([waveform, waveform / 4])
    torch.testing.assert_close(loud, quiet, atol=5e-3, rtol=0)


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_silence_and_single_frames_stay_small(samples: int, value: float) -> None:
    """Nothing is divided by a deviation of zero."""
    (features,) = Mfcc(Source())([torch.full((samples,), value)])
    assert features.shape == (1 + (samples - 400) // 160, Mfcc.dim)
    assert features.abs().max() < 0.1


def test_all_layers_are_one(waveform: torch.Tensor) -> None:
    (one,) = Mfcc(Source())([waveform])
    (layers,) = feature_reader("mfcc", Source(all_layers=True))([waveform])
    assert torch.equal(layers, one.unsqueeze(1))


def test_mfcc_takes_no_layer() -> None:
    with pytest.raises(UserError, match="leave ckpt_path, layer and normalize empty"):
        feature_reader("mfcc", Source(layer=6))
