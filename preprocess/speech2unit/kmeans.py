"""k-means over feature frames: learn it, save and load the centres, assign frames to units.

Our files are ``.npz`` with one array, ``centres`` (K, D). The released files are joblib pickles of
a scikit-learn model. A pickle is a program that can run anything. Reading one here runs none of it:
the names that it imports become ``_Kept`` objects, which only remember their values.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError
from pipeline.files import writing

_DECOMPRESS = {  # by a file's first bytes: what joblib.dump(compress=...) writes
    b"\x78": zlib.decompress,
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x5d\x00": lzma.decompress,
}
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class KMeans:
    """Nearest-centre quantiser of K units. ``centres`` is (K, D), float32 or float64.

    The published units come from scikit-learn's predict, so this is its arithmetic: rounding
    decides a frame that is almost as near to two centres.
    """

    def __init__(self, centres: np.ndarray, device: torch.device) -> None:
        self.dim = centres.shape[1]
        self._twice = np.ascontiguousarray(-2 * centres).T  # (D, K)
        self._squares = np.einsum("kd,kd->k", centres, centres)  # (K,)
        self._device = device
        # Another number of threads rounds numpy's products differently. The limit holds for the
        # whole process, since the caller's threads come here together.
        threadpool_limits(1, user_api="blas")
        if device.type != "cpu":
            self._twice = torch.from_numpy(self._twice).to(device)
            self._squares = torch.from_numpy(self._squares).to(device)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Map (T, D) features to (T,) units: argmin ||x - c||^2 = argmin (||c||^2 - 2 x.c)."""
        if self._device.type != "cpu":
            scores = torch.addmm(self._squares, features.to(self._twice), self._twice)  # (T, K)
            return scores.argmin(dim=1)
        frames = features.numpy().astype(self._twice.dtype, copy=False)
        return torch.from_numpy((frames @ self._twice + self._squares).argmin(axis=1))


def fit_kmeans(
    frames: np.ndarray, clusters: int, starts: int, seed: int, reassign: float = 0.01
) -> np.ndarray:
    """Fit ``clusters`` centres to ``frames`` (N, D) with GSLM's settings; returns (clusters, D)
    float32.

    GSLM's ``reassign`` is 0.5: centres with less than half the frames of the largest jump to a
    random frame, again and again. On 150,000 frames that cost 4 to 36 points of accuracy.

    Raises ``UserError`` for fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans  # a second to import, needed here alone

    if len(frames) < clusters:
        raise UserError(f"{len(frames)} feature frames for {clusters} clusters; give more audio")
    model = MiniBatchKMeans(  # GSLM, speech2unit/clustering/cluster_kmeans.py
        n_clusters=clusters,
        init="k-means++",
        max_iter=150,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        n_init=starts,
        reassignment_ratio=reassign,
        random_state=seed,
    )
    with threadpool_limits(1):  # sums in one order: the same centres on any number of cores
        return model.fit(frames).cluster_centers_.astype(np.float32)


def save_kmeans(path: Path, centres: np.ndarray) -> None:
    """Write ``centres`` (K, D) to ``path``, atomically."""
    contents = io.BytesIO()  # a zip file that is cut short by a full disk complains at its end
    np.savez(contents, centres=centres)
    with writing(path, "wb") as handle:
        handle.write(contents.getbuffer())


def load_kmeans(path: Path) -> np.ndarray:
    """Read (K, D) centres, float32, or float64 where the file has that: rounding them would move
    the borders between units.

    Raises ``UserError`` for a missing, broken or foreign file, or one that would run code.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: k-means file not found; learn it with --action learn_kmeans "
            "or name one with --set fairseqrc.km_path=FILE"
        )
    with open(path, "rb") as handle:
        is_zip = handle.read(2) == b"PK"
    is_npz = is_zip or path.suffix == ".npz"
    what = "an .npz with one array 'centres'" if is_npz else "a scikit-learn k-means by joblib"
    try:
        centres = _read_npz(path) if is_npz else _read_joblib(path)
        if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
            raise ValueError(f"centres of shape {centres.shape}, or not finite")
    except UserError:
        raise
    except Exception as error:  # numpy and pickle raise anything on bytes that are not theirs
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        raise UserError(
            f"{path}: expected {what}, found something else or a damaged file ({reason}); get it "
            "again from its source, or learn it again"
        ) from None
    return centres


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        centres = archive["centres"]
    return centres if centres.dtype == np.float64 else centres.astype(np.float32)


