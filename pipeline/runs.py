"""Calling a stage script from another, so that it could have been typed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from pipeline.workspace import REPOSITORY


def run_script(
    words: Sequence[object], prefix: str = "", environment: Mapping[str, str] | None = None
) -> int:
    """Announce a script and its flags, run it from the repository's root and show its lines, each
    after ``prefix``, as they come. ``environment``: variables to change. Returns its exit code.
    """
    words = [str(word) for word in words]
    print(f"{prefix}$ python {shlex.join(words)}", flush=True)
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            print(prefix + line, end="", flush=True)
    return process.returncode


# What made an output: versions, git revision, command line.


PACKAGES = ("torch", "fairseq-fixed", "numpy", "scikit-learn", "soundfile")


def provenance() -> dict[str, object]:
    """The record saved with each run. The git revision is "unknown" outside a clone."""
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


# How many threads torch takes.


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many for one operation while the block runs (None: as they are)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
