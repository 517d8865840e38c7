"""The device to compute on: one choice for every stage, and the reason in words."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses the device."""
    auto = "auto: CUDA's GPU where there is one, else the CPU; Apple's GPU (mps) only when named"
    parser.add_argument("--device", default="auto", choices=DEVICES, help=auto)


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device that ``name``, one of ``DEVICES``, stands for, and its description.

    ``auto`` leaves Apple's GPU alone: nobody has measured this code on one.
    Raises ``UserError`` for a device that torch does not find here.
    """
    import torch  # not at the top: light scripts list the flag without it

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name not in DEVICES or not here.get(name, True):
        raise UserError(
            f"--device {name}: torch {torch.__version__} finds no such device here; expected cpu"
            + "".join(f" or {other}" for other, exists in here.items() if exists)
        )
    asked = "" if name == "auto" else ", as asked"
    if name == "cuda" or (name == "auto" and here["cuda"]):
        # with its number: for other threads a bare "cuda" is the first GPU
        device = torch.device("cuda", torch.cuda.current_device())
        return device, f"GPU {torch.cuda.get_device_name()}{asked}"
    if name == "mps":
        return torch.device("mps"), f"Apple GPU{asked}"
    without = "Apple's GPU is used by --device mps" if here["mps"] else "no GPU found"
    return torch.device("cpu"), f"CPU{asked or ', ' + without}"


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float64; on the CPU if its device is Apple's GPU, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