def _read_joblib(path: Path) -> np.ndarray:
    """The ``cluster_centers_`` of a KMeans or MiniBatchKMeans, float32 or float64."""
    content = path.read_bytes()
    for start, decompress in _DECOMPRESS.items():
        if content.startswith(start):
            content = decompress(content)
            break
    model = _Unpickler(io.BytesIO(content), path).load()
    if type(model) is not _Model:
        raise ValueError("no KMeans or MiniBatchKMeans")
    array = model.state["cluster_centers_"].array
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"centres of {array.dtype}")
    return array


class _Kept:
    """An object of the file: the arguments and the state that it would be made from."""

    def __new__(cls, *arguments: Any) -> _Kept:
        kept = super().__new__(cls)
        kept.arguments = arguments
        return kept

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Model(_Kept):
    """scikit-learn's KMeans or MiniBatchKMeans."""


class _Array(_Kept):
    """A numpy array whose bytes are in the pickle: one pickled without joblib."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, fortran)


class _Dtype(_Kept):
    """A numpy dtype: a code, and a byte order in its state."""


class _Wrapper(_Kept):
    """joblib's NumpyArrayWrapper: it describes an array, whose bytes follow in the file."""

    stream: io.BytesIO

    def __setstate__(self, state: Any) -> None:
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            self.stream.seek(self.stream.read(1)[0], io.SEEK_CUR)
        size = _dtype(state["dtype"]).itemsize * math.prod(state["shape"])
        data = self.stream.read(size)
        self.array = _array(data, state["dtype"], state["shape"], state["order"] == "F")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Kept,
    ("numpy", "ndarray"): _Kept,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, in protocol 2
} | {
    (f"sklearn.cluster.{module}", name): _Model
    for module in ("k_means_", "_kmeans")  # before and since scikit-learn 0.22
    for name in ("KMeans", "MiniBatchKMeans")
}


class _Unpickler(pickle.Unpickler):
    """Reads a pickle whose names are numpy's, joblib's and k-means', and imports none of them."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        # an io.BytesIO cannot peek, so the unpickler reads no byte of an array before its wrapper
        super().__init__(stream)
        self._path = path
        wrapper = type("_Wrapper", (_Wrapper,), {"stream": stream})
        modules = "joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle"
        self._names = _NAMES | {(module, "NumpyArrayWrapper"): wrapper for module in modules}

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The stand-in for a name. Raises ``UserError`` for a name that no k-means needs."""
        known = self._names.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is not None:
            return known
        if module.startswith("numpy.random"):  # a random state, left by partial_fit
            return _Kept
        raise UserError(
            f"{self._path}: refused, it holds code or an unknown class "
            f"({f'{module}.{name}'[:100]}); expected a scikit-learn k-means saved by joblib; get "
            "the k-means again from its source"
        )


def _dtype(kept: _Dtype) -> np.dtype:
    """A numpy type of numbers. Raises ``ValueError`` for any other: objects may hold code."""
    code = kept.arguments[0]
    if type(kept) is not _Dtype or code not in _NUMBERS:
        raise ValueError("an array of something other than numbers")
    return np.dtype(code).newbyteorder(">" if kept.state[1] == ">" else "<")


def _array(data: bytes, dtype: _Dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    array = np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")
    return np.array(array, array.dtype.newbyteorder("="), order="C")
