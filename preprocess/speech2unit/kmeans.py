"""k-means over feature frames: learn it, save and load the centres, assign frames to units.

Our files are ``.npz`` with one array, ``centres`` (K, D). An ``.npy`` or torch file with such an
array can be read too. The released files are joblib pickles, which can run any code when loaded.
Here nothing runs: each name that a pickle imports is replaced by a class that only stores data.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError, is_out_of_memory
from pipeline.files import kind_of_file, writing
from pipeline.torch_files import load_torch_values


class KMeans:
    """Maps a frame to the nearest of K centres. ``centres`` is (K, D), float32 or float64.

    The published units come from scikit-learn's predict. This class uses the same arithmetic,
    because rounding decides if two centres are almost equally near to a frame.
    """

    def __init__(self, centres: np.ndarray, device: torch.device) -> None:
        self._twice = np.ascontiguousarray(-2 * centres).T  # (D, K)
        self._squares = np.einsum("kd,kd->k", centres, centres)  # (K,)
        self._on_gpu = device.type not in ("cpu", "mps")  # centres may be float64; mps has none
        # numpy's products round differently with another number of threads. The limit is for the
        # whole process, because several threads of the caller run here at the same time.
        threadpool_limits(1, user_api="blas")
        if self._on_gpu:
            self._twice = torch.from_numpy(self._twice).to(device)
            self._squares = torch.from_numpy(self._squares).to(device)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Map (T, D) features to (T,) units: argmin ||x - c||^2 = argmin (||c||^2 - 2 x.c)."""
        if self._on_gpu:
            scores = torch.addmm(self._squares, features.to(self._twice), self._twice)  # (T, K)
            return scores.argmin(dim=1)
        frames = features.cpu().numpy().astype(self._twice.dtype, copy=False)
        return torch.from_numpy((frames @ self._twice + self._squares).argmin(axis=1))


def fit_kmeans(
    frames: np.ndarray, clusters: int, starts: int, seed: int, reassign: float = 0.01
) -> np.ndarray:
    """Fit ``clusters`` centres to ``frames`` (N, D) with GSLM's settings. Return (clusters, D)
    float32. Raises ``UserError`` for fewer frames than clusters.

    GSLM's ``reassign`` is 0.5: a centre with less than half the frames of the largest cluster jumps
    to a random frame again and again. On 50,000 to 180,000 frames, accuracy fell 4 to 36 points.
    """
    from sklearn.cluster import MiniBatchKMeans  # takes a second, and is needed only here

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
    contents = io.BytesIO()  # on a full disk, a zip file would raise a second error when closed
    np.savez(contents, centres=centres)
    with writing(path, "wb") as handle:
        handle.write(contents.getbuffer())


def load_kmeans(path: Path, dim: int | None = None) -> np.ndarray:
    """Read (K, D) centres as float32, or as float64 if the file has float64: rounding would move
    the borders between units. Raises ``UserError`` if the file is missing, damaged, of another kind
    or would run code, and if D is not ``dim``.
    """
    if not path.is_file():
        remedy = "--action learn_kmeans, or name one with --set fairseqrc.km_path=FILE"
        raise UserError(f"{path}: k-means file not found; learn it with {remedy}")
    with open(path, "rb") as handle:
        start = handle.read(6)
    read, expected = _read_pickle, "a scikit-learn k-means by joblib"
    if path.suffix in (".pt", ".pth"):
        read, expected = _read_torch, "a tensor of centres (K, D)"
    elif start.startswith((b"PK", b"\x93NUMPY")) or path.suffix == ".npz":
        read, expected = _read_numpy, "an .npz with one array 'centres', or an .npy of it"
    try:
        centres = read(path)
        if not isinstance(centres, np.ndarray) or not np.issubdtype(centres.dtype, np.floating):
            raise ValueError(f"centres of {getattr(centres, 'dtype', type(centres).__name__)}")
        is_double = centres.dtype.itemsize == 8
        centres = np.ascontiguousarray(centres, np.float64 if is_double else np.float32)
        if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
            raise ValueError(f"centres of shape {centres.shape}, or not finite")
    except UserError:
        raise
    except Exception as error:  # numpy and pickle may raise any error on other kinds of files
        if is_out_of_memory(error):
            raise
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        kind = kind_of_file(path)
        actual = f"something else: {kind}" if kind else "something else or a damaged file"
        problem = f"expected {expected}, found {actual} ({reason})"
        raise UserError(f"{path}: {problem}; get the file again, or learn the k-means") from None
    if dim not in (None, centres.shape[1]):
        sizes = f"the centres have {centres.shape[1]} numbers, a feature frame has {dim}"
        raise UserError(f"{path}: {sizes}; k-means and features do not belong together")
    return centres


def _centres_of(names: Mapping[str, Any]) -> Any:
    for name in ("centres", "centers", "centroids", "cluster_centers", "cluster_centers_"):
        if name in names:
            return names[name]
    raise ValueError(f"no 'centres', but {', '.join(map(str, list(names)[:5])) or 'nothing'}")


