"""The prompted LM compared with the published method, which is computed slowly on stock layers. A
training step: its products, its precision, and that it never waits for the device.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import UserError
from tests.benchmarks.published import logits_of, published_logits
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_data.tasks import load_task
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.lm import choose_dtype
from ulm_prompt.prompt_lm.losses import LabelCrossEntropy
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import KEYS, VALUES, Prompt, project

KINDS = {"prefix": tiny.prompted, "infix": lambda: tiny.prompted(infix=True), "map": tiny.mapped}


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows ``</s> units <s> labels`` of different lengths, and positions to read: two units,
    which do not attend to an infix, and two from ``<s>`` on.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((4, 17), tiny.PAD)
    read_at = torch.empty(4, 4, dtype=torch.long)
    for row, length in enumerate((17, 9, 12, 6)):
        tokens[row, :length] = torch.randint(4, 104, (length,), generator=generator)
        tokens[row, 0], tokens[row, length - 2] = tiny.EOS, 0
        read_at[row] = torch.tensor([2, 3, length - 2, length - 1])
    return tokens, read_at


def at(logits: torch.Tensor, read_at: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[positions] for row, positions in zip(logits, read_at)])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["prefix", "infix"])
def test_logits_equal_the_published_arrangement(kind: str) -> None:
    """The input vectors have no effect, because nothing attends to them."""
    model, (tokens, read_at) = KINDS[kind](), a_batch()
    logits = model(tokens, read_at)
    for inputs in (model.prompt.inputs, 100 * torch.randn_like(model.prompt.inputs)):
        expected = published_logits(model.lm, model.prompt, tokens, inputs)
        torch.testing.assert_close(logits, at(expected, read_at), rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_beyond_the_stock_table() -> None:
    """Without a prompt, the model equals the stock LM, even beyond fairseq's 1,024 positions."""
    tokens = torch.randint(4, 104, (1, 1500), generator=torch.Generator().manual_seed(0))
    for (rows, read_at), layers in ((a_batch(), 3), ((tokens, torch.tensor([[1400, 1499]])), 1)):
        logits = PromptLanguageModel(tiny.lm(layers=layers), None)(rows, read_at)
        expected = at(tiny.lm(layers=layers)(rows)[0], read_at)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_published_parameter_counts() -> None:
    """P*D*(1+2L) + D for the released LMs (paper, table 1): IC, KS, prompts on CPC, text tasks."""
    text = load_task("ASR").prefix_prompt_length
    assert text == load_task("SF").prefix_prompt_length
    for length, expected in ((6, 154_624), (3, 77_824), (2, 52_224), (text, 4_506_624)):
        prompt = Prompt(layers=12, length=length, width=1024)
        assert sum(parameter.numel() for parameter in prompt.parameters()) == expected


@torch.no_grad()
@pytest.mark.parametrize("infix", [False, True])
def test_projected_prompt_is_the_same_prompt(infix: bool) -> None:
    """A prompt trained after the projections and saved before them gives equal float32 logits."""
    lm, (tokens, read_at) = tiny.lm(), a_batch()
    torch.manual_seed(7)
    prompt = Prompt(3, 5, 32, projected=True, infix=infix)
    model = PromptLanguageModel(lm, prompt).eval()
    saved = Prompt.from_published_state(model.state_dict(), 3, "test")
    assert saved.infix == infix
    logits = PromptLanguageModel(lm, saved)(tokens, read_at)
    torch.testing.assert_close(logits, model(tokens, read_at), rtol=0, atol=2e-3)
    projected = map(torch.stack, project(saved.keys, saved.values, lm.decoder.layers))
    for tensor, trained in zip(projected, (prompt.keys, prompt.values)):
        assert (tensor - trained).norm() < 1e-3 * trained.norm()


@pytest.mark.parametrize("name", [KEYS, VALUES])
def test_a_state_without_the_trained_tensors_is_refused(name: str) -> None:
    model = PromptLanguageModel(tiny.lm(), Prompt(3, 5, 32, projected=True))
    state = model.state_dict()
    del state[name]
    with pytest.raises(UserError, match=f"expected {name} of shape .3, 5, 32., found none"):
        model.load_state_dict(state)


