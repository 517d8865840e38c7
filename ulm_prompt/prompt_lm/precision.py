"""The number format to compute in, and gradients kept within the range of float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.devices import choose_device, multiplies_bfloat16
from pipeline.errors import UserError

LARGE = 30_000_000  # LM parameters; on smaller LMs bfloat16 saves little or is slower
FLOAT16_SCALE = 256.0  # float16 holds 6e-8 to 65,504; a target's gradient at its logits is up to 1


def choose_dtype(name: str, device: torch.device, parameters: int) -> tuple[torch.dtype, str]:
    """The dtype that ``name``, auto or torch's, stands for, and the reason in words.

    ``auto`` looks at what the processor or card is and at the LM's number of ``parameters``. It
    times nothing, so that a result does not depend on how busy the machine is.
    """
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "mps":
        return torch.float32, "bfloat16 is not measured on Apple's GPU"
    fast, what = multiplies_bfloat16(device)
    if not fast:
        return torch.float32, f"{what} would be slower in it"
    if parameters < LARGE:
        return torch.float32, f"an LM of {parameters / 1e6:.1f}M parameters is too small to gain"
    return torch.bfloat16, f"{what}; --dtype float32 for float32"


def dtype_to_train_in(name: str, whole_lm: bool, parameters: int) -> str:
    """The dtype that a recipe's ``dtype`` stands for on this machine. Prints it and the device.

    Raises ``UserError`` for a dtype that fairseq cannot train the ``whole_lm`` in.
    """
    device, why = choose_device()
    dtype, reason = choose_dtype(name, device, parameters)
    chosen = str(dtype).removeprefix("torch.")
    print(f"computes on {why}, in {chosen} ({reason})")
    if whole_lm and chosen == "float16" and device.type == "cpu":
        raise UserError(
            "dtype=float16: fairseq scales the whole LM's loss on a GPU alone; "
            "take bfloat16 or float32"
        )
    return chosen


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
