"""Which number format is computed in, and decoding in bfloat16 and float16."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_decoding import a_model, cached, free, ours, some_rows
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.lm import choose_dtype
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt

HALF = (torch.bfloat16, torch.float16)


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
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    has_bfloat16: bool,
    parameters: int,
    expected: torch.dtype,
    reason: str,
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_bfloat16)
    capability = (8, 0) if has_bfloat16 else (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    dtype, words = choose_dtype("auto", torch.device(device), parameters)
    assert dtype == expected and reason in words
    assert choose_dtype("float16", torch.device(device), parameters) == (torch.half, "as asked")


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_agrees_mostly(dtype: torch.dtype) -> None:
    model, rows = a_model(), some_rows(60)
    full = free(ours(model, rows, max_labels=1))
    half = ours(model, rows, max_labels=1, dtype=dtype)
    assert sum(map(list.__eq__, free(half), full)) >= 54
    assert all(math.isfinite(score) for decoded in half for score in decoded.within.scores)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_keeps_prompts_before_ill_conditioned_projections(
    dtype: torch.dtype,
) -> None:
    """As those of trained LMs are: vectors that give usual keys are large there, and cancel. Two
    prompts over one LM are projected before the LM is rounded.
    """
    torch.manual_seed(5)
    model, rows = tiny.prompted(), some_rows(9)
    other = PromptLanguageModel(model.lm, Prompt(3, 5, 32)).eval()
    for number, layer in enumerate(model.lm.decoder.layers):
        for name in ("keys", "values"):
            projection = getattr(layer.self_attn, f"{name[0]}_proj")
            left, sizes, right = torch.linalg.svd(projection.weight.detach())
            weight = left @ (sizes[0] * torch.logspace(0, -4, 32)).diag() @ right
            with torch.no_grad():
                projection.weight.copy_(weight)
                for prompt in (model.prompt, other.prompt):
                    behind = 0.2 * torch.randn(32, 5) - projection.bias[:, None]
                    getattr(prompt, name)[number] = torch.linalg.solve(weight, behind).T
    lms: list[CachedLM] = [cached(model), cached(other)]
    full = [lm.prefill(rows).logits for lm in lms]
    for lm in lms:
        lm.to(dtype)
    for lm, expected in zip(lms, full):
        error = lm.prefill(rows).logits - expected
        assert error.norm() < 2 * torch.finfo(dtype).eps * expected.norm()
