"""A small count of what ``python -m tests.reliability.kills`` does."""

from __future__ import annotations

from tests.reliability.stages import STAGES
from tests.reliability.table import table


def test_every_stage_survives_a_kill() -> None:
    rows = table("kills", "--count", "1", "--seed", "3")
    assert [row[0] for row in rows] == [stage.name for stage in STAGES]
