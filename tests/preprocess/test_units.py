"""k-means: learning, and frames to units."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from pipeline.errors import UserError
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.kmeans import KMeans, fit_kmeans, load_kmeans, save_kmeans
from preprocess.speech2unit.logmel import LogMel
from tests.preprocess.corpora import tone
from tests.reliability.hostile import refused

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(N, 80) log-mel frames of tones."""
    waveforms = [torch.from_numpy(tone(0.5, hertz)).float() for hertz in range(80, 400, 20)]
    return torch.cat(LogMel(Source())(waveforms)).numpy()


def test_learning_repeats_and_survives_the_disk(frames, tmp_path):
    centres = fit_kmeans(frames, 10, 2, seed=3)
    assert centres.shape == (10, 80)
    assert np.array_equal(centres, fit_kmeans(frames, 10, 2, seed=3))
    assert not np.array_equal(centres, fit_kmeans(frames, 10, 2, seed=4))
    save_kmeans(tmp_path / "km.npz", centres)
    assert np.array_equal(load_kmeans(tmp_path / "km.npz"), centres)


def test_kmeans_files_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="not found; learn it"):
        load_kmeans(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(UserError, match="expected an .npz"):
        load_kmeans(tmp_path / "text.npz")
    np.savez_compressed(tmp_path / "km.npz", centres=np.ones((2, 3)))
    whole = (tmp_path / "km.npz").read_bytes()
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", whole[: len(whole) // 2]):
        (tmp_path / "km.npz").write_bytes(content)
        assert "km.npz" in refused(lambda: load_kmeans(tmp_path / "km.npz"))
    np.savez(tmp_path / "other.npz", means=np.zeros((2, 2)))
    with pytest.raises(UserError, match="'centres'"):
        load_kmeans(tmp_path / "other.npz")
    with pytest.raises(UserError, match="3 feature frames for 5 clusters"):
        fit_kmeans(np.zeros((3, 80), np.float32), 5, 2, seed=0)


def test_learning_gives_every_cluster_its_centre():
    """However unequal: GSLM's reassignment_ratio throws centres of small clusters away."""
    rng = np.random.default_rng(0)
    true = np.arange(30)[:, None] * 100.0
    sizes = np.geomspace(100, 8000, 30).astype(int)
    frames = np.concatenate([at + rng.standard_normal((n, 1)) for at, n in zip(true, sizes)])
    centres = fit_kmeans(frames.astype(np.float32), 30, 20, seed=0)
    empty = [at for at in true if np.abs(centres - at).min() > 10]
    assert len(empty) <= 2, empty


def test_units_do_not_depend_on_the_number_of_threads(frames):
    """numpy's products round differently with another number of threads."""
    KMeans(frames[:10], CPU)
    assert {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"} == {1}
