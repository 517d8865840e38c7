"""What benchmarks share: the device, models with random weights, clocks, and a processor's rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.rows import Row, read_rows
from tests.conftest import DATA, REPOSITORY
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"3.2M": (4, 256, 4), "151M": (12, 1024, 16)}  # layers, width, heads
UNITS = DATA / "units" / "hubert100"  # published units
T = TypeVar("T")


def a_model(shape: str, length: int, dropout: float = 0.0) -> PromptLanguageModel:
    """An LM of a ``shape`` in SHAPES and a prompt; what it computes costs the same."""
    layers, width, heads = SHAPES[shape]
    prompt = Prompt(layers, length, width, dropout)
    return PromptLanguageModel(tiny.lm(layers, width, heads), prompt).to(DEVICE)


def rows_of(units: Path, downstream: str, split: str) -> list[Row]:
    """A published split, or the one in the repository where that is missing."""
    path = units / downstream / split
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


def where_time_goes(work: Callable[[], object]) -> None:
    """Print the operators that take most of the time."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
    with profile(activities=activities) as events:
        work()
    name = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    entries = sorted(events.key_averages(), key=lambda entry: -getattr(entry, name))
    total = sum(getattr(entry, name) for entry in entries)
    shares = [
        f"{entry.key.removeprefix('aten::')[:40]} {100 * getattr(entry, name) / total:.0f}%"
        for entry in entries[:7]
    ]
    print(f"{'':6}{', '.join(shares)}", flush=True)


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a square matrix product: the best of a few, after one to warm up."""
    size = 4096 if DEVICE.type == "cuda" else 384
    left, right = (torch.ones(size, size, dtype=dtype, device=DEVICE) for _ in range(2))
    times = [timed(lambda: left @ right)[0] for _ in range(6)]
    return 2 * size**3 / min(times[1:]) / 1e9