def _read_numpy(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as archive:
        is_torch = any(name.endswith("/data.pkl") for name in archive.files)
        return _read_torch(path) if is_torch else _centres_of(archive)


def _read_torch(path: Path) -> np.ndarray:
    loaded = load_torch_values(path)
    loaded = _centres_of(loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, torch.Tensor):
        raise ValueError(f"a {type(loaded).__name__}")
    is_bfloat16 = loaded.dtype == torch.bfloat16  # numpy does not have this dtype
    return (loaded.float() if is_bfloat16 else loaded).detach().numpy()


def _read_pickle(path: Path) -> np.ndarray:
    content = path.read_bytes()
    for first_bytes, decompress in _DECOMPRESS.items():
        if content.startswith(first_bytes):
            content = decompress(content)
            break
    loaded = _Unpickler(io.BytesIO(content), path).load()
    if type(loaded) is _Model:
        loaded = loaded.state["cluster_centers_"]
    return loaded.array() if isinstance(loaded, _Array) else loaded


class _Stored:
    """An object that only stores its values. numpy's own classes would crash on damaged files."""

    def __new__(cls, *arguments: Any) -> _Stored:
        stored = super().__new__(cls)
        stored.arguments = arguments
        return stored

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Model(_Stored):
    """scikit-learn's KMeans or MiniBatchKMeans."""


class _Dtype(_Stored):
    """A numpy dtype: the first argument is a code, the state has the byte order."""

    def numbers(self) -> np.dtype:
        """Return the dtype. Raises ``ValueError`` unless it is numeric: objects may hold code."""
        if self.arguments[0] not in _NUMBERS:
            raise ValueError("an array of something other than numbers")
        return np.dtype(self.arguments[0]).newbyteorder(">" if self.state[1] == ">" else "<")


class _Array(_Stored):
    """A numpy array. The state is (version, shape, dtype, is in Fortran order, bytes)."""

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data  # str: from Python 2
        return np.frombuffer(data, dtype.numbers()).reshape(shape, order="F" if fortran else "C")


class _Wrapper(_Array):
    """joblib's NumpyArrayWrapper describes an array. The array's bytes follow in the file."""

    unpickler: _Unpickler

    def __setstate__(self, state: Any) -> None:
        stream, dtype, shape = self.unpickler.stream, state["dtype"], state["shape"]
        if dtype.arguments[0] in ("O", "O8"):  # objects, such as column names: a separate pickle
            _Unpickler(stream, self.unpickler.path).load()
            return
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            stream.seek(stream.read(1)[0], io.SEEK_CUR)
        data = stream.read(dtype.numbers().itemsize * math.prod(shape))
        self.state = None, shape, dtype, state["order"] == "F", data


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Return an array, in place of numpy's ``_frombuffer`` (pickle protocol 5)."""
    stored = _Array()
    stored.state = None, shape, dtype, order == "F", data
    return stored


_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_DECOMPRESS = {  # first bytes of a file -> function, for all that joblib.dump(compress=...) writes
    b"\x78": zlib.decompress,
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x5d\x00": lzma.decompress,
}
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Stored,
    ("numpy", "ndarray"): _Stored,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, in protocol 2
    ("copy_reg", "_reconstructor"): lambda kind, *_: kind(),  # any object, in protocols 0 and 1
    ("__builtin__", "object"): _Stored,
} | {
    (f"sklearn.cluster.{module}", name): _Model
    for module in ("k_means_", "_kmeans")  # before and since scikit-learn 0.22
    for name in ("KMeans", "MiniBatchKMeans")
}


class _Unpickler(pickle.Unpickler):
    """Maps the names that arrays and k-means need, of any version, and imports nothing."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        # io.BytesIO has no peek(), so the unpickler does not read ahead into an array's bytes
        super().__init__(stream, encoding="latin1")  # for the bytes of Python 2
        self.stream, self.path = stream, path
        self._wrapper = type("_Wrapper", (_Wrapper,), {"unpickler": self})

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Raises ``UserError`` for a name that no k-means needs."""
        known = _NAMES.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is not None:
            return known
        if module.endswith("joblib.numpy_pickle") and name == "NumpyArrayWrapper":
            return self._wrapper
        if module.startswith("numpy.random"):  # a random state, written by partial_fit
            return _Stored
        if module.startswith("sklearn."):
            remedy = "if the k-means takes unchanged features, save the centres with numpy.save"
            expected = "expected only a KMeans or MiniBatchKMeans"
            raise UserError(f"{self.path}: {expected}, found scikit-learn's {name[:100]}; {remedy}")
        problem = f"it contains code or an unknown class ({f'{module}.{name}'[:100]})"
        remedy = "expected a scikit-learn k-means saved by joblib; get the file again"
        raise UserError(f"{self.path}: refused, {problem}; {remedy}")
