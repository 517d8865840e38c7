"""ReLU that keeps for the way back what it needs: which numbers were positive, a byte each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor


class _LeanReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.relu_())
        ctx.save_for_backward(x > 0)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return gradient * positive


def activate(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """The layer's own activation of ``x``, its widest tensor, which may be overwritten."""
    frozen = not layer.fc2.weight.requires_grad  # else fc2 keeps the activation itself
    if frozen and layer.activation_fn is F.relu and torch.is_grad_enabled() and x.requires_grad:
        return _LeanReLU.apply(x)
    return layer.activation_fn(x)
