"""K-means files that would run code, take all memory, or lie: refused, and nothing in them runs."""

import io
import os
import tracemalloc
import zlib
from pathlib import Path

import joblib
import numpy as np
import pytest
from joblib.numpy_pickle import NumpyArrayWrapper

from pipeline.errors import UserError
from preprocess.speech2unit import byte_stream
from preprocess.speech2unit.kmeans import load_kmeans
from tests.preprocess.test_kmeans_files import fitted


@pytest.fixture
def tiny():
    """A model whose file is small, made without real audio."""
    return fitted(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), 3)


class Runs:
    """Loading its pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile(place: str, model, run: Runs):
    """The model, with code to run at ``place``."""
    objects = np.array([run, None], dtype=object)
    if place == "top":
        return run
    if place == "attribute":
        model.n_init = [{"deep": (run,)}]
    elif place == "object array":
        model.labels_ = objects
    elif place == "centres of objects":
        model.cluster_centers_ = objects
    elif place == "dtype of a wrapper":
        model.cluster_centers_ = NumpyArrayWrapper(np.ndarray, (2, 2), "C", run)
    elif place == "shape of a wrapper":
        model.cluster_centers_ = NumpyArrayWrapper(np.ndarray, run, "C", np.dtype("f4"))
    elif place == "subclass of a wrapper":
        model.cluster_centers_ = NumpyArrayWrapper(run, (2, 2), "C", np.dtype("f4"))
    elif place == "state":
        model = type("Model", (), {"__reduce__": lambda self: (dict, (), {"a": run})})()
    return model


@pytest.mark.parametrize("compression", [0, ("zlib", 3)], ids=str)
@pytest.mark.parametrize(
    "place",
    [
        "top",
        "attribute",
        "object array",
        "centres of objects",
        "dtype of a wrapper",
        "shape of a wrapper",
        "subclass of a wrapper",
        "state",
    ],
)
def test_nothing_in_a_file_runs(tiny, tmp_path, place, compression):
    sentinel = tmp_path / "it-ran"
    joblib.dump(hostile(place, tiny, Runs(sentinel)), tmp_path / "km.bin", compress=compression)
    with pytest.raises(UserError, match="would run code|something other than numbers"):
        load_kmeans(tmp_path / "km.bin")
    assert not sentinel.exists()
    try:  # joblib does run it: the file is as hostile as it should be
        joblib.load(tmp_path / "km.bin")
    except Exception as error:
        assert not isinstance(error, OSError), error
    assert sentinel.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch IT'\ntR.",
        b"(S'touch IT'\nios\nsystem\n.",
        b"\x80\x02(cos\nsystem\nS'touch IT'\no.",
        b"\x80\x02cbuiltins\neval\nS'1'\n\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x08touch IT\x85R.",
        b"\x80\x02cnumpy\nload\nS'IT'\n\x85R.",
        b"\x80\x02cnumpy\ncore.multiarray.scalar\n.",
        b"PIT\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_pickles_that_import_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "km.bin").write_bytes(content)
    with pytest.raises(UserError, match="would run code"):
        load_kmeans(tmp_path / "km.bin")
    assert not (tmp_path / "IT").exists()


@pytest.mark.parametrize("compression", [0, ("zlib", 3)], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((10**15, 4), "f4"), ((10**15,), "i4"), ((10**30, 0), "f4"), ((9, 9), "f8")],
)
def test_a_shape_that_lies(tiny, tmp_path, shape, dtype, compression):
    tiny.cluster_centers_ = NumpyArrayWrapper(np.ndarray, shape, "C", np.dtype(dtype))
    joblib.dump(tiny, tmp_path / "km.bin", compress=compression)
    assert_refused_in_little_memory(tmp_path / "km.bin")


def test_bombs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(byte_stream, "MOST_KEPT", 10 << 20)
    tiny.cluster_centers_ = np.zeros((2000, 2000))
    zeros = io.BytesIO()
    joblib.dump(tiny, zeros, compress=3)
    assert len(zeros.getvalue()) < 1 << 20
    bombs = {
        "zeros": zeros.getvalue(),
        "operations": zlib.compress(b"\x80\x04" + b"]" * 10**6),
        "nested lists": b"\x80\x04" + b"]" * 40_000 + b"a" * 39_999 + b".",
        "nested key": b"\x80\x04})" + b"\x85" * 90_000 + b"Ns.",
        "nested tuples": b"\x80\x04)" + b"\x85" * 90_000 + b".",
        "itself": b"\x80\x04]\x94h\x00a.",
        "long text": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x.",
        "long line": zlib.compress(b"S'" + b"x" * 3 * 10**7),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        assert_refused_in_little_memory(tmp_path / name)


def test_lzma_may_not_ask_for_gigabytes(tmp_path):
    (tmp_path / "km.bin").write_bytes(b"\x5d\x00\x00\x00\x80" + b"\xff" * 8 + bytes(100))
    with pytest.raises(UserError, match="Memory usage limit"):  # its dictionary: 2 GiB
        load_kmeans(tmp_path / "km.bin")


def test_keys_are_text(tmp_path):
    (tmp_path / "km.bin").write_bytes(b"\x80\x04})\x85Ns.")  # {((),): None}
    with pytest.raises(UserError, match="str expected, tuple found"):
        load_kmeans(tmp_path / "km.bin")


def test_decompression_stops_at_its_limit(tmp_path, tiny, monkeypatch):
    tiny.labels_ = np.zeros(10**6, np.int32)
    joblib.dump(tiny, tmp_path / "km.bin", compress=3)
    load_kmeans(tmp_path / "km.bin")
    monkeypatch.setattr(byte_stream, "MOST_BYTES", 10**6)
    with pytest.raises(UserError, match="can be left"):
        load_kmeans(tmp_path / "km.bin")


def assert_refused_in_little_memory(path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            load_kmeans(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20, path.name
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(path))
