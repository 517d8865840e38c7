"""Log-mel against Kaldi's own code and against a slow computation written from its definition."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from preprocess.speech2unit.features import Source, feature_reader
from preprocess.speech2unit.logmel import LogMel


@pytest.fixture
def waveform() -> torch.Tensor:
    time = torch.arange(12_345) / 16_000
    noise = torch.randn(12_345, generator=torch.Generator().manual_seed(1))
    return 0.2 * torch.sin(2 * torch.pi * 440 * time * (1 + time)) + 0.05 * noise + 0.1


def slow_fbank(samples: np.ndarray) -> np.ndarray:
    """(frames, 80), one frame and one filter at a time, in float64."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    edges = np.linspace(*(1127 * np.log(1 + np.array([20.0, 8000.0]) / 700)), 82)
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
        rows.append(np.log(np.maximum(energies, np.finfo(np.float32).eps)))
    return np.array(rows)


def test_equals_slow_computation(waveform):
    (features,) = LogMel(Source())([waveform])
    np.testing.assert_allclose(features.numpy(), slow_fbank(waveform.numpy()), atol=2e-3)


def test_equals_kaldi(waveform):
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    fbank = kaldi.OnlineFbank(options)
    fbank.accept_waveform(16_000, waveform.tolist())
    fbank.input_finished()
    expected = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    (features,) = LogMel(Source())([waveform])
    assert features.shape == expected.shape == (1 + (12_345 - 400) // 160, 80)
    np.testing.assert_allclose(features.numpy(), expected, atol=2e-3)


def test_silence_is_the_floor():
    (features,) = LogMel(Source())([torch.zeros(800)])
    assert torch.all(features == torch.log(torch.tensor(torch.finfo(torch.float32).eps)))


def test_batch_equals_single_files(waveform):
    waveforms = [waveform[:400], waveform, waveform[:5000], waveform[100:9000]]
    for together, alone in zip(
        LogMel(Source())(waveforms), map(LogMel(Source()), ([w] for w in waveforms))
    ):
        torch.testing.assert_close(together, alone[0], atol=1e-4, rtol=0)


def test_unknown_feature_type_names_what_exists():
    with pytest.raises(UserError, match="feature_type=plp: unknown; there is .*logmel"):
        feature_reader("plp", Source())


def test_logmel_takes_no_layer():
    with pytest.raises(UserError, match="leave ckpt_path, layer and normalize empty"):
        feature_reader("logmel", Source(layer=6))
