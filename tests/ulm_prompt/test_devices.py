"""All GPU code on the ``meta`` device, whose tensors have no values. A tensor that was created on
the CPU by mistake causes an error. Code that reads a value gets 0 or 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preprocess.speech2unit import wav2vec_convolutions
from preprocess.speech2unit.features import Source, feature_reader
from preprocess.speech2unit.kmeans import KMeans
from tests.preprocess import ssl_checkpoints
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm import search
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.labels import LabelSets, score_sequences
from ulm_prompt.prompt_lm.search import beam_search, likeliest, sampler, step_search

META = torch.device("meta")
MOVES = ("_to_copy", "copy_", "index", "index_put_", "_index_put_impl_")  # may mix devices
ROWS = [torch.tensor([2, *range(4, 4 + length), 0]) for length in (5, 9, 6)]


class OneDevice(TorchDispatchMode):
    """Fails on operations on tensors of two devices, like CUDA. 0-d tensors may be mixed."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        name = func.overloadpacket.__name__
        assert len(devices) < 2 or name in MOVES, f"{name} on {devices}"
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def values_are_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = {
        "tolist": lambda t: torch.full(t.shape, int(t.dtype != torch.long)).tolist(),
        "item": lambda t: 0,
        "__int__": lambda t: 0,
        "nonzero": lambda t: torch.zeros(len(t), t.ndim, dtype=torch.long, device=META),
    }
    for name, value in made_up.items():
        real = getattr(torch.Tensor, name)
        chosen = lambda t, value=value, real=real: (value if t.is_meta else real)(t)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, chosen)


def on_meta(kind: str = "slots") -> tuple[CachedLM, LabelSets]:
    labels = LabelSets.build(kind, [[4, 5], [6, 7]], 104, 2).to(META)
    return CachedLM(tiny.prompted().to(META), pad=1, eos=2), labels


def test_a_tensor_of_the_cpu_is_noticed() -> None:
    with OneDevice(), pytest.raises((AssertionError, RuntimeError)):
        torch.cat([torch.zeros(2), torch.zeros(2, device=META)])


@pytest.mark.parametrize("infix", [False, True])
def test_a_training_step(infix: bool) -> None:
    model, sample = tiny.prompted(infix=infix).to(META).train(), tiny.on(META, tiny.sample())
    with OneDevice():
        tiny.criterion()(model, sample)[0].backward()
    assert model.prompt.keys.grad.device == META


def test_answers() -> None:
    """Test step search, beam search and scored sequences."""
    lm, labels = on_meta()
    with OneDevice():
        for choose in (likeliest, sampler(seed=1, topk=3), sampler(seed=1, topp=0.5)):
            assert len(step_search(lm, lm.prefill(ROWS), [0, 1, 2], 3, choose, labels)) == len(ROWS)
    lm, labels = on_meta("trie")
    with OneDevice():
        beam_search(lm, lm.prefill(ROWS, row_temperature=1.0), 2, 3, labels)
        totals, _ = score_sequences(lm, lm.prefill(ROWS), [(4, 5), (6,)], 2)
    assert totals.device == META and totals.shape == (3, 2)


TRAINED = {name: getattr(ssl_checkpoints, name) for name in ("hubert", "cpc")}
TRAINED["w2v2"] = ssl_checkpoints.wav2vec2


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, "float32") for kind in (*TRAINED, "logmel", "mfcc")]
    + [(kind, "bfloat16") for kind in TRAINED],
)
def test_speech_to_units(kind: str, dtype: str, tmp_path: Path) -> None:
    known = (tmp_path / "model.pt", 2) if kind in TRAINED else (None, None)
    if kind in TRAINED:
        TRAINED[kind](known[0])
    reader = feature_reader(kind, Source(*known, device=META, dtype=dtype))
    waveforms = [torch.zeros(samples) for samples in (8_000, 5_000, 8_000)]
    kmeans = KMeans(np.zeros((4, reader.dim), np.float32), META)
    with OneDevice():
        units = [kmeans(features) for features in reader(waveforms)]
    assert all(row.device == META and row.ndim == 1 for row in units)


class NoFloat64(OneDevice):
    """Apple's GPU has no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for leaf in tree_leaves(result):
            doubles = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64
            assert not (doubles and leaf.is_meta), f"{func} makes float64"
        return result


def test_apples_gpu_gets_no_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (search, wav2vec_convolutions):
        ones = lambda tensor: torch.ones(tensor.shape, dtype=torch.float64)  # noqa: E731
        monkeypatch.setattr(module, "in_float64", ones)
    lm, labels = on_meta()
    ssl_checkpoints.hubert(tmp_path / "model.pt")
    reader = feature_reader("hubert", Source(tmp_path / "model.pt", 2, device=META))
    with NoFloat64():
        (features,) = reader([torch.zeros(8_000)])
        step_search(lm, lm.prefill(ROWS), [0, 1, 2], 2, sampler(seed=1, topp=0.5), labels)
    assert features.device == META
