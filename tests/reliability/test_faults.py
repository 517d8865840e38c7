"""A small count of what ``python -m tests.reliability.faults`` does."""

from __future__ import annotations

from tests.reliability.table import table

STAGES = ["quantized", "verbalizer"]
FAULTS = ["disk_full", "read_only", "vanishing", "two_runs"]


def test_stages_bear_every_fault() -> None:
    rows = table("faults", "--count", "2", "--seed", "1", "--stage", *STAGES)
    assert [row[:2] for row in rows] == [[stage, fault] for stage in STAGES for fault in FAULTS]
    assert sum(int(row[3]) for row in rows) >= 4, f"too few came to pass: {rows}"
