"""The schema of a task's config.yaml; preprocess/table/config.yaml explains the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.unit_models import NAME, UnitModel
from pipeline.workspace import Workspace


@dataclass
class TaskConfig:
    """The unit model, whether repeated units are merged, and the seed of all draws."""

    unit_model: str = "moonshine100"
    merge: bool = True
    seed: int = 100501


@dataclass
class DataConfig:
    """The folder of the corpus, and the downstream whose preprocessor.py reads it."""

    reader: str | None = None  # None: this downstream, or table if it has no preprocessor.py
    root_path: str = MISSING
    expected: dict[str, int] = field(default_factory=dict)  # rows per split, number of classes


@dataclass
class FairseqConfig:
    """How audio becomes units. None: the unit model's value. The name is the published one."""

    feature_type: str | None = None
    ckpt_path: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    km_path: str | None = None
    km_clusters: int | None = None
    km_frames: int = 200_000
    km_starts: int = 20
    km_reassign: float = 0.01
    batch_seconds: float = 60
    dtype: str = "float32"


@dataclass
class Config:
    """The whole config. A task with more data keys subclasses it with another ``datarc`` type."""

    taskrc: TaskConfig = field(default_factory=TaskConfig)
    datarc: DataConfig = field(default_factory=DataConfig)
    fairseqrc: FairseqConfig = field(default_factory=FairseqConfig)


def in_workspace(workspace: Workspace, path: str | None) -> Path | None:
    """Resolve a config's path in the workspace. Raises ``UserError`` for an unknown user's home."""
    try:
        return workspace.root / Path(path).expanduser() if path else None
    except RuntimeError:
        raise UserError(f"{path}: no such user; write the full path") from None


def fill_in(settings: FairseqConfig, unit_model: str, entry: UnitModel) -> None:
    """Fill empty config values from the unit model's ``entry`` in a table. Raises ``UserError`` if
    the feature type is missing in both, or if the name is a path.
    """
    if not NAME.fullmatch(unit_model):
        raise UserError(f"taskrc.unit_model={unit_model[:80]!r}: expected letters, digits, _ . -")
    for key in ("feature_type", "ckpt_path", "layer", "normalize"):
        if getattr(settings, key) in (None, ""):
            value = getattr(entry, key)
            setattr(settings, key, str(value) if isinstance(value, Path) else value)
    if settings.km_clusters is None:
        settings.km_clusters = entry.clusters
    if settings.feature_type is None:
        remedy = "add it to pretrained_models/my_unit_models.yaml, or set fairseqrc.feature_type"
        raise UserError(f"taskrc.unit_model={unit_model}: not in the registry; {remedy}")


def check_numbers(config: Config) -> None:
    """Check that numbers are within their limits. Raises ``UserError`` if one is not."""
    settings = config.fairseqrc
    for key, value, least, most in (
        ("taskrc.seed", config.taskrc.seed, 0, 2**32 - 1),  # what numpy and scikit-learn accept
        ("fairseqrc.km_clusters", settings.km_clusters, 1, 1_000_000),
        ("fairseqrc.km_frames", settings.km_frames, 1, 100_000_000),  # kept in memory
        ("fairseqrc.km_starts", settings.km_starts, 1, 10_000),
        ("fairseqrc.km_reassign", settings.km_reassign, 0, 1),
        ("fairseqrc.batch_seconds", settings.batch_seconds, 0.001, 36_000),
    ):
        if value is not None and not least <= value <= most:  # refuses nan, too
            raise UserError(f"{key}={value}: expected at least {least}, at most {most:,}")


def names_in(key: str, value: object) -> list[str]:
    """Return the names under ``key``: one, or a list. Raises ``UserError`` for anything else."""
    names = value if isinstance(value, list) else [value]
    are_names = all(isinstance(name, str) and name for name in names)
    if not names or not are_names or len(set(names)) < len(names):
        raise UserError(f"{key}={value}: expected a name or a list of different names")
    return names
