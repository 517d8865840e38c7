"""Decoding in bfloat16 and float16."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_decoding import a_model, cached, free, ours, some_rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_mostly(dtype: torch.dtype) -> None:
    model, rows = a_model(), some_rows(60)
    full = free(ours(model, rows, max_labels=1))
    found = ours(model, rows, max_labels=1, dtype=dtype)
    assert sum(map(list.__eq__, free(found), full)) >= 54
    assert all(math.isfinite(score) for decoded in found for score in decoded.within.scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_prompt_before_ill_conditioned_projections(
    dtype: torch.dtype,
) -> None:
    """As those of trained LMs are: vectors that give usual keys are large there, and cancel."""
    torch.manual_seed(5)
    model, rows = tiny.prompted(), some_rows(9)
    for number, layer in enumerate(model.lm.decoder.layers):
        for name in ("keys", "values"):
            projection = getattr(layer.self_attn, f"{name[0]}_proj")
            left, sizes, right = torch.linalg.svd(projection.weight.detach())
            weight = left @ (sizes[0] * torch.logspace(0, -4, 32)).diag() @ right
            behind = 0.2 * torch.randn(32, 5) - projection.bias.detach()[:, None]
            with torch.no_grad():
                projection.weight.copy_(weight)
                getattr(model.prompt, name)[number] = torch.linalg.solve(weight, behind).T
    full = cached(model).prefill(rows).logits
    half = cached(model, dtype).prefill(rows).logits
    assert (half - full).norm() < 2 * torch.finfo(dtype).eps * full.norm()
