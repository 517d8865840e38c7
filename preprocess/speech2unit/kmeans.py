"""k-means over feature frames: learn it, save and load the centres, assign frames to units.

Centres live in an ``.npz`` file with one array, ``centres`` (K, D). The released k-means files are
joblib pickles of a scikit-learn model (``joblib_file``); ``load_kmeans`` reads both.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError
from pipeline.files import writing
from preprocess.speech2unit.byte_stream import MOST_KEPT
from preprocess.speech2unit.joblib_file import read_centres


class KMeans:
    """Nearest-centre quantiser of K units. ``centres`` is (K, D), float32 or float64.

    As scikit-learn's predict, and with its arithmetic, since the published units come from there: a
    frame almost as near to two centres goes where rounding takes it. (With centres in float64
    predict wants features in float64 too.)
    """

    def __init__(self, centres: np.ndarray, device: torch.device) -> None:
        self.dim = centres.shape[1]
        self._twice = np.ascontiguousarray(-2 * centres).T  # (D, K)
        self._squares = np.einsum("kd,kd->k", centres, centres)  # (K,)
        self._device = device
        # with another number of threads numpy's products round differently, which a near tie shows;
        # for all of the process, since the caller's threads come here together
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
    with threadpool_limits(1):  # sums in one order: the same centres however many cores there are
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
    return _load_npz(path) if is_zip or path.suffix == ".npz" else read_centres(path)


def _load_npz(path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("centres.npy") as entry:
            size = archive.getinfo("centres.npy").file_size
            if size > MOST_KEPT:
                raise ValueError(f"{size:,} bytes unpacked, expected at most {MOST_KEPT:,}")
            centres = _read_npy(entry, size)
    except Exception as error:  # zipfile and numpy raise anything on bytes that are not theirs
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        raise UserError(f"{path}: expected an .npz with one array 'centres' ({reason})") from None
    if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
        raise UserError(f"{path}: expected finite centres (K, D), found shape {centres.shape}")
    return centres if centres.dtype == np.float64 else centres.astype(np.float32)


def _read_npy(entry: IO[bytes], size: int) -> np.ndarray:
    """The numbers of a .npy file of ``size`` bytes. numpy itself takes the memory for any shape
    that the header declares, before it reads.
    """
    version = np.lib.format.read_magic(entry)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read_header(entry)
    if dtype.kind not in "fiu":
        raise ValueError(f"an array of {dtype}, not of numbers")
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 1 or wanted != size - entry.tell():
        raise ValueError(f"declares shape {shape}, holds {size - entry.tell():,} bytes")
    flat = np.frombuffer(entry.read(wanted), dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
