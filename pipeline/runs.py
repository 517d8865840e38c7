"""A run of a script: calling it from another, what it was made with, what it shows meanwhile."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from pipeline.workspace import REPOSITORY

_running: set[subprocess.Popen] = set()  # the scripts that run_script waits for
_starting = threading.Lock()  # a script has not begun yet, or is in _running
_ending = threading.Event()
PACKAGES = ("torch", "fairseq-fixed", "numpy", "scikit-learn", "soundfile")


def run_script(
    words: Sequence[object], prefix: str = "", environment: Mapping[str, str] | None = None
) -> int:
    """Print a script's command line, run it from the repository's root, print its lines as they
    come, each after ``prefix``, and return its exit code. ``environment``: variables to change.
    """
    command = [str(word) for word in words]
    print(f"{prefix}$ python {shlex.join(command)}", flush=True)
    with _starting:
        if _ending.is_set():
            return 1
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding=sys.stdout.encoding,  # the script's too
            errors="surrogateescape",
            text=True,
        )
        _running.add(process)
    with process:
        for line in process.stdout or ():
            print(prefix + line, end="", flush=True)
    _running.discard(process)
    return process.returncode


def end_scripts() -> None:
    """Terminate what ``run_script`` runs in other threads; from here on it begins nothing."""
    with _starting:
        _ending.set()
        for process in list(_running):
            process.terminate()


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
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        revision = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {"command": sys.argv, "git_revision": revision, "versions": versions}


_quiet = False


def add_quiet(parser: argparse.ArgumentParser, prints_answers: bool = False) -> None:
    """Add the flag that turns progress bars and reports off. ``prints_answers``: the stage's
    standard output is its result, and stays.
    """
    said = "print answers and errors alone" if prints_answers else "print errors alone"
    parser.add_argument("--quiet", nargs=0, const=prints_answers, action=_Quiet, help=said)


class _Quiet(argparse.Action):
    """Takes effect where the flag is read, before anything is printed."""

    def __call__(self, *_: object) -> None:
        global _quiet
        _quiet = True
        if not self.const:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm over ``items``, or of the ``total`` in ``options``, on standard error."""
    silent = True if _quiet else None  # None: only where standard error is no terminal
    return tqdm(items, disable=silent, mininterval=0.5, dynamic_ncols=True, **options)


def report(text: object) -> None:
    """Print to standard error what is neither answer nor error; nothing with --quiet."""
    if not _quiet:
        print(text, file=sys.stderr)
