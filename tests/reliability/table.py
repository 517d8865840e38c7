"""The command lines of this folder, as the tests call them."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY


def table(module: str, *words: str) -> list[list[str]]:
    """Run a module in a process of its own, since it forks, and return the cells of its table."""
    command = [sys.executable, "-m", f"tests.reliability.{module}", *words]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines()[2:] if line.startswith("|")]
    assert "wrong" in result.stdout, result.stdout
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