def slow_loss(model: PromptLanguageModel, sample: dict, loss_on: str) -> torch.Tensor:
    """Return the summed negative log-probability of the labels and ``</s>``; for ``published``, of
    ``<s>`` too. With a label map, labels compete only with labels, and ``</s>`` has probability 1.
    """
    tokens, total = sample["net_input"]["tokens"], torch.zeros(())
    logits = logits_of(model.lm, model.prompt, tokens, model.prompt.inputs)
    for row, row_logits in zip(tokens.tolist(), logits):
        separator = row.index(0)
        if loss_on == "published":
            total = total - row_logits[separator - 1].log_softmax(-1)[0]
        labels = row[separator + 1 : separator + 4]
        for scores, label in zip(row_logits[separator:], (*labels, tiny.EOS)):
            if model.label_map is None:
                total = total - scores.log_softmax(-1)[label]
            elif label != tiny.EOS:
                scores = (model.label_map.weight @ scores).log_softmax(-1)
                total = total - scores[tiny.MAPPED.index(label)]
    return total


def trained(model: PromptLanguageModel) -> list[torch.nn.Parameter]:
    parts = [model.prompt.keys, model.prompt.values, model.prompt.sep]
    return parts if model.label_map is None else [*parts, model.label_map.weight]


@pytest.mark.parametrize("loss_on", ["answer", "published"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_the_slow_ones(kind: str, loss_on: str) -> None:
    """No computation uses the input vectors, and the LM is frozen."""
    model, sample = KINDS[kind](), tiny.sample(5)
    expected = slow_loss(model, sample, loss_on)
    expected_gradients = torch.autograd.grad(expected, trained(model))
    with torch.no_grad():
        model.prompt.inputs.fill_(torch.nan)
    loss, size, _ = tiny.criterion(loss_on)(model, sample)
    assert size == (5 * 4 if loss_on == "answer" else sample["ntokens"])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    for parameter, gradient in zip(trained(model), expected_gradients):
        assert gradient.norm() > 0
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert model.prompt.inputs.grad is None
    assert all(parameter.grad is None for parameter in model.lm.parameters())


def gradients(
    kind: str, dtype: torch.dtype, device: str = "cpu", scale: float = 1.0
) -> list[torch.Tensor]:
    model = KINDS[kind]().to(device)
    model.lm.to(dtype)
    loss, _, _ = tiny.criterion("answer")(model, tiny.on(device, tiny.sample()))
    (scale * loss).backward()
    return [parameter.grad.cpu() for parameter in trained(model)]


def errors(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(actual, expected)]


def test_gradients_survive_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the scale, the gradients of a loss 100,000 times smaller would be too small for
    float16. The gradients of the map are not scaled.
    """
    of_map = gradients("map", torch.float32)[-1:]
    assert errors(gradients("map", torch.half)[-1:], of_map)[0] < 0.05
    small = gradients("prefix", torch.float32, scale=1e-5)
    assert errors(gradients("prefix", torch.half, scale=1e-5), small)[1] < 0.02
    monkeypatch.setattr("ulm_prompt.prompt_lm.model.FLOAT16_SCALE", 1.0)
    assert errors(gradients("prefix", torch.half, scale=1e-5), small)[1] > 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_cpu_s_gradients(dtype: torch.dtype) -> None:
    on_gpu, on_cpu = gradients("prefix", dtype, "cuda"), gradients("prefix", torch.float32)
    assert max(errors(on_gpu, on_cpu)) < (1e-4 if dtype == torch.float32 else 0.1)


def test_a_step_computes_no_more_than_it_must() -> None:
    """All layers except the last compute every position. The last layer computes keys and values at
    every position, and the rest where the loss reads. The prefix needs only its projection. The
    backward pass costs as much as the forward pass, not twice: LM weights need no gradient.
    """
    model, sample = tiny.prompted(5), tiny.sample()
    rows, length = sample["net_input"]["tokens"].shape
    reads = sample["target"].shape[1]
    square, feed_forward = 32**2, 2 * 4 * 32**2
    body = 2 * rows * length * (4 * square + feed_forward)
    last = rows * length * 2 * square + rows * reads * (2 * square + feed_forward)
    prefix = 3 * 5 * 2 * square
    logits = rows * reads * 32 * tiny.SYMBOLS
    products = torch.ops.aten.mm, torch.ops.aten.addmm  # without bmm: attention, a few percent
    with FlopCounterMode(display=False) as counter:
        tiny.criterion()(model, sample)[0].backward()
    counts = counter.get_flop_counts()["Global"]
    needed = 2 * 2 * (body + last + prefix + logits)
    assert sum(counts.get(product, 0) for product in products) == needed


class NothingWaits(TorchDispatchMode):
    """Fails on operations that make the host wait for its device: numbers or shapes from values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITING), f"{name} waits for the device"
        indices = args[1] if name in ("index", "index_put_") else ()
        assert all(index is None or index.dtype != torch.bool for index in indices), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss_on", ["published", "answer"])
def test_a_step_waits_for_nothing(loss_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = tiny.prompted().train(), tiny.sample()
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits"), raising=False)
    with NothingWaits():
        loss, size, logged = tiny.criterion(loss_on)(model, sample)
        loss.backward()
    assert isinstance(size, int), "fairseq's meters would ask the device for it"
    assert LabelCrossEntropy.logging_outputs_can_be_summed()
    with pytest.raises(AssertionError, match="waits"), NothingWaits():
        bool(logged["loss"] > 0)


def test_the_gpu_s_mask_is_ours() -> None:
    """On CUDA, the fused kernels get ``causal_lower_right`` instead of the mask."""
    for length in (1, 2, 17):
        mask = tiny.prompted().causal_mask(length)
        assert torch.equal(causal_lower_right(*mask.shape)._materialize(), mask)


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "parameters", "expected", "reason"),
    [
        ("cpu", True, 151_263_232, torch.bfloat16, "--dtype float32"),
        ("cpu", True, 3_200_000, torch.float32, "3.2M parameters"),
        ("cpu", False, 151_263_232, torch.float32, "without bfloat16"),
        ("mps", True, 151_263_232, torch.float32, "not measured on Apple's GPU"),
        ("cuda", True, 151_263_232, torch.bfloat16, "capability 8.0"),
        ("cuda", False, 151_263_232, torch.float32, "capability 7.5"),
    ],
)
def test_auto_asks_the_hardware_and_the_lm(
    monkeypatch: pytest.MonkeyPatch, device: str, has_bfloat16: bool, parameters: int,
    expected: torch.dtype, reason: str,
) -> None:  # fmt: skip
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_bfloat16)
    capability = (8, 0) if has_bfloat16 else (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    dtype, printed = choose_dtype("auto", torch.device(device), parameters)
    assert dtype == expected and reason in printed
    assert choose_dtype("float16", torch.device(device), parameters) == (torch.half, "as asked")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_prompts_before_ill_conditioned_projections(
    dtype: torch.dtype,
) -> None:
    """The projections of trained LMs are ill-conditioned: large prompt vectors cancel to keys of
    usual size. Two prompts that share an LM are projected before the LM is rounded.
    """
    torch.manual_seed(5)
    model, rows = tiny.prompted(), [torch.randint(4, 104, (size,)) for size in (5, 17, 9, 29)]
    other = PromptLanguageModel(model.lm, Prompt(3, 5, 32)).eval()
    for number, layer in enumerate(model.lm.decoder.layers):
        for name in ("keys", "values"):
            projection = getattr(layer.self_attn, f"{name[0]}_proj")
            left, sizes, right = torch.linalg.svd(projection.weight)
            weight = left @ (sizes[0] * torch.logspace(0, -4, 32)).diag() @ right
            projection.weight.copy_(weight)
            for prompt in (model.prompt, other.prompt):
                projected = 0.2 * torch.randn(32, 5) - projection.bias[:, None]
                getattr(prompt, name)[number] = torch.linalg.solve(weight, projected).T
    lms = [CachedLM(prompted, tiny.PAD, tiny.EOS) for prompted in (model, other)]
    full = [lm.prefill(rows).logits for lm in lms]
    for lm in lms:
        lm.to(dtype)
    for lm, expected in zip(lms, full):
        error = lm.prefill(rows).logits - expected
        assert error.norm() < 2 * torch.finfo(dtype).eps * expected.norm()
