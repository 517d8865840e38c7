"""Feature readers by name, and units as text. A new reader needs a file and an entry in
``FEATURE_TYPES``.
"""

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

# feature_type -> module.class, imported on first use: no reader loads another reader's packages
FEATURE_TYPES = {
    "cpc": "preprocess.speech2unit.cpc.Cpc",
    "hubert": "preprocess.speech2unit.hubert.Hubert",
    "logmel": "preprocess.speech2unit.spectral.LogMel",
    "mfcc": "preprocess.speech2unit.spectral.Mfcc",
    "moonshine": "preprocess.speech2unit.moonshine.Moonshine",
    "w2v2": "preprocess.speech2unit.hubert.Wav2Vec2",
}


class Source(NamedTuple):
    """The settings of a reader; None if the unit model does not set a value."""

    ckpt_path: Path | None = None
    layer: int | None = None
    normalize: bool | None = None  # layer-norm the waveform; None: as the checkpoint says
    device: torch.device = torch.device("cpu")
    all_layers: bool = False  # the output of every layer instead of ``layer`` alone
    dtype: str = "float32"  # of matrix products, one of the reader's ``dtypes``


class FeatureReader:
    """The base class of all readers. A batch must give each waveform the same features as alone.
    A subclass overrides ``features`` for one waveform, or ``__call__`` for a batch.
    """

    dim: int  # D, numbers per frame
    frame_rate: float  # frames per second
    min_samples: int  # at 16 kHz; a shorter waveform has no frame
    takes: tuple[str, ...] = ()  # layer, normalize; ckpt_path: the reader needs a checkpoint
    dtypes: tuple[str, ...] = ("float32",)  # valid values of ``Source.dtype``
    note = ""  # the end of the printed line of features and device; begins with "; "
    # Set only if a long waveform can be cut without changing features: (samples per piece, samples
    # of the next piece that a piece also reads)
    pieces: tuple[int, int]

    def __init__(self, source: Source) -> None:
        """Raises ``UserError`` for a setting that is not in ``takes``, or a missing checkpoint."""
        name = type(self).__name__.lower()
        if "ckpt_path" in self.takes and source.ckpt_path is None:
            raise UserError(f"fairseqrc.ckpt_path: {name} needs its checkpoint; name the file")
        for key in ("ckpt_path", "layer", "normalize"):
            if key not in self.takes and getattr(source, key) is not None:
                raise UserError(f"fairseqrc.{key}: {name} does not use it; leave it empty")
        self._device, self._all_layers = source.device, source.all_layers

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map B waveforms (T_i,), float32 at 16 kHz on the CPU, to B features (frames_i, D),
        float32 on the reader's device. With ``all_layers``, features are (frames_i, L, D).
        """
        shape = (-1, 1, self.dim) if self._all_layers else (-1, self.dim)
        features = [torch.from_numpy(self.features(waveform.numpy())) for waveform in waveforms]
        return [frames.to(self._device).view(shape) for frames in features]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Map (T,) to (frames, D), float32 and contiguous."""
        raise NotImplementedError


def feature_reader(feature_type: str, source: Source) -> FeatureReader:
    """Build the reader. Raises ``UserError`` for an unknown reader or an unsupported dtype."""
    if feature_type not in FEATURE_TYPES:
        known = ", ".join(sorted(FEATURE_TYPES))
        raise UserError(f"fairseqrc.feature_type={feature_type}: unknown; expected one of {known}")
    module, name = FEATURE_TYPES[feature_type].rsplit(".", 1)
    reader = getattr(importlib.import_module(module), name)
    if source.dtype not in reader.dtypes:
        valid = f"{feature_type} computes in {' or '.join(reader.dtypes)}"
        raise UserError(f"fairseqrc.dtype={source.dtype}: {valid}")
    return reader(source)


def check_dtype(dtype: str, device: torch.device) -> None:
    """Check that ``device`` multiplies fast in ``dtype``. Raises ``UserError``."""
    is_gpu = device.type == "cuda"
    unsupported = {"tf32": not is_gpu, "bfloat16": not multiplies_bfloat16(device)[0]}
    if unsupported.get(dtype):
        machine = "this GPU" if is_gpu else "this processor"
        raise UserError(f"fairseqrc.dtype={dtype}: {machine} has no {dtype} products; use float32")


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 for a CUDA GPU's float32 products. TF32 keeps 10 of 23 bits, so its
    units differ from a CPU's. cuDNN allows it by default.
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
    """Yield groups of ``items`` whose sizes sum to at most ``most``. A larger item is alone."""
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


def units_as_text(units: torch.Tensor) -> str:
    """Map (T,) units to ``"71 71 12"``."""
    return " ".join(map(str, units.tolist()))


def merge_runs(units: str) -> str:
    """Merge repeated units: ``"71 71 12 12 71"`` becomes ``"71 12 71"`` (``taskrc.merge``)."""
    return " ".join(unit for unit, _ in groupby(units.split(" ")))
