"""k-means is learned and read from many kinds of files. No code in a file runs."""

from __future__ import annotations

import io
import pickle

import joblib
import numpy as np
import pytest
import sklearn.cluster
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyPickler
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from pipeline.errors import UserError
from preprocess.speech2unit.kmeans import KMeans, fit_kmeans, load_kmeans, save_kmeans
from tests.conftest import stage
from tests.reliability.hostile import Runs, refused

COMPRESSIONS = [0, *((name, 3) for name in ("zlib", "gzip", "bz2", "xz", "lzma"))]


def fitted(dtype: type = np.float32, centres: object = None):
    frames = np.random.default_rng(0).normal(size=(60, 4)).astype(dtype)
    model = sklearn.cluster.MiniBatchKMeans(3, random_state=0, n_init=1).fit(frames)
    if centres is not None:
        model.cluster_centers_ = centres
    return model


def test_learning_repeats_and_survives_the_disk(tmp_path):
    frames = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    centres = fit_kmeans(frames, 10, 2, seed=3)
    assert centres.shape == (10, 8) and np.array_equal(centres, fit_kmeans(frames, 10, 2, seed=3))
    assert not np.array_equal(centres, fit_kmeans(frames, 10, 2, seed=4))
    save_kmeans(tmp_path / "km.npz", centres)
    assert np.array_equal(load_kmeans(tmp_path / "km.npz"), centres)
    with pytest.raises(UserError, match="3 feature frames for 5 clusters"):
        fit_kmeans(frames[:3], 5, 2, seed=0)


def test_learning_gives_every_cluster_its_centre():
    """Clusters may differ in size. GSLM's reassignment_ratio removes the centres of small ones."""
    rng = np.random.default_rng(0)
    means = np.arange(30)[:, None] * 100.0
    sizes = np.geomspace(100, 8000, 30).astype(int)
    frames = np.concatenate([mean + rng.standard_normal((n, 1)) for mean, n in zip(means, sizes)])
    centres = fit_kmeans(frames.astype(np.float32), 30, 20, seed=0)
    missed = [mean for mean in means if np.abs(centres - mean).min() > 10]
    assert len(missed) <= 2, missed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=str)
def test_files_equal_joblib_and_units_equal_scikit_learn(tmp_path, dtype, compression):
    model = fitted(dtype)
    joblib.dump(model, tmp_path / "km.bin", compress=compression)
    centres = load_kmeans(tmp_path / "km.bin")
    assert centres.dtype == dtype and np.array_equal(centres, model.cluster_centers_)
    frames = np.random.default_rng(1).normal(size=(99, 4)).astype(dtype)
    units = KMeans(centres, torch.device("cpu"))(torch.from_numpy(frames))
    assert np.array_equal(units.numpy(), model.predict(frames))
    # numpy's products round differently with another number of threads
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 does: as strings, which are not ASCII for an array."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


class Unseekable(io.BytesIO):
    """A stream to which joblib writes no alignment, like joblib before 1.2."""

    def tell(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "cluster_centers_", np.asfortranarray(m.cluster_centers_)),
        lambda m: setattr(m, "cluster_centers_", m.cluster_centers_.astype(">f4")),
        lambda m: vars(m).update(random_state=np.random.RandomState(3), inertia_=np.float64(1)),
        lambda m: setattr(m, "random_state", np.random.default_rng(3)),
        lambda m: m.partial_fit(np.ones((20, 4), np.float32)),
        lambda m: setattr(m, "feature_names_in_", np.array(["a", "b", "ü", "d"], dtype=object)),
    ],
    ids=["fortran", "big-endian", "RandomState", "Generator", "partial_fit", "DataFrame"],
)
@pytest.mark.parametrize("protocol", range(6))
def test_models_of_other_versions(tmp_path, change, protocol):
    """Read models with other attributes, written by joblib and pickle, under the names of
    scikit-learn 0.21, its bundled joblib, numpy 1 and numpy 2.
    """
    model, old, python_2 = fitted(), Unseekable(), io.BytesIO()
    change(model)
    joblib.dump(model, tmp_path / "joblib.bin", protocol=protocol)
    NumpyPickler(old, protocol=protocol).dump(model)
    contents = [pickle.dumps(model, protocol), old.getvalue()]
    if 2 <= protocol < 4:  # these protocols write names as lines
        for content in list(contents):
            content = content.replace(b"cluster._kmeans\n", b"cluster.k_means_\n")
            content = content.replace(b"cjoblib.", b"csklearn.externals.joblib.")
            names = b"cnumpy.core.", b"cnumpy._core."
            contents += [content.replace(*names), content.replace(*names[::-1])]
    if protocol == 2 and "feature_names_in_" not in vars(model):
        Python2(python_2, 2).dump(model)
        contents.append(python_2.getvalue())
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.bin").write_bytes(content)
    for path in tmp_path.iterdir():
        assert np.array_equal(load_kmeans(path), model.cluster_centers_), path.name


