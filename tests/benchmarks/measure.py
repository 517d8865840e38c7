"""What benchmarks share: the device, models with random weights, clocks, and a processor's rate."""

from __future__ import annotations

import datetime
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from pipeline.rows import Row, read_rows
from tests.conftest import DATA, REPOSITORY
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"3.2M": (4, 256, 4), "151M": (12, 1024, 16)}  # layers, width, heads
T = TypeVar("T")


def a_model(shape: str, length: int, dropout: float = 0.0) -> PromptLanguageModel:
    """An LM of a ``shape`` in SHAPES and a prompt; what it computes costs the same."""
    layers, width, heads = SHAPES[shape]
    prompt = Prompt(layers, length, width, dropout)
    return PromptLanguageModel(tiny.lm(layers, width, heads), prompt).to(DEVICE)


def rows_of(downstream: str, split: str) -> list[Row]:
    """A published split, or the one in the repository where that is missing."""
    path = DATA / "units" / "hubert100" / downstream / split
    if not path.is_file():
        path = REPOSITORY / "preprocess" / downstream / "data" / "example100" / split
    return list(read_rows(path))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``work`` takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def alone(work: Callable[..., T], *arguments: object) -> T:
    """What ``work`` returns in a process of its own, whose memory nothing else has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def matrix_rate(dtype: torch.dtype, *shapes: tuple[int, int, int]) -> float:
    """GFLOP/s of matrix products at best: of ``shapes``, (rows, inner, columns) each, and some
    squares.
    """
    sizes = (4096, 8192) if DEVICE.type == "cuda" else (384, 1024, 2048)
    rates = []
    for rows, inner, columns in (*shapes, *((size, size, size) for size in sizes)):
        left = torch.randn(rows, inner, device=DEVICE).to(dtype)
        right = torch.randn(inner, columns, device=DEVICE).to(dtype)
        best = min(timed(lambda left=left, right=right: left @ right)[0] for _ in range(6))
        rates.append(2 * rows * inner * columns / best / 1e9)
    return max(rates)


def product_shapes(tokens: int, width: int) -> list[tuple[int, int, int]]:
    """The products of a layer over ``tokens``, there and back."""
    return [(tokens, width, width), (tokens, width, 4 * width), (tokens, 4 * width, width)]


class Result(NamedTuple):
    """One measurement. ``achieved`` and ``limit`` are GFLOP/s: the least that the work needs over
    its time, and ``matrix_rate``.
    """

    what: str
    published: float | None
    ours: float
    unit: str
    achieved: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times less ours takes."""
        return None if self.published is None else self.published / self.ours

    def cells(self) -> list[str]:
        """A line of the table."""
        theirs, ours = (
            "" if self.published is None else f"{self.published:,.4g}",
            f"{self.ours:,.4g}",
        )
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        bound = ""
        if self.limit:
            bound = f"{self.achieved:.0f} of {self.limit:.0f}, {self.achieved / self.limit:.0%}"
        return [self.what, theirs, f"{ours} {self.unit}", ratio, bound, self.note]


HEAD = ["", "published", "ours", "ratio", "GFLOP/s of the matrix rate", ""]
RESULTS: list[Result] = []  # of this process


def report(result: Result) -> None:
    """Print a measurement and keep it."""
    RESULTS.append(result)
    print("  ".join(cell for cell in result.cells() if cell), flush=True)


def machine() -> str:
    """The processor or card, the versions and the day."""
    if DEVICE.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if "model name" in line), "a CPU")
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        fast = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags] or ["no bfloat16"]
        name = f"{name} ({', '.join(fast)}), {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; {datetime.date.today()}"
