"""k-means over feature frames: learn it, save and load the centres, assign frames to units.

Our files are ``.npz`` with one array, ``centres`` (K, D); an ``.npy`` or a torch file of such an
array is read too. The released files are pickles by joblib, programs that could run anything.
Reading one here runs nothing: what it imports becomes objects that only remember their values.
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
    """Nearest-centre quantiser of K units. ``centres`` is (K, D), float32 or float64.

    The published units come from scikit-learn's predict, so this is its arithmetic: rounding
    decides a frame that is almost as near to two centres.
    """

    def __init__(self, centres: np.ndarray, device: torch.device) -> None:
        self._twice = np.ascontiguousarray(-2 * centres).T  # (D, K)
        self._squares = np.einsum("kd,kd->k", centres, centres)  # (K,)
        self._on_gpu = device.type not in ("cpu", "mps")  # float64 centres need float64
        # Another number of threads rounds numpy's products differently. The limit holds for the
        # whole process, since the caller's threads come here together.
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
    """Fit ``clusters`` centres to ``frames`` (N, D) with GSLM's settings; returns (clusters, D)
    float32. Raises ``UserError`` for fewer frames than clusters.

    GSLM's ``reassign`` is 0.5: centres with less than half the frames of the largest jump to a
    random frame, again and again. On 150,000 frames that cost 4 to 36 points of accuracy.
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


def load_kmeans(path: Path, dim: int | None = None) -> np.ndarray:
    """Read (K, D) centres, float32, or float64 where the file has that: rounding them would move
    the borders between units. Raises ``UserError`` for a missing, broken or foreign file, one that
    would run code, and where D is not ``dim``.
    """
    if not path.is_file():
        remedy = "--action learn_kmeans, or name one with --set fairseqrc.km_path=FILE"
        raise UserError(f"{path}: k-means file not found; learn it with {remedy}")
    with open(path, "rb") as handle:
        start = handle.read(6)
    read, what = _read_pickle, "a scikit-learn k-means by joblib"
    if path.suffix in (".pt", ".pth"):
        read, what = _read_torch, "a tensor of centres (K, D)"
    elif start.startswith((b"PK", b"\x93NUMPY")) or path.suffix == ".npz":
        read, what = _read_numpy, "an .npz with one array 'centres', or an .npy of it"
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
    except Exception as error:  # numpy and pickle raise anything on bytes that are not theirs
        if is_out_of_memory(error):
            raise
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        kind = kind_of_file(path)
        found = f"something else: {kind}" if kind else "something else or a damaged file"
        remedy = "get it again from its source, or learn it again"
        raise UserError(f"{path}: expected {what}, found {found} ({reason}); {remedy}") from None
    if dim not in (None, centres.shape[1]):
        sizes = f"its centres have {centres.shape[1]} numbers, a feature frame has {dim}"
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
    is_bfloat16 = loaded.dtype == torch.bfloat16  # numpy has none
    return (loaded.float() if is_bfloat16 else loaded).detach().numpy()


def _read_pickle(path: Path) -> np.ndarray:
    content = path.read_bytes()
    for start, decompress in _DECOMPRESS.items():
        if content.startswith(start):
            content = decompress(content)
            break
    read = _Unpickler(io.BytesIO(content), path).load()
    if type(read) is _Model:
        read = read.state["cluster_centers_"]
    return read.array() if isinstance(read, _Array) else read


class _Kept:
    """An object that only keeps what it is made from: numpy's own would crash on damaged files."""

    def __new__(cls, *arguments: Any) -> _Kept:
        kept = super().__new__(cls)
        kept.arguments = arguments
        return kept

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Model(_Kept):
    """scikit-learn's KMeans or MiniBatchKMeans."""


class _Dtype(_Kept):
    """A numpy dtype: a code, and a byte order in its state."""

    def numbers(self) -> np.dtype:
        """Raises ``ValueError`` for anything but numbers: objects may hold code."""
        if self.arguments[0] not in _NUMBERS:
            raise ValueError("an array of something other than numbers")
        return np.dtype(self.arguments[0]).newbyteorder(">" if self.state[1] == ">" else "<")


class _Array(_Kept):
    """A numpy array. State: version, shape, dtype, whether in Fortran's order, bytes."""

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data  # by Python 2
        return np.frombuffer(data, dtype.numbers()).reshape(shape, order="F" if fortran else "C")


class _Wrapper(_Array):
    """joblib's NumpyArrayWrapper: it describes an array, whose bytes follow in the file."""

    unpickler: _Unpickler

    def __setstate__(self, state: Any) -> None:
        stream, dtype, shape = self.unpickler.stream, state["dtype"], state["shape"]
        if dtype.arguments[0] in ("O", "O8"):  # such as names of columns: a pickle of its own
            _Unpickler(stream, self.unpickler.path).load()
            return
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            stream.seek(stream.read(1)[0], io.SEEK_CUR)
        data = stream.read(dtype.numbers().itemsize * math.prod(shape))
        self.state = None, shape, dtype, state["order"] == "F", data


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """numpy's ``_frombuffer``: an array in protocol 5."""
    kept = _Array()
    kept.state = None, shape, dtype, order == "F", data
    return kept


_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_DECOMPRESS = {  # by a file's first bytes: what joblib.dump(compress=...) writes
    b"\x78": zlib.decompress,
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"\x5d\x00": lzma.decompress,
}
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
    """Finds what arrays and k-means need, by any version's name, and imports nothing."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        # an io.BytesIO cannot peek, so the unpickler reads no byte of an array before its wrapper
        super().__init__(stream, encoding="latin1")  # Python 2's bytes
        self.stream, self.path = stream, path
        self._wrapper = type("_Wrapper", (_Wrapper,), {"unpickler": self})

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Raises ``UserError`` for a name that no k-means needs."""
        known = _NAMES.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is not None:
            return known
        if module.endswith("joblib.numpy_pickle") and name == "NumpyArrayWrapper":
            return self._wrapper
        if module.startswith("numpy.random"):  # a random state, left by partial_fit
            return _Kept
        if module.startswith("sklearn."):
            remedy = "save its centres by numpy.save, if it is fed the features as they are"
            what = f"{name[:100]}, expected a KMeans or MiniBatchKMeans alone"
            raise UserError(f"{self.path}: holds scikit-learn's {what}; {remedy}")
        what = f"it holds code or an unknown class ({f'{module}.{name}'[:100]})"
        remedy = "expected a scikit-learn k-means saved by joblib; get it again from its source"
        raise UserError(f"{self.path}: refused, {what}; {remedy}")
