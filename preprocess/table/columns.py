"""What a config says of a table: its file, its columns, the shares of its splits."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from preprocess.config import DataConfig


@dataclass
class TableData(DataConfig):
    table: str = MISSING
    path: str = MISSING
    labels: list[str] = field(default_factory=list)
    text: str | None = None
    split: str = MISSING
    speaker: str = MISSING
    valid: float = MISSING
    test: float = MISSING
