"""The device and threads that a stage computes with, and the ranks that torchrun starts."""

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
    import torch  # functions import torch themselves, so that --help starts without it

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda", "mps")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses the device."""
    meaning = "auto: a CUDA GPU if one exists, else the CPU, never Apple's GPU (mps)"
    parser.add_argument("--device", default="auto", choices=DEVICES, help=meaning)


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """Return the device for ``name``, one of ``DEVICES``, and a description of the device.

    ``auto`` never chooses Apple's GPU: nobody has measured this code on one.
    Raises ``UserError`` if torch does not find the device.
    """
    import torch

    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name not in DEVICES or not gpus.get(name, True):
        raise UserError(
            f"--device {name}: torch {torch.__version__} finds no such device; expected cpu"
            + "".join(f" or {gpu}" for gpu, exists in gpus.items() if exists)
        )
    reason = "" if name == "auto" else ", as asked"
    if name == "cuda" or (name == "auto" and gpus["cuda"]):
        # with the GPU's number: in other threads a bare "cuda" means the first GPU
        device = torch.device("cuda", torch.cuda.current_device())
        return device, f"GPU {torch.cuda.get_device_name()}{reason}"
    if name == "mps":
        return torch.device("mps"), f"Apple GPU{reason}"
    no_gpu = ", --device mps uses Apple's GPU" if gpus["mps"] else ", no GPU found"
    return torch.device("cpu"), f"CPU{reason or no_gpu}"


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in float64. Apple's GPU has no float64: its tensors move to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def multiplies_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Return whether bfloat16 products are fast on ``device``, and a description of the device."""
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    # GFLOP/s of large products on three processors, bfloat16 / float32: with AMX 2,100 / 310,
    # with AVX512-BF16 alone 213 / 105, with neither 1.6 / 99
    is_fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return is_fast, f"a processor {'that multiplies' if is_fast else 'without'} bfloat16"


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads per operation while the block runs (None: no change)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ranks(NamedTuple):
    """This process is ``rank`` of ``world``. ``local``: the rank on this machine, and the GPU."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this process reports, and writes the files that are written once."""
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
            f"RANK, WORLD_SIZE, LOCAL_RANK = {values}: expected three numbers from torchrun; "
            "start the stage with torchrun, or unset all three"
        ) from None


@contextlib.contextmanager
def process_group(process: Ranks) -> Iterator[None]:
    """Join the group of all ranks (nccl on GPUs, gloo on CPUs), if there are several."""
    if process.world == 1:
        yield
        return
    import torch
    from torch import distributed

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(process.local)
    week = datetime.timedelta(days=7)  # a rank may wait for a slower rank until all work is done
    distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=week)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def wait_for_all(process: Ranks) -> None:
    """Return when every rank has called this function."""
    if process.world > 1:
        from torch import distributed

        distributed.barrier()


def on_main(process: Ranks, work: Callable[[], T]) -> T:
    """Call ``work`` on the main rank while the other ranks wait. Every rank returns the result.

    If ``work`` raises, the main rank raises the error. The other ranks print nothing and exit
    with code 1.
    """
    if process.world == 1:
        return work()
    from torch import distributed

    outcome: list[Any] = [None, False]  # the result, and whether ``work`` succeeded
    try:
        if process.main:
            outcome = [work(), True]
    finally:  # the other ranks must learn of a failure too
        distributed.broadcast_object_list(outcome)
    if not outcome[1]:
        sys.exit(1)
    return outcome[0]


def speak_on_main_alone(process: Ranks) -> None:
    """Let only the main rank print from now on; errors of all ranks still go to stderr."""
    if not process.main:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
