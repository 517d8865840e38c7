"""What a training step computes: no more than it must, waiting for nothing, in any precision."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.rows import read_rows
from pipeline.torch_files import save_torch
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm import checkpoint
from ulm_prompt.prompt_lm import model as gradient_scale
from ulm_prompt.prompt_lm.data import RowDataset, batches_by_length
from ulm_prompt.prompt_lm.losses import LabelCrossEntropy
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt

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


def criterion(loss_on: str = "published") -> LabelCrossEntropy:
    return LabelCrossEntropy(argparse.Namespace(target_dictionary=tiny.dictionary()), loss_on)


def gradients(model: PromptLanguageModel, samples: list[dict], loss_on: str) -> list[torch.Tensor]:
    """Summed over the samples and divided by their sizes' sum, as fairseq's trainer does."""
    model.zero_grad()
    sizes = 0
    for sample in samples:
        loss, size, _ = criterion(loss_on)(model, sample)
        loss.backward()
        sizes += size
    return [
        each.grad / sizes for each in (model.prompt.keys, model.prompt.values, model.prompt.sep)
    ]


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
    products = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm
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


@pytest.mark.parametrize("loss_on", ["published", "answer"])
def test_accumulated_batches_are_one_large_batch(loss_on: str) -> None:
    """So are the shares of ranks, of which one may be empty."""
    model = tiny.prompted()
    shares = [a_sample(9, rank=rank, world=10) for rank in range(10)]
    assert [share["nsentences"] for share in shares] == [1] * 9 + [0]
    expected = gradients(model, [a_sample(9)], loss_on)
    for mine, theirs in zip(gradients(model, shares, loss_on), expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_gpu_s_mask_is_ours() -> None:
    """On CUDA the fused kernels are told ``causal_lower_right``."""
    model = tiny.prompted(LENGTH)
    for length in (1, 2, 17):
        ours = model.causal_mask(length)
        assert torch.equal(causal_lower_right(*ours.shape)._materialize(), ours)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_cpu_s_gradients(dtype: torch.dtype) -> None:
    model, sample = tiny.prompted(), a_sample()
    expected = gradients(model, [sample], "answer")
    model.cuda().lm.to(dtype)
    sample["net_input"] = {name: each.cuda() for name, each in sample["net_input"].items()}
    sample["target"], sample["is_label"] = sample["target"].cuda(), sample["is_label"].cuda()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for mine, theirs in zip(gradients(model, [sample], "answer"), expected):
        assert (mine.cpu() - theirs).norm() < tolerance * theirs.norm()


def losses(dtype: torch.dtype, steps: int = 40) -> list[float]:
    """A prompt's learning curve over an LM in ``dtype``."""
    model = tiny.prompted()
    model.lm.to(dtype)
    optimizer = torch.optim.Adam(model.prompt.parameters(), lr=0.05)
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss, size, _ = criterion("answer")(model, a_sample(16, 1, seed=step % 4))
        (loss / size).backward()
        assert all(each.grad is None or each.grad.dtype == torch.float32 for each in
                   model.prompt.parameters())  # fmt: skip
        optimizer.step()
        found.append(loss.item() / size)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_as_float32(dtype: torch.dtype) -> None:
    expected = losses(torch.float32)
    assert expected[-1] < 0.6 * expected[0]
    np.testing.assert_allclose(losses(dtype), expected, rtol=0.05)


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


def test_a_task_s_checkpoint_is_small(tmp_path: Path) -> None:
    """IC's prompt on the released LM's shape: under 1 MB."""
    state = Prompt(layers=12, length=6, width=1024).published_state()
    best = {**checkpoint._prompt_alone(state, tmp_path), "updates": 1}
    save_torch(best, tmp_path / "checkpoint_best.pt")
    assert (tmp_path / "checkpoint_best.pt").stat().st_size < 700_000


@pytest.mark.parametrize("downstream", ["speech_commands", "fluent_commands"])
def test_padding_on_the_published_units(downstream: str, data: Path) -> None:
    """Under 5 % in every epoch, and each epoch has batches of its own."""
    rows = read_rows(data / "units" / "hubert100" / downstream / "train")
    sizes = np.array([len(row.units.split()) + len(row.labels.split()) + 2 for row in rows])
    epochs = []
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(sizes))
        batches = list(batches_by_length(order, sizes, 4096, 32))
        padded = sum(len(batch) * sizes[batch].max() for batch in batches)
        assert sizes.sum() / padded > 0.95
        epochs.append({frozenset(batch.tolist()) for batch in batches})
    assert len(epochs[0] & epochs[1]) < 10
