"""The number format to compute in: bfloat16 only where this machine multiplies it much faster."""

from __future__ import annotations

import time

import torch

from pipeline.errors import UserError

MUCH_FASTER = 2.0
_SIZE = {"cpu": 384, "cuda": 4096}


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that ``name``, auto or torch's, stands for, and the reason in words.

    ``auto`` times a square matrix product in float32 and in bfloat16, for a tenth of a second.
    """
    if name != "auto":
        return getattr(torch, name), "as asked"
    full = multiplications_per_second(torch.float32, device)
    half = multiplications_per_second(torch.bfloat16, device)
    ratio = half / full
    rates = f"a matrix product runs at {2 * half / 1e9:,.1f} GFLOP/s in bfloat16"
    rates += f" and {2 * full / 1e9:,.1f} in float32"
    if ratio >= MUCH_FASTER:
        return torch.bfloat16, f"{rates}; --dtype float32 for float32"
    return torch.float32, rates


def dtype_to_train_in(name: str, whole_lm: bool) -> str:
    """The dtype that a recipe's ``dtype`` stands for on this machine; says why if that is chosen.

    Raises ``UserError`` for what fairseq cannot train the ``whole_lm`` in.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_dtype(name, device)
    found = str(dtype).removeprefix("torch.")
    if name == "auto":
        print(f"dtype {found}: {reason}")
    if whole_lm and found == "float16" and device.type == "cpu":
        raise UserError(
            "dtype=float16: fairseq scales the whole LM's loss on a GPU alone; "
            "take bfloat16 or float32"
        )
    return found


def multiplications_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """The best of a few square matrix products, after one to warm up."""
    size = _SIZE.get(device.type, _SIZE["cpu"])
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    slow = 0.05  # seconds: one such product is enough to know
    times = []
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        times.append(time.perf_counter() - start)
        if len(times) > 1 and times[-1] > slow:
            break
    return size**3 / min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
