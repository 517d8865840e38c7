"""k-means over feature frames: learn it, save and load the centres, assign frames to units.

Our files are ``.npz`` with one array, ``centres`` (K, D); an ``.npy`` or a torch file of such an
array is read too. The released files are joblib pickles of a scikit-learn model. A pickle is a
program that can run anything. Reading one here runs none of it: the names that it imports become
objects that only remember their values (``kmeans_pickle``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError, is_out_of_memory
from pipeline.files import kind_of_file, writing
from pipeline.torch_files import load_torch_values
from preprocess.speech2unit.kmeans_pickle import read_joblib


class KMeans:
    """Nearest-centre quantiser of K units. ``centres`` is (K, D), float32 or float64.

    The published units come from scikit-learn's predict, so this is its arithmetic: rounding
    decides a frame that is almost as near to two centres.
    """

    def __init__(self, centres: np.ndarray, device: torch.device) -> None:
        self.dim = centres.shape[1]
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
        start = handle.read(6)
    read, what = read_joblib, "a scikit-learn k-means by joblib"
    if path.suffix in (".pt", ".pth"):
        read, what = _read_torch, "a tensor of centres (K, D)"
    elif start.startswith((b"PK", b"\x93NUMPY")) or path.suffix == ".npz":
        read, what = _read_numpy, "an .npz with one array 'centres', or an .npy of it"
    try:
        centres = read(path)
        if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
            raise ValueError(f"centres of shape {centres.shape}, or not finite")
    except UserError:
        raise
    except Exception as error:  # numpy and pickle raise anything on bytes that are not theirs
        if is_out_of_memory(error):
            raise
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        kind = kind_of_file(path)
        found = f": {kind}" if kind else " or a damaged file"
        raise UserError(
            f"{path}: expected {what}, found something else{found} ({reason}); get it again from "
            "its source, or learn it again"
        ) from None
    return centres


def _centres_of(names: Mapping[str, Any]) -> Any:
    """The value under a name that means centres. Raises ``ValueError`` where there is none."""
    for name in ("centres", "centers", "centroids", "cluster_centers", "cluster_centers_"):
        if name in names:
            return names[name]
    raise ValueError(f"no 'centres', but {', '.join(map(str, list(names)[:5])) or 'nothing'}")


def _read_numpy(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        with loaded as archive:
            if any(name.endswith("/data.pkl") for name in archive.files):
                return _read_torch(path)
            loaded = _centres_of(archive)
    return _floats(loaded)


def _read_torch(path: Path) -> np.ndarray:
    loaded = load_torch_values(path)
    loaded = _centres_of(loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, torch.Tensor):
        raise ValueError(f"a {type(loaded).__name__}")
    is_bfloat16 = loaded.dtype == torch.bfloat16  # numpy has none
    return _floats((loaded.float() if is_bfloat16 else loaded).detach().numpy())


def _floats(array: np.ndarray) -> np.ndarray:
    """float32, or float64 as it is. Raises ``ValueError`` for what cannot be centres."""
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"centres of {array.dtype}")
    return array if array.dtype == np.float64 else array.astype(np.float32)
