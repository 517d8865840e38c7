"""Gradients kept within float16's range on their way through a half-precision LM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# float16 holds 6e-8 to 65,504; the loss is a sum, so a target's gradient at its logits is up to 1
FLOAT16_SCALE = 256.0


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; its gradient is multiplied by ``factor`` on the way back."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)
