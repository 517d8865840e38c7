"""Log-mel and MFCC features equal Kaldi's code and slow computations of the definitions."""

import kaldi_native_fbank as kaldi
import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from preprocess.speech2unit.features import Source, feature_reader
from preprocess.speech2unit.spectral import LogMel, Mfcc


@pytest.fixture
def waveform() -> torch.Tensor:
    time = torch.arange(12_345) / 16_000
    noise = torch.randn(12_345, generator=torch.Generator().manual_seed(1))
    return 0.2 * torch.sin(2 * torch.pi * 440 * time * (1 + time)) + 0.05 * noise + 0.1


def test_logmel_equals_kaldi(waveform: torch.Tensor) -> None:
    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    fbank = kaldi.OnlineFbank(options)
    fbank.accept_waveform(16_000, waveform.tolist())
    fbank.input_finished()
    expected = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    features, silence = LogMel(Source())([waveform, torch.zeros(800)])
    assert features.shape == expected.shape == (1 + (12_345 - 400) // 160, 80)
    np.testing.assert_allclose(features.numpy(), expected, atol=2e-3)
    assert torch.all(silence == torch.log(torch.tensor(torch.finfo(torch.float32).eps)))


def slow_mfcc(samples: np.ndarray) -> np.ndarray:
    """Return Kaldi's MFCCs (frames, 13) in float64, one frame, filter, coefficient at a time."""
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


def test_mfcc_equals_slow_computation(waveform: torch.Tensor) -> None:
    """Compute deltas, mean, deviation and stacks one frame at a time. Loudness changes nothing."""
    cepstra = slow_mfcc(waveform.numpy())
    frames = range(len(cepstra))
    at = lambda rows, index: rows[min(max(index, 0), len(rows) - 1)]  # noqa: E731
    deltas = [sum(step * at(cepstra, i + step) for step in range(-2, 3)) / 10 for i in frames]
    rows = np.concatenate([cepstra, deltas], axis=1)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    expected = [np.concatenate([at(rows, i + s) for s in (-6, -3, 0, 3, 6)]) for i in frames]
    for features in Mfcc(Source())([waveform, waveform / 4]):
        assert features.shape == (1 + (12_345 - 400) // 160, 130)
        np.testing.assert_allclose(features.numpy(), expected, atol=5e-3)


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_mfcc_of_silence_and_single_frames_stay_small(samples: int, value: float) -> None:
    """No value is divided by a deviation of zero."""
    (features,) = Mfcc(Source())([torch.full((samples,), value)])
    assert features.shape == (1 + (samples - 400) // 160, 130)
    assert features.abs().max() < 0.1


@pytest.mark.parametrize("feature_type", ["logmel", "mfcc"])
def test_both_are_readers(waveform: torch.Tensor, feature_type: str) -> None:
    """A batch changes no features. ``all_layers`` gives one layer. A layer number is refused."""
    reader = feature_reader(feature_type, Source())
    waveforms = [waveform[:400], waveform, waveform[:5000], waveform[100:9000]]
    together = reader(waveforms)
    for features, alone in zip(together, waveforms, strict=True):
        torch.testing.assert_close(features, reader([alone])[0], atol=1e-4, rtol=0)
    layers = feature_reader(feature_type, Source(all_layers=True))(waveforms)
    assert torch.equal(layers[1], together[1].unsqueeze(1))
    with pytest.raises(UserError, match=f"layer: {feature_type} does not use it; leave it empty"):
        feature_reader(feature_type, Source(layer=6))
    with pytest.raises(UserError, match="feature_type=plp: unknown; expected one of .*logmel"):
        feature_reader("plp", Source())
