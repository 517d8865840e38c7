"""The row format: what is written is read again, and anything else is a one-line error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.rows import Row, read_rows, write_rows

numbers = st.lists(st.integers(0, 10**6), min_size=1, max_size=9).map(
    lambda values: " ".join(map(str, values))
)
# any name without a line break: spaces, tabs, bars and other alphabets included
names = st.text(
    st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=20
).filter(lambda name: not name.startswith("\ufeff"))
here = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@here
@given(st.lists(st.builds(Row, names, numbers, numbers), min_size=1, max_size=5))
def test_round_trip(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "train"
    assert write_rows(path, rows) == len(rows)
    assert list(read_rows(path)) == rows


@here
@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train"
    path.write_bytes(content)
    try:
        rows = list(read_rows(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(row.units.replace(" ", "").isdecimal() for row in rows)


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


def test_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "train"
    path.write_bytes(b"a.wav|1 2|3\r\nb.wav|4|5\r\n")
    assert list(read_rows(path)) == [Row("a.wav", "1 2", "3"), Row("b.wav", "4", "5")]


def test_missing_and_empty_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        list(read_rows(tmp_path / "valid"))
    (tmp_path / "valid").touch()
    with pytest.raises(UserError, match="empty"):
        list(read_rows(tmp_path / "valid"))
