"""Configs: unknown keys and wrong types are refused, the last override wins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import UserError


@dataclass
class Inner:
    root_path: str = "here"


@dataclass
class Config:
    seed: int = 1
    datarc: Inner = field(default_factory=Inner)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 2\n")
    return path


def test_overrides(path: Path) -> None:
    config = load_config(Config, path, ["seed=3", "datarc.root_path=/data", "seed=4"])
    assert config == Config(4, Inner("/data"))


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("sede: 2", []),
        ("seed: two", []),
        ("seed: [", []),
        ("seed: 2", ["datarc.rot_path=/data"]),
        ("seed: 2", ["seed"]),
        ("datarc: 3", []),
        ("!!python/object/apply:os.getcwd []", []),
        ("- 1", []),
    ],
)
def test_what_is_refused(path: Path, text: str, overrides: list[str]) -> None:
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(Config, path, overrides)
    assert "\n" not in str(error.value)


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_config(Config, tmp_path / "none.yaml")
