"""The row format: what is written is read again, and anything else is a one-line error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rows import read_rows

# any name without a line break: spaces, tabs, bars and other alphabets included


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.wav||3", "line 2: no units"),
        ("a.wav|1 2|", "line 2: no labels"),
        ("a.wav|1 2", "line 2: expected file|units|labels"),
        ("a.wav|1 x|3", "line 2: units must be integers"),
        ("a.wav|1  2|3", "line 2: units must be integers"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "train"
    path.write_text(f"fine.wav|1 2|3\n{line}\n")
    with pytest.raises(UserError, match=expected.replace("|", r"\|")):
        list(read_rows(path))


def test_missing_and_empty_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        list(read_rows(tmp_path / "valid"))
    (tmp_path / "valid").touch()
    with pytest.raises(UserError, match="empty"):
        list(read_rows(tmp_path / "valid"))
