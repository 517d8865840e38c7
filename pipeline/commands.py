"""Calling a stage script from another, so that it could have been typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

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
