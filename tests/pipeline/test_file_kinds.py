"""A file of another kind instead of a checkpoint: the error line names the kind."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipeline.files import kind_of_file
from pipeline.torch_files import load_safetensors, load_torch
from preprocess.speech2unit.cpc import Cpc
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hubert import Hubert
from preprocess.speech2unit.kmeans import load_kmeans
from preprocess.speech2unit.moonshine import Moonshine
from tests.preprocess.onnx_models import write_encoder
from tests.reliability.hostile import refused

A = torch.zeros(2, 2)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 378\n"


def written_by(write: Callable[[io.BytesIO], object]) -> bytes:
    handle = io.BytesIO()
    write(handle)
    return handle.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (LFS, "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<HTML><body>502", "a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "an XML text"),
        (b'{"error": "not found"}', "a JSON text"),
        (save({"a": A}), "a safetensors file"),
        (gzip.compress(b"a"), "a gzip archive"),
        (written_by(lambda handle: np.save(handle, np.zeros(3))), "a numpy array"),
        (b"RIFF\x24\0\0\0WAVE", "an audio file"),
    ],
    ids=range(10),
)
def test_files_by_their_first_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    for load in (load_torch, lambda path: Cpc(Source(path, 1))):
        assert f"{path}: this is {kind}" in refused(lambda load=load: load(path))
    if "safetensors" not in kind:
        assert f"({kind}" in refused(lambda: load_safetensors(path))
    assert f"this is {kind}" in refused(lambda: Moonshine(Source(path)))


def test_folders_onnx_models_and_unknown_files(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    write_encoder(path)
    assert "this is an ONNX model" in refused(lambda: load_torch(path))
    for content in (b"\x08", b"\x08\x03", b"hello", bytes(600), b"{", b"\x80\x02}q\0."):
        path.write_bytes(content)
        assert kind_of_file(path) in (None, "a JSON text")
    assert "this is a folder; " in refused(lambda: load_torch(tmp_path))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    for load in (load_torch, lambda path: Moonshine(Source(path))):
        message = refused(lambda load=load: load(tmp_path))
        assert f"{tmp_path}: this is a folder of a Hugging Face model" in message


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ({"hubert.feature_projection.projection.weight": A}, "a Hugging Face HuBERT or"),
        ({"feature_projection.projection.weight": A, "lm_head.weight": A}, "a Hugging Face HuBERT"),
        ({"transformer.h.0.attn.c_attn.weight": A}, "a Hugging Face language model"),
        ({"model.embed_tokens.weight": A}, "a Hugging Face language model"),
        ({"Featurizer": {}, "Downstream": {}, "Optimizer": {}, "Args": 1}, "a downstream model of"),
        (
            {"task_cfg": {}, "model_cfg": {}, "model_weight": {}},
            "a speech encoder in s3prl's",
        ),
        ({"cfg": {"extractor_mode": "default"}, "model": {}}, "a WavLM"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old format"])
def test_checkpoints_by_their_keys(tmp_path: Path, state: dict, kind: str, is_zip: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    for reader in (Hubert, Cpc):
        message = refused(lambda reader=reader: reader(Source(path, 1)))
        assert f"{path}: this is {kind}" in message and "; expected " in message


def test_our_own_checkpoints_are_accepted(tmp_path: Path) -> None:
    weights = {"decoder.layers.0.fc1.weight": A, "decoder.version": A}  # as in the baselines
    for state in ({"model": weights}, {"weights": {}, "config": {}}, {}, weights):
        torch.save(state, tmp_path / "a.pt")
        assert load_torch(tmp_path / "a.pt").keys() == state.keys()
    message = refused(lambda: Hubert(Source(tmp_path / "a.pt", 1)))
    assert "are missing: the file contains only weights; get the whole" in message


@pytest.mark.parametrize("full", [MemoryError(), RuntimeError("can't allocate memory: you tried")])
def test_a_full_memory_is_not_called_damage(tmp_path: Path, monkeypatch, full: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise full

    torch.save({"a": {}}, tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    for module in (torch, np):
        monkeypatch.setattr(module, "load", fail)
    for load, name in ((load_torch, "a.pt"), (load_kmeans, "a.pt"), (load_kmeans, "a.npy")):
        with pytest.raises(type(full)):
            load(tmp_path / name)
