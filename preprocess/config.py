"""The schema of a task's config.yaml, where the values and their meaning stand."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TaskConfig:
    """What comes out."""

    unit_model: str = MISSING
    merge: bool = MISSING
    seed: int = MISSING


@dataclass
class DataConfig:
    """Where the corpus lies; a task adds its own keys in a subclass."""

    root_path: str = MISSING


@dataclass
class FairseqConfig:
    """How audio becomes units."""

    feature_type: str = MISSING
    ckpt_path: str | None = MISSING
    layer: int | None = MISSING
    normalize: bool | None = None
    km_path: str | None = MISSING
    km_clusters: int = MISSING
    km_frames: int = MISSING
    km_starts: int = MISSING
    batch_seconds: float = MISSING


@dataclass
class Config:
    """A task's config.yaml. A task with its own data keys subclasses it and gives ``datarc`` its
    own type.
    """

    taskrc: TaskConfig = field(default_factory=TaskConfig)
    datarc: DataConfig = field(default_factory=DataConfig)
    fairseqrc: FairseqConfig = field(default_factory=FairseqConfig)
