"""What a training step computes: no more than it must, waiting for nothing, in any precision."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm import model as gradient_scale
from ulm_prompt.prompt_lm.data import RowDataset
from ulm_prompt.prompt_lm.losses import LabelCrossEntropy

LAYERS, WIDTH, LENGTH, SYMBOLS = 3, 32, 5, 104


def a_sample(count: int = 8, labels: int = 3, seed: int = 0, rank: int = 0, world: int = 1) -> dict:
    """A rank's share of a batch, as RowDataset makes it, of rows whose labels are their first
    units.
    """
    dataset = RowDataset.__new__(RowDataset)
    dataset.pad, dataset.eos, dataset.rank, dataset.world = 1, 2, rank, world
    generator = np.random.default_rng(seed)
    units = [generator.integers(4, 12, generator.integers(4, 20)).tolist() for _ in range(count)]
    rows = [
        {"id": number, "tokens": np.array([*row, 0, *row[:labels], 2]), "separator": len(row)}
        for number, row in enumerate(units)
    ]
    return dataset.collater(rows)


def on(device: str, sample: dict) -> dict:
    """The batch, there."""
    sample["net_input"] = {name: each.to(device) for name, each in sample["net_input"].items()}
    return sample | {name: sample[name].to(device) for name in ("target", "is_label")}


def criterion(loss_on: str = "published") -> LabelCrossEntropy:
    return LabelCrossEntropy(argparse.Namespace(target_dictionary=tiny.dictionary()), loss_on)


def test_a_step_computes_no_more_than_it_must() -> None:
    """Matrix products: every position through all layers but the last; there keys and values for
    every position, the rest where the loss looks; nothing for prefix positions but their
    projection. The way back costs as much again, not twice: the LM's weights need no gradient.
    """
    model, sample = tiny.prompted(LENGTH), a_sample()
    rows, length = sample["net_input"]["tokens"].shape
    reads = sample["target"].shape[1]
    square, feed_forward = WIDTH**2, 2 * 4 * WIDTH**2
    body = (LAYERS - 1) * rows * length * (4 * square + feed_forward)
    last = rows * length * 2 * square + rows * reads * (2 * square + feed_forward)
    prefix = LAYERS * LENGTH * 2 * square
    logits = rows * reads * WIDTH * SYMBOLS
    products = torch.ops.aten.mm, torch.ops.aten.addmm  # bmm: attention's, a few in a hundred
    with FlopCounterMode(display=False) as counter:
        loss, _, _ = criterion()(model, sample)
        loss.backward()
    counts = counter.get_flop_counts()["Global"]
    assert sum(counts.get(product, 0) for product in products) == (
        2 * 2 * (body + last + prefix + logits)
    )


class NothingWaits(TorchDispatchMode):
    """Refuses what would make a host wait for its device: numbers and shapes made of values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITING), f"{name} waits for the device"
        indices = args[1] if name in ("index", "index_put_") else ()
        assert all(index is None or index.dtype != torch.bool for index in indices), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss_on", ["published", "answer"])
def test_a_step_waits_for_nothing(loss_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = tiny.prompted().train(), a_sample()
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits"), raising=False)
    with NothingWaits():
        loss, size, logged = criterion(loss_on)(model, sample)
        loss.backward()
    assert isinstance(size, int), "fairseq's meters would ask the device for it"
    assert LabelCrossEntropy.logging_outputs_can_be_summed()
    with pytest.raises(AssertionError, match="waits"), NothingWaits():
        bool(logged["loss"] > 0)


def test_the_gpu_s_mask_is_ours() -> None:
    """On CUDA the fused kernels are told ``causal_lower_right``."""
    model = tiny.prompted(LENGTH)
    for length in (1, 2, 17):
        ours = model.causal_mask(length)
        assert torch.equal(causal_lower_right(*ours.shape)._materialize(), ours)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_cpu_s_gradients(dtype: torch.dtype) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = tiny.prompted().to(device)
        model.lm.to(torch.float32 if device == "cpu" else dtype)
        criterion("answer")(model, on(device, a_sample()))[0].backward()
        prompt = model.prompt
        found.append([part.grad.cpu() for part in (prompt.keys, prompt.values, prompt.sep)])
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for theirs, mine in zip(*found):
        assert (mine - theirs).norm() < tolerance * theirs.norm()


def test_small_gradients_survive_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss 100,000 times smaller: its gradients are below float16's range but for the
    scale.
    """
    sample = a_sample()

    def error(scale: float) -> float:
        monkeypatch.setattr("ulm_prompt.prompt_lm.model.FLOAT16_SCALE", scale)
        found = []
        for dtype in (torch.float32, torch.float16):
            model = tiny.prompted()
            model.lm.to(dtype)
            loss, _, _ = criterion("answer")(model, sample)
            (1e-5 * loss).backward()
            found.append(model.prompt.values.grad)
        return ((found[1] - found[0]).norm() / found[0].norm()).item()

    assert error(gradient_scale.FLOAT16_SCALE) < 0.02 < error(1.0)
