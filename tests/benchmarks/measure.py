"""Shared by the benchmarks: device, models with random weights, clock, rate of the processor."""

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


def random_model(shape: str, length: int, dropout: float = 0.0) -> PromptLanguageModel:
    """Return an LM of a ``shape`` in SHAPES with a prompt. Trained weights cost the same time."""
    layers, width, heads = SHAPES[shape]
    prompt = Prompt(layers, length, width, dropout)
    return PromptLanguageModel(tiny.lm(layers, width, heads), prompt).to(DEVICE)


def read_split(downstream: str, split: str) -> list[Row]:
    """Return the rows of a published split. If it is missing, return the repository's example."""
    path = DATA / "units" / "hubert100" / downstream / split
    if not path.is_file():
        path = REPOSITORY / "preprocess" / downstream / "data" / "example100" / split
    return list(read_rows(path))


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``float32``."""
    return str(dtype).removeprefix("torch.")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that ``work`` takes, and the result of ``work``."""
    start = time.perf_counter()
    result = work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def run_isolated(work: Callable[..., T], *arguments: object) -> T:
    """Return the result of ``work`` in a new process, whose memory nothing else has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def matrix_rate(dtype: torch.dtype, *shapes: tuple[int, int, int]) -> float:
    """Return the highest GFLOP/s of matrix products: of ``shapes``, each (rows, inner, columns),
    and of some squares.
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
    """Return the shapes of a layer's matrix products over ``tokens``, forward and backward."""
    return [(tokens, width, width), (tokens, width, 4 * width), (tokens, 4 * width, width)]


class Result(NamedTuple):
    """One measurement. ``achieved``: the least necessary work over our time, in GFLOP/s.
    ``limit``: ``matrix_rate``, in GFLOP/s.
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
        """The published value divided by ours."""
        return None if self.published is None else self.published / self.ours

    def cells(self) -> list[str]:
        """Return the cells of this row of the table."""
        published = "" if self.published is None else f"{self.published:,.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        bound = ""
        if self.limit:
            bound = f"{self.achieved:.0f} of {self.limit:.0f}, {self.achieved / self.limit:.0%}"
        return [self.what, published, f"{self.ours:,.4g} {self.unit}", ratio, bound, self.note]


HEAD = ["", "published", "ours", "ratio", "GFLOP/s of the matrix rate", ""]
RESULTS: list[Result] = []  # all that this process has reported


def report(result: Result) -> None:
    """Print a measurement and keep it."""
    RESULTS.append(result)
    print("  ".join(cell for cell in result.cells() if cell), flush=True)


def machine() -> str:
    """Return the processor or card, torch's version and the date."""
    if DEVICE.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if "model name" in line), "a CPU")
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        bf16 = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags] or ["no bfloat16"]
        name = f"{name} ({', '.join(bf16)}), {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; {datetime.date.today()}"
