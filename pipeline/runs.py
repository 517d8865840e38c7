"""Runs of scripts: start one from another, record how outputs were made, show progress."""

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
_starting = threading.Lock()  # held until a starting script is in _running
_ending = threading.Event()
PACKAGES = ("torch", "fairseq-fixed", "numpy", "scikit-learn", "soundfile")


def run_script(
    words: Sequence[object], prefix: str = "", environment: Mapping[str, str] | None = None
) -> int:
    """Print a command line, run the script from the repository's root, and return the exit code.

    Print the lines of the script at once, each after ``prefix``. ``environment``: variables to set.
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
            encoding=sys.stdout.encoding,  # the script inherits this encoding
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
    """Terminate the scripts of all threads. From now on ``run_script`` returns 1 at once."""
    with _starting:
        _ending.set()
        for process in list(_running):
            process.terminate()


def provenance() -> dict[str, object]:
    """Return the record for an output: command line, versions, git revision or "unknown"."""
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
    """Add the flag that turns progress bars and reports off. ``prints_answers``: the result of the
    stage goes to standard output, and is still printed.
    """
    meaning = "print only answers and errors" if prints_answers else "print only errors"
    parser.add_argument("--quiet", nargs=0, const=prints_answers, action=_Quiet, help=meaning)


class _Quiet(argparse.Action):
    """Silence the process while the flags are parsed, before anything is printed."""

    def __call__(self, *_: object) -> None:
        global _quiet
        _quiet = True
        if not self.const:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar on standard error, over ``items`` or up to the ``total`` in ``options``."""
    disable = True if _quiet else None  # None: disabled if standard error is no terminal
    return tqdm(items, disable=disable, mininterval=0.5, dynamic_ncols=True, **options)


def report(text: object) -> None:
    """Print ``text``, neither answer nor error, to standard error, unless --quiet is set."""
    if not _quiet:
        print(text, file=sys.stderr)
