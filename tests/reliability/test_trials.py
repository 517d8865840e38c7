"""A few trials of ``python -m tests.reliability.faults``, and a small rehearsal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.reliability.rehearsal import rehearse
from tests.reliability.stages import STAGES


def trials(*words: str) -> list[list[str]]:
    """Run trials in a new process, because they fork. Return the cells of the table."""
    command = [sys.executable, "-m", "tests.reliability.faults", *words]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_every_stage_survives_a_kill() -> None:
    rows = trials("--fault", "kill", "--count", "1", "--seed", "3")
    assert [row[0] for row in rows] == [stage.name for stage in STAGES]


def test_stages_survive_every_fault() -> None:
    stages = ["quantized", "verbalizer"]
    faults = ["disk_full", "read_only", "vanishing", "two_runs"]
    rows = trials("--fault", *faults, "--count", "2", "--seed", "1", "--stage", *stages)
    assert [row[:2] for row in rows] == [[stage, fault] for stage in stages for fault in faults]
    assert sum(int(row[3]) for row in rows) >= 4, f"too few faults struck: {rows}"


def test_files_with_the_released_names_go_from_download_to_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearse(tmp_path, layers=2, width=128, channels=32, clips=6)
    assert capsys.readouterr().out.count(".py") == 9
    samples = tmp_path / "samples" / "samples_d"
    assert (samples / "samples_KS_hubert100_d.json").stat().st_size
    quantized = tmp_path / "preprocess" / "table" / "data" / "base100" / "quantized" / "train"
    assert len(quantized.read_text().splitlines()) == 2
