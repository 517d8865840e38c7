"""The row format: what is written is read again, and anything else is a one-line error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rows import read_rows


@pytest.mark.parametrize(
    "line", ["a.wav||3", "a.wav|1 2|", "a.wav|1 2", "a.wav|1 x|3", "a.wav|1  2|3", "a.wav|1| 3", ""]
)
def test_a_bad_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train"
    path.write_text(f"fine.wav|1 2|3\n{line}\n")
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert f"{path}, line 2: expected file|units|labels" in str(error.value)
    assert f"found {line!r}" in str(error.value)


def test_missing_and_empty_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        list(read_rows(tmp_path / "valid"))
    (tmp_path / "valid").touch()
    with pytest.raises(UserError, match="empty"):
        list(read_rows(tmp_path / "valid"))
