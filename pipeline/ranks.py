"""This process among those that share a run, as torchrun's environment variables say."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from pipeline.errors import UserError

T = TypeVar("T")


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
    except (TypeError, ValueError):
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
