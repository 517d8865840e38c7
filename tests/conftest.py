"""Helpers of all tests: run a script as a user does, find the published data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of published units and golden files; skip the test if it is missing."""
    if not DATA.is_dir():
        pytest.skip(f"the published units are missing ({DATA})")
    return DATA


def stage(script: str, *args: object, code: int = 0) -> str:
    """Run a stage script as a user does; check its exit code and return what it printed."""
    command = [sys.executable, str(REPOSITORY / script), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    printed = result.stdout + result.stderr
    assert result.returncode == code, f"{script} exited with {result.returncode}:\n{printed}"
    if code == 2:
        assert result.stderr.count("\n") == 1 and "Traceback" not in printed, printed
    return printed