def test_plain_arrays_and_conversion(tmp_path):
    centres = fitted(np.float64).cluster_centers_
    tensor = torch.from_numpy(centres)
    np.save(tmp_path / "a.npy", centres)
    np.save(tmp_path / "big.npy", centres.astype(">f8"))
    (tmp_path / "no_suffix").write_bytes((tmp_path / "a.npy").read_bytes())
    np.savez(tmp_path / "a.npz", centroids=centres)
    joblib.dump(centres, tmp_path / "array.bin")
    torch.save(tensor, tmp_path / "a.pt")
    torch.save({"cluster_centers": tensor, "k": 3}, tmp_path / "zip")
    torch.save({"centroids": tensor}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    printed = stage("preprocess/convert_kmeans.py", tmp_path / "a.pt", tmp_path / "converted.npz")
    assert "3 clusters of 4 numbers, float64" in printed
    for path in tmp_path.iterdir():
        loaded = load_kmeans(path)
        assert loaded.dtype == np.float64 and np.array_equal(loaded, centres), path.name
    torch.save({"centres": tensor.bfloat16()}, tmp_path / "half.pt")
    assert load_kmeans(tmp_path / "half.pt").dtype == np.float32


PIPELINE = make_pipeline(StandardScaler(), sklearn.cluster.KMeans())
OTHER = "expected a scikit-learn k-means by joblib, found something else"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("a.npy", np.zeros(3), "centres of shape (3,)"),
        ("a.npy", np.zeros((2, 3), int), "centres of int64"),
        ("a.npy", np.array([["a"]], dtype=object), "Object arrays cannot be loaded"),
        ("a.pt", {"model": torch.zeros(2)}, "no 'centres', but model"),
        ("a.pt", [1], "a list"),
        ("a.pt", torch.zeros(2, 2, dtype=torch.int), "centres of"),
        ("a.bin", PIPELINE, "found scikit-learn's Pipeline"),
        *[("a.bin", fitted(centres=c), OTHER) for c in (3, np.zeros(4), np.full((2, 2), np.nan))],
        ("a.bin", fitted(centres=np.zeros((2, 2), int)), "centres of int64"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1", "else: a Git LFS pointer"),
        ("a.bin", b"<!DOCTYPE html><html>", "found something else: a web page"),
        *[("a.bin", start, OTHER) for start in (b"", b"text\n", b"\x80\x04", b"\x80\x04N.")],
        *[("a.bin", start, OTHER) for start in (b"BZh9nothing", b"x\x9cnothing", b"\xfd7zXZ\0abc")],
        *[("a.npz", start, "expected an .npz") for start in (b"", b"PK\x03\x04", b"no zip")],
    ],
    ids=str,
)
def test_other_files_are_refused_with_the_reason(tmp_path, name, value, reason):
    path = tmp_path / name
    assert "k-means file not found; learn it" in refused(lambda: load_kmeans(path))
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        save = {".npy": np.save, ".pt": lambda path, value: torch.save(value, path)}
        save.get(path.suffix, lambda path, value: joblib.dump(value, path))(path, value)
    message = refused(lambda: load_kmeans(path))
    assert reason in message and "code" not in message


def wrapper(shape: object, dtype: object) -> NumpyArrayWrapper:
    return NumpyArrayWrapper(np.ndarray, shape, "C", dtype)


def model_with(name: str, value: object) -> object:
    model = fitted()
    setattr(model, name, value)
    return model


HOSTILE = {  # where a file contains code to run
    "top": lambda run: run,
    "state": lambda run: type("Model", (), {"__reduce__": lambda self: (dict, (), {"a": run})})(),
    "attribute": lambda run: model_with("n_init", [{"deep": (run,)}]),
    "object array": lambda run: model_with("labels_", np.array([run, None], dtype=object)),
    "objects": lambda run: model_with("cluster_centers_", np.array([run, None], dtype=object)),
    "dtype": lambda run: model_with("cluster_centers_", wrapper((2, 2), run)),
    "shape": lambda run: model_with("cluster_centers_", wrapper(run, np.dtype("f4"))),
}


@pytest.mark.parametrize("compression", [0, ("zlib", 3)], ids=str)
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_nothing_in_a_file_runs(tmp_path, hostile, compression):
    sentinel = tmp_path / "it-ran"
    joblib.dump(hostile(Runs(sentinel)), tmp_path / "km.bin", compress=compression)
    with pytest.raises(UserError, match="refused, it contains code|something other than numbers"):
        load_kmeans(tmp_path / "km.bin")
    assert not sentinel.exists()
    try:  # joblib runs the code, so the file is really hostile
        joblib.load(tmp_path / "km.bin")
    except Exception as error:
        assert not isinstance(error, OSError), error
    assert sentinel.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch IT'\ntR.",  # REDUCE
        b"(S'touch IT'\nios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\nS'touch IT'\no.",  # OBJ
        b"\x80\x02cbuiltins\neval\nS'1'\n\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x08touch IT\x85R.",  # STACK_GLOBAL
        b"\x80\x02cnumpy\nload\nS'IT'\n\x85R.",
        b"\x80\x02cnumpy\ncore.multiarray.scalar\n.",
        b"\x80\x04\x8c\x0cnumpy.random\x8c\x09os.system\x93\x8c\x08touch IT\x85R.",
        b"\x80\x02cnumpy\nndarray\n)R}U\x01aU\x01bsb.",  # BUILD
        b"\x80\x02cnumpy\ndtype\n}U\x01aU\x01bsb.",  # BUILD of a class
        b"PIT\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_pickles_that_import_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "km.bin").write_bytes(content)
    with pytest.raises(UserError, match="refused, it contains code|expected a scikit-learn k-m"):
        load_kmeans(tmp_path / "km.bin")
    assert not (tmp_path / "IT").exists()


@settings(deadline=None, max_examples=30)
@given(drawn=st.data(), compression=st.sampled_from(COMPRESSIONS))
def test_damaged_files_give_centres_or_an_error(tmp_path_factory, drawn, compression):
    handle = io.BytesIO()
    joblib.dump(fitted(), handle, compress=compression)
    content = bytearray(handle.getvalue())
    for _ in range(drawn.draw(st.integers(0, 4))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    if drawn.draw(st.booleans()):
        del content[drawn.draw(st.integers(0, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(content)
    try:
        centres = load_kmeans(path)
    except UserError:
        return
    assert centres.ndim == 2 and np.isfinite(centres).all()
