"""What a stage computes on: the device and the reason in words, threads, and this process among
those that torchrun started.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch  # and in functions: light scripts list the flags without it

T = TypeVar("T")
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
    import torch

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


def multiplies_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether products in bfloat16 are fast on ``device``, and what it is in words."""
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    # GFLOP/s of large products in bfloat16 and float32, on three processors: 2,100 and 310 with
    # AMX, 213 and 105 with AVX512-BF16 alone, 1.6 and 99 with neither
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return fast, f"a processor {'that multiplies' if fast else 'without'} bfloat16"


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """While the block runs, torch uses ``count`` threads for one operation (None: no change)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ranks(NamedTuple):
    """``rank`` of ``world`` processes; ``local`` counts on this machine and chooses the GPU."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the one process that reports and writes what is written once."""
        return self.rank == 0


def ranks() -> Ranks:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without torchrun this is the only process."""
    values = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if values[0] is None and values[1] in (None, "1"):
        return Ranks()
    try:
        return Ranks(*(int(value or "") for value in values))
    except ValueError:
        raise UserError(
            f"RANK, WORLD_SIZE, LOCAL_RANK = {values}: expected three numbers from torchrun, "
            "or none of them"
        ) from None


@contextlib.contextmanager
def process_group(here: Ranks) -> Iterator[None]:
    """Join the group of all ranks (nccl on GPUs, gloo on CPUs), if there are several."""
    if here.world == 1:
        yield
        return
    import torch
    from torch import distributed

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(here.local)
    # a rank may have to wait for a slower one as long as the work takes
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=datetime.timedelta(days=7))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def wait_for_all(here: Ranks) -> None:
    """Return when every rank has called this."""
    if here.world > 1:
        from torch import distributed

        distributed.barrier()


def on_main(here: Ranks, work: Callable[[], T]) -> T:
    """Do ``work`` on the main rank while the others wait; every rank returns its result.

    If it raises, the main rank raises that, and the others exit with code 1 and print nothing.
    """
    if here.world == 1:
        return work()
    from torch import distributed

    outcome: list[Any] = [None, False]  # the result, and whether there is one
    try:
        if here.main:
            outcome = [work(), True]
    finally:  # the others must hear of a failure too
        distributed.broadcast_object_list(outcome)
    if not outcome[1]:
        sys.exit(1)
    return outcome[0]


def speak_on_main_alone(here: Ranks) -> None:
    """From here on other ranks print nothing; their errors still go to stderr."""
    if not here.main:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
