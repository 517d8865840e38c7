"""A scikit-learn k-means out of a pickle, made by joblib or by pickle itself, of any protocol.

Nothing in the file runs: the names that it imports become ``_Kept`` objects, which only remember
their values.
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

from pipeline.errors import UserError

_DECOMPRESS = {  # by a file's first bytes: what joblib.dump(compress=...) writes
    b"\x78": zlib.decompress,
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x5d\x00": lzma.decompress,
}
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


def read_joblib(path: Path) -> np.ndarray:
    """The ``cluster_centers_`` of a KMeans or MiniBatchKMeans, or an array, float32 or float64.

    Raises ``UserError`` for a name that no k-means needs, anything else for a damaged file.
    """
    content = path.read_bytes()
    for start, decompress in _DECOMPRESS.items():
        if content.startswith(start):
            content = decompress(content)
            break
    model = _Unpickler(io.BytesIO(content), path).load()
    if type(model) is _Model:
        model = model.state["cluster_centers_"]
    if not isinstance(model, (_Array, _Wrapper)):
        raise ValueError("no KMeans or MiniBatchKMeans")
    array = model.array
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
    """A numpy array whose bytes are in the pickle: one pickled without joblib. One of objects stays
    as it is, unless it is asked for.
    """

    @property
    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        return _array(data, dtype, shape, fortran)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """numpy's ``_frombuffer``: an array in protocol 5."""
    kept = _Array()
    kept.state = None, shape, dtype, order == "F", data
    return kept


class _Dtype(_Kept):
    """A numpy dtype: a code, and a byte order in its state."""


class _Wrapper(_Kept):
    """joblib's NumpyArrayWrapper: it describes an array, whose bytes follow in the file."""

    unpickler: _Unpickler

    def __setstate__(self, state: Any) -> None:
        if type(state["dtype"]) is _Dtype and state["dtype"].arguments[0] in ("O", "O8"):
            self.unpickler.inner().load()  # names of columns; joblib pickles an array of objects
            return
        stream = self.unpickler.stream
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            stream.seek(stream.read(1)[0], io.SEEK_CUR)
        size = _dtype(state["dtype"]).itemsize * math.prod(state["shape"])
        data = stream.read(size)
        self.array = _array(data, state["dtype"], state["shape"], state["order"] == "F")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Kept,
    ("numpy", "ndarray"): _Kept,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, in protocol 2
    ("copy_reg", "_reconstructor"): lambda kept, *_: kept(),  # any object, in protocols 0 and 1
    ("__builtin__", "object"): _Kept,
} | {
    (f"sklearn.cluster.{module}", name): _Model
    for module in ("k_means_", "_kmeans")  # before and since scikit-learn 0.22
    for name in ("KMeans", "MiniBatchKMeans")
}


class _Unpickler(pickle.Unpickler):
    """Reads a pickle whose names are numpy's, joblib's and k-means', and imports none of them."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        # an io.BytesIO cannot peek, so the unpickler reads no byte of an array before its wrapper
        super().__init__(stream, encoding="latin1")  # Python 2's bytes
        self.stream, self._path = stream, path
        wrapper = type("_Wrapper", (_Wrapper,), {"unpickler": self})
        modules = "joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle"
        self._names = _NAMES | {(module, "NumpyArrayWrapper"): wrapper for module in modules}

    def inner(self) -> _Unpickler:
        """A reader of the pickle that begins here in the stream."""
        return _Unpickler(self.stream, self._path)

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The stand-in for a name. Raises ``UserError`` for a name that no k-means needs."""
        known = self._names.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is not None:
            return known
        if module.startswith("numpy.random"):  # a random state, left by partial_fit
            return _Kept
        if module.startswith("sklearn."):
            raise UserError(
                f"{self._path}: holds scikit-learn's {name[:100]}, expected a KMeans or "
                "MiniBatchKMeans alone; save its centres by numpy.save, if it is fed the features "
                "as they are"
            )
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
    data = data.encode("latin1") if isinstance(data, str) else data  # by Python 2
    array = np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")
    return np.array(array, array.dtype.newbyteorder("="), order="C")
