"""A run of a script: calling it from another, what it was made with, its threads."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.workspace import REPOSITORY

if TYPE_CHECKING:
    import torch

RUNNING: set[subprocess.Popen] = set()  # the scripts that run_script waits for
PACKAGES = ("torch", "fairseq-fixed", "numpy", "scikit-learn", "soundfile")


def run_script(
    words: Sequence[object], prefix: str = "", environment: Mapping[str, str] | None = None
) -> int:
    """Print a script's command line, run it from the repository's root, print its lines as they
    come, each after ``prefix``, and return its exit code. ``environment``: variables to change.
    """
    command = [str(word) for word in words]
    print(f"{prefix}$ python {shlex.join(command)}", flush=True)
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding=sys.stdout.encoding,  # the script's too
        errors="surrogateescape",
        text=True,
    ) as process:
        RUNNING.add(process)
        for line in process.stdout or ():
            print(prefix + line, end="", flush=True)
    RUNNING.discard(process)
    return process.returncode


def provenance() -> dict[str, object]:
    """The record saved with each output: command line, versions, git revision ("unknown" outside a
    clone).
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"command": sys.argv, "git_revision": _git_revision(), "versions": versions}


def _git_revision() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """While the block runs, torch uses ``count`` threads for one operation (None: no change)."""
    import torch  # not at the top: scripts that only call others start without it

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
