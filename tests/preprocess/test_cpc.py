"""CPC features equal those of fairseq's own GSLM reader, file by file."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.errors import UserError
from preprocess.speech2unit.cpc import Cpc
from preprocess.speech2unit.features import Source, feature_reader
from tests.preprocess import ssl_checkpoints

READER = "examples/textless_nlp/gslm/speech2unit/pretrained/cpc_feature_reader.py"
LAYER = 2
EDGES = [
    *range(159, 171), 399, 16_000, 63_999, 64_000, 64_001, 64_100, 64_158, 64_159, 64_160, 64_161,
    80_000, 127_999, 128_000, 128_158, 128_159, 200_001,
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return ssl_checkpoints.cpc(tmp_path_factory.mktemp("cpc") / "small.pt")


@pytest.fixture(scope="module")
def reader(small) -> Cpc:
    return Cpc(Source(small, LAYER))


@pytest.fixture(scope="module")
def published():
    """Return a function from a checkpoint to fairseq's reader: from a wav file to (frames, D)."""
    package = importlib.util.find_spec("fairseq")
    script = Path(package.origin).parent / READER if package else None
    if script is None or not script.is_file():
        pytest.skip("fairseq's GSLM reader is not installed")
    spec = importlib.util.spec_from_file_location("published_cpc", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: module.CpcFeatureReader(str(path), LAYER, use_cuda=False).get_feats


@pytest.fixture(scope="module")
def clips(data) -> list[Path]:
    """Return real one-second clips of many words and speakers."""
    return sorted((data / "audio/speech_commands").glob("*_v0.01/*/*_nohash_*.wav"))[::60]


def waveform(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def ragged(clips: list[Path]) -> list[torch.Tensor]:
    """Return the clips, cut at random, and some clips joined into longer ones."""
    random = np.random.default_rng(0)
    waves = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    cut = [wave[: random.integers(400, len(wave) + 1)] for wave in waves]
    joined = [np.concatenate(waves[start : start + 9]) for start in range(0, 27, 9)]
    return [torch.from_numpy(wave) for wave in [*cut, *joined]]


@pytest.mark.parametrize("real", [False, True])
def test_a_batch_equals_the_published_reader(reader, small, published, request, tmp_path, real):
    waveforms = [waveform(samples) for samples in EDGES]
    if real:
        waveforms = ragged(request.getfixturevalue("clips"))
        assert max(map(len, waveforms)) > 128_000 and min(map(len, waveforms)) < 8_000
    published_features = published(small)
    for number, (features, samples) in enumerate(zip(reader(waveforms), waveforms, strict=True)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, samples.numpy(), 16_000, subtype="FLOAT")
        expected = published_features(path)
        assert features.shape == expected.shape, len(samples)
        assert (features - expected).abs().max() < 1e-5, len(samples)


@pytest.mark.parametrize("hidden", [24, 32])
def test_all_layers_equal_single_layers(tmp_path, hidden):
    path = ssl_checkpoints.cpc(tmp_path / "cpc.pt", 32, hidden)
    waveforms = [waveform(samples) for samples in (400, 64_000, 70_001, 130_000)]
    layers = range(1, ssl_checkpoints.CPC_LEVELS + 1)
    alone = [Cpc(Source(path, layer))(waveforms) for layer in layers]
    together = Cpc(Source(path, all_layers=True))(waveforms)
    for number, states in enumerate(together):
        expected = torch.stack([features[number] for features in alone], dim=1)
        torch.testing.assert_close(states[:, -len(layers) :], expected, rtol=0, atol=1e-6)
        assert states.shape[1] == len(layers) + (hidden == 32)


def test_the_first_of_all_layers_is_the_convolutions_output(tmp_path):
    path = ssl_checkpoints.cpc(tmp_path / "cpc.pt", 32, 32)
    (features,) = Cpc(Source(path, all_layers=True))([waveform(9000)])
    weights = torch.load(path)["weights"]
    hidden = waveform(9000)[None, None]
    strides = [(5, 3), (4, 2), (2, 1), (2, 1), (2, 1)]
    for index, (stride, padding) in enumerate(strides):
        name, norm = f"gEncoder.conv{index}", f"gEncoder.batchNorm{index}"
        hidden = torch.nn.functional.conv1d(
            hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding
        )
        variance, mean = torch.var_mean(hidden, dim=1, keepdim=True)
        hidden = (hidden - mean) * torch.rsqrt(variance + 1e-5)
        hidden = (hidden * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]).relu()
    torch.testing.assert_close(features[:, 0], hidden[0].T, rtol=0, atol=1e-4)


def test_it_is_a_feature_type_and_a_namespace_is_a_config(small, tmp_path):
    namespace = lambda state: state.update(config=Namespace(**state["config"]))  # noqa: E731
    reader = feature_reader("cpc", Source(damaged(tmp_path, small, namespace), LAYER))
    assert (reader.dim, reader.frame_rate, reader.min_samples) == (24, 100.0, 159)
    assert torch.equal(reader([waveform(400)])[0], Cpc(Source(small, LAYER))([waveform(400)])[0])


def damaged(folder: Path, small: Path, damage) -> Path:
    state = torch.load(small)
    damage(state)
    torch.save(state, folder / "other.pt")
    return folder / "other.pt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ckpt_path": None}, "ckpt_path: cpc needs its checkpoint"),
        ({"ckpt_path": Path("none.pt")}, "not found"),
        ({"layer": None}, "layer=None: cpc needs the number"),
        ({"layer": 0}, "layer=0"),
        ({"layer": 5}, "layer=5: .* has 4 LSTM"),
        ({"normalize": True}, "normalize: .* leave it empty"),
        (lambda state: state.pop("weights"), "expected a CPC checkpoint .*found config"),
        (lambda state: state.update(config=3), "expected a CPC checkpoint"),
        (lambda state: state["config"].pop("hiddenGar"), "config's hiddenGar, found None"),
        (lambda state: state["config"].update(nLevelsGRU="2"), "nLevelsGRU, found '2'"),
        (lambda state: state["config"].update(hiddenEncoder=16), r"conv0.weight \(16, 1, 10\)"),
        (lambda state: state["weights"].pop("gEncoder.conv3.bias"), "conv3.bias .* found nothing"),
        (
            lambda state: state["weights"].update({"gAR.baseNet.weight_hh_l1": torch.zeros(2)}),
            r"weight_hh_l1 \(96, 24\), found \(2,\)",
        ),
    ],
)
def test_what_cannot_be_used(small, tmp_path, change, message):
    if callable(change):
        change = {"ckpt_path": damaged(tmp_path, small, change)}
    with pytest.raises(UserError, match=message):
        Cpc(Source(small, LAYER)._replace(**change))
