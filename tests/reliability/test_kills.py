"""A small count of what ``python -m tests.reliability.kills`` does."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY
from tests.reliability.stages import STAGES


def test_every_stage_survives_a_kill() -> None:
    """In a process of its own: it forks."""
    command = [sys.executable, "-m", "tests.reliability.kills", "--count", "1", "--seed", "3"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [stage.name for stage in STAGES], result.stdout
    assert all(int(row[3]) == 0 for row in rows), result.stdout
