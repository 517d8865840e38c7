"""Features by name, and units as text. A new reader is one file and a line in ``FEATURE_TYPES``."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.devices import multiplies_bfloat16
from pipeline.errors import UserError

Item = TypeVar("Item")
SAMPLE_RATE = 16_000  # every reader takes 16 kHz mono in [-1, 1]

# feature_type -> module.class; imported on use, so that one reader's packages do not slow another
FEATURE_TYPES = {
    "cpc": "preprocess.speech2unit.cpc.Cpc",
    "hubert": "preprocess.speech2unit.hubert.Hubert",
    "logmel": "preprocess.speech2unit.spectral.LogMel",
    "mfcc": "preprocess.speech2unit.spectral.Mfcc",
    "moonshine": "preprocess.speech2unit.moonshine.Moonshine",
    "w2v2": "preprocess.speech2unit.hubert.Wav2Vec2",
}


class Source(NamedTuple):
    """What a reader is made from; None where the unit model leaves it out."""

    ckpt_path: Path | None = None
    layer: int | None = None
    normalize: bool | None = None  # layer-norm the waveform; None: as the checkpoint says
    device: torch.device = torch.device("cpu")
    all_layers: bool = False  # every layer's output instead of ``layer``'s
    dtype: str = "float32"  # of matrix products, one of the reader's ``dtypes``


class FeatureReader:
    """What ``FEATURE_TYPES`` names. A batch must give each waveform the features that it would have
    alone: a subclass computes ``features`` of one, or has a ``__call__`` for many.
    """

    dim: int  # D, numbers a frame
    frame_rate: float  # frames a second
    min_samples: int  # at 16 kHz; anything shorter has no frame
    takes: tuple[str, ...] = ()  # of ``ckpt_path``, which it then needs, ``layer``, ``normalize``
    dtypes: tuple[str, ...] = ("float32",)  # what ``Source.dtype`` may be
    note = ""  # what a user should know about it
    # where it may be cut with the same features, if anywhere: every so many samples, and how many
    # of the next a piece sees
    pieces: tuple[int, int]

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for a setting that it does not take, and without its checkpoint."""
        name = type(self).__name__.lower()
        if "ckpt_path" in self.takes and source.ckpt_path is None:
            raise UserError(f"fairseqrc.ckpt_path: {name} needs its checkpoint; name the file")
        for key in ("ckpt_path", "layer", "normalize"):
            if key not in self.takes and getattr(source, key) is not None:
                raise UserError(f"fairseqrc.{key}: {name} takes none; leave it empty")
        self._device, self._all_layers = source.device, source.all_layers

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map B waveforms, (T_i,) float32 at 16 kHz on the CPU, to B features, (frames_i, D)
        float32 on the reader's device; (frames_i, L, D) for ``all_layers``.
        """
        shape = (-1, 1, self.dim) if self._all_layers else (-1, self.dim)
        features = [torch.from_numpy(self.features(waveform.numpy())) for waveform in waveforms]
        return [frames.to(self._device).view(shape) for frames in features]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, D)."""
        raise NotImplementedError


def feature_reader(feature_type: str, source: Source) -> FeatureReader:
    """Build the reader. Raises ``UserError`` for an unknown one, or a dtype that it lacks."""
    if feature_type not in FEATURE_TYPES:
        known = ", ".join(sorted(FEATURE_TYPES))
        raise UserError(f"fairseqrc.feature_type={feature_type}: unknown; there is {known}")
    module, name = FEATURE_TYPES[feature_type].rsplit(".", 1)
    reader = getattr(importlib.import_module(module), name)
    if source.dtype not in reader.dtypes:
        what = f"{feature_type} computes in {' or '.join(reader.dtypes)}"
        raise UserError(f"fairseqrc.dtype={source.dtype}: {what}")
    return reader(source)


def check_dtype(dtype: str, device: torch.device) -> None:
    """Raises ``UserError`` where ``device`` has no products in ``dtype``, or slow ones alone."""
    is_card = device.type == "cuda"
    lacks = {"tf32": not is_card, "bfloat16": not multiplies_bfloat16(device)[0]}
    if lacks.get(dtype):
        where = "this card" if is_card else "this processor"
        raise UserError(f"fairseqrc.dtype={dtype}: {where} has no such products; take float32")


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, a CUDA card's float32 products have TF32's 10 bits, or never have them. cuDNN's
    default would keep 10 bits of 23: other units than a CPU's.
    """
    if not torch.cuda.is_available():
        yield
        return
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        matmul.allow_tf32 = before


def grouped(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Cut ``items`` into groups whose sizes sum to at most ``most``; a larger item is alone."""
    group: list[Item] = []
    total = 0
    for item in items:
        if group and total + size(item) > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group


def written(units: torch.Tensor) -> str:
    """Map (T,) units to ``"71 71 12"``."""
    return " ".join(map(str, units.tolist()))


def merge_runs(units: str) -> str:
    """Collapse runs of one unit: ``"71 71 12 12 71"`` becomes ``"71 12 71"`` (``taskrc.merge``)."""
    return " ".join(unit for unit, _ in groupby(units.split(" ")))
