"""Released k-means files: read as joblib reads them, and nothing in them runs."""

import io
import pickle
import tracemalloc

import joblib
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib.numpy_pickle import NumpyPickler

from pipeline.errors import UserError
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from preprocess.speech2unit.logmel import LogMel
from tests.conftest import stage

COMPRESSIONS = [0, *((name, 3) for name in ("zlib", "gzip", "bz2", "xz", "lzma"))]


@pytest.fixture(scope="module")
def frames(data) -> np.ndarray:
    """(N, 80) log-mel frames of real clips."""
    paths = sorted((data / "audio/speech_commands").glob("*_v0.01/*/*_nohash_*.wav"))[::60]
    clips = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    return torch.cat(LogMel(Source())(clips)).numpy()


def fitted(frames: np.ndarray, clusters: int = 30):
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(clusters, random_state=0, n_init=1).fit(frames)


@pytest.fixture
def tiny():
    """A model whose file is small, made without real audio."""
    return fitted(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=str)
def test_files_equal_joblib_and_units_equal_scikit_learn(frames, tmp_path, dtype, compression):
    frames = frames.astype(dtype)
    joblib.dump(fitted(frames), tmp_path / "km.bin", compress=compression)
    centres = load_kmeans(tmp_path / "km.bin")
    model = joblib.load(tmp_path / "km.bin")
    assert centres.dtype == dtype and np.array_equal(centres, model.cluster_centers_)
    units = KMeans(centres, torch.device("cpu"))(torch.from_numpy(frames))
    assert np.array_equal(units.numpy(), model.predict(frames))


@pytest.mark.parametrize("change", ["fortran", "big-endian", "random state", "plain KMeans"])
def test_other_models(tiny, tmp_path, change):
    if change == "fortran":
        tiny.cluster_centers_ = np.asfortranarray(tiny.cluster_centers_)
    elif change == "big-endian":
        tiny.cluster_centers_ = tiny.cluster_centers_.astype(">f4")
    elif change == "random state":
        tiny.random_state = np.random.RandomState(3)
        tiny.inertia_ = np.float64(tiny.inertia_)
    else:
        from sklearn.cluster import KMeans as FullKMeans

        tiny = FullKMeans(3, n_init=1).fit(np.random.default_rng(0).normal(size=(60, 4)))
    joblib.dump(tiny, tmp_path / "km.bin")
    assert np.array_equal(load_kmeans(tmp_path / "km.bin"), tiny.cluster_centers_)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_and_files_of_old_versions(tiny, tmp_path, protocol):
    class Unseekable(io.BytesIO):
        """joblib writes no alignment to it, as none did before 1.2."""

        def tell(self):
            raise io.UnsupportedOperation

    handle = Unseekable()
    NumpyPickler(handle, protocol=protocol).dump(tiny)
    content = handle.getvalue()
    if protocol < 4:  # names as lines: give them scikit-learn 0.21's, with its own joblib
        content = content.replace(b"cluster._kmeans\n", b"cluster.k_means_\n")
        content = content.replace(b"cjoblib.", b"csklearn.externals.joblib.")
    (tmp_path / "km.bin").write_bytes(content)
    assert np.array_equal(load_kmeans(tmp_path / "km.bin"), tiny.cluster_centers_)
    if protocol in (3, 4):
        (tmp_path / "km.pkl").write_bytes(pickle.dumps(tiny, protocol))
        assert np.array_equal(load_kmeans(tmp_path / "km.pkl"), tiny.cluster_centers_)


def test_labels_are_passed_over(tiny, tmp_path):
    tiny.labels_ = np.zeros(10**7, np.int32)
    joblib.dump(tiny, tmp_path / "km.bin")
    tracemalloc.start()
    load_kmeans(tmp_path / "km.bin")
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [b"", b"text\n", b"\x80\x04", b"\x80\x04N.", b"BZh9nothing", b"x\x9cnothing", b"\xfd7zXZ\0abc"],
)
def test_files_that_are_something_else(tmp_path, content):
    (tmp_path / "km.bin").write_bytes(content)
    with pytest.raises(UserError, match="expected a scikit-learn k-means saved by joblib, found"):
        load_kmeans(tmp_path / "km.bin")


def test_models_without_usable_centres(tiny, tmp_path):
    for centres in (
        None,
        3,
        np.zeros(4, np.float32),
        np.full((2, 2), np.nan),
        np.zeros((2, 2), int),
    ):
        tiny.cluster_centers_ = centres
        joblib.dump(tiny, tmp_path / "km.bin")
        with pytest.raises(UserError, match="k-means saved by joblib, found"):
            load_kmeans(tmp_path / "km.bin")


@settings(deadline=None, max_examples=400)
@given(drawn=st.data(), compression=st.sampled_from([0, *COMPRESSIONS]))
def test_damaged_files_give_centres_or_an_error(tmp_path_factory, drawn, compression):
    folder = tmp_path_factory.getbasetemp()
    good = folder / f"{compression}.bin".replace("/", "-")
    if not good.exists():
        random = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
        joblib.dump(fitted(random, 3), good, compress=compression)
    content = bytearray(good.read_bytes())
    for _ in range(drawn.draw(st.integers(0, 4))):
        place = drawn.draw(st.integers(0, len(content) - 1))
        content[place] = drawn.draw(st.integers(0, 255))
    if drawn.draw(st.booleans()):
        del content[drawn.draw(st.integers(0, len(content))) :]
    (folder / "damaged.bin").write_bytes(content)
    try:
        centres = load_kmeans(folder / "damaged.bin")
    except UserError:
        return
    assert centres.ndim == 2 and np.isfinite(centres).all()


@settings(deadline=None, max_examples=300)
@given(operations=st.lists(st.sampled_from([bytes([code]) for code in range(256)]), max_size=60))
def test_any_operations_give_an_error(tmp_path_factory, operations):
    path = tmp_path_factory.getbasetemp() / "operations.bin"
    path.write_bytes(b"\x80\x04" + b"".join(operations))
    with pytest.raises(UserError):
        load_kmeans(path)


def test_convert_keeps_the_centres(tiny, tmp_path):
    tiny.cluster_centers_ = tiny.cluster_centers_.astype(np.float64) / 3
    joblib.dump(tiny, tmp_path / "km.bin")
    said = stage("preprocess/convert_kmeans.py", tmp_path / "km.bin", tmp_path / "km.npz")
    assert "3 clusters of 4 numbers, float64" in said
    assert np.array_equal(load_kmeans(tmp_path / "km.npz"), tiny.cluster_centers_)
    stage("preprocess/convert_kmeans.py", tmp_path / "km.bin", tmp_path / "km.txt", code=2)
