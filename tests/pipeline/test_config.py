"""Configs and rows: valid input is read, invalid input is an error of one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.config import load_config, load_yaml
from pipeline.errors import UserError
from pipeline.rows import read_rows


@dataclass
class Inner:
    root_path: str = "here"


@dataclass
class Config:
    seed: int = 1
    rate: float = 0.0
    datarc: Inner = field(default_factory=Inner)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 2\nrate: 5e-3\n")
    config = load_config(Config, path, ["seed=3", "datarc.root_path=/data", "seed=4"])
    assert config == Config(4, 0.005, Inner("/data"))


def test_the_types_of_yaml_values(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: 1e-3\nb: 2022-11-22\nc: [1, -2E5, x1e3]\nd: no\ne:\n")
    values = {"a": 0.001, "b": "2022-11-22", "c": [1, -200_000.0, "x1e3"], "d": False, "e": None}
    assert load_yaml(path) == values
    path.write_text("")
    assert load_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "overrides", "reason"),
    [
        ("sede: 2", [], "expected one of seed, rate, datarc"),
        ("seed: two", [], "seed"),
        ("seed: [", [], ""),
        ("seed: 1\nseed: 2", [], "duplicate key"),
        ("seed: 2", ["datarc.rot_path=/data"], "with --set: datarc.rot_path"),
        ("seed: 2", ["seed"], "--set seed: expected KEY=VALUE"),
        ("datarc: 3", [], "datarc"),
        ("!!python/object/apply:os.getcwd []", [], ""),
        ("- 1", [], "found a list"),
        ("[]", [], "found a list"),
        (None, [], "config not found"),
    ],
)
def test_an_invalid_config(
    tmp_path: Path, text: str | None, overrides: list[str], reason: str
) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(Config, path, overrides)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", ["a.wav||3", "a.wav|1 2|", "a.wav|1 2", "a.wav|1 x|3", "a.wav|1  2|3", "a.wav|1| 3", ""]
)
def test_a_bad_row_gives_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train"
    path.write_text(f"fine.wav|1 2|3\n{line}\n")
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert f"{path}, line 2: expected file|units|labels" in str(error.value)
    assert f"found {line!r}" in str(error.value)


def test_missing_and_empty_splits(tmp_path: Path) -> None:
    for reason in ("missing", "empty"):
        with pytest.raises(UserError, match=reason):
            list(read_rows(tmp_path / "valid"))
        (tmp_path / "valid").touch()
