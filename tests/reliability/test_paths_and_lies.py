"""Manifests and configs that name files outside their folder, and files with false contents."""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from baselines.classifiers.means import means_folder, read_means
from pipeline.files import sha256
from pipeline.torch_files import load_safetensors, load_torch
from pipeline.unit_models import find_unit_model
from pipeline.workspace import Workspace
from preprocess.actions.config import FairseqConfig, fill_in
from preprocess.actions.manifest import Entry, read_manifest, write_manifest
from tests.conftest import stage
from tests.reliability.hostile import Runs, refused
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.data import open_rows
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.using.speech import UnitFiles

OUTSIDE = ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "..", ""]
LINES = [
    *(f"{path}\t9\t0\tb\t1" for path in OUTSIDE),
    *(f"a.wav\t{counts}\ta.wav\t1" for counts in ("-1\t0", "0\t0", "9\t-1", "1e9\t0", "x\t0")),
    *('"a"x.wav\t9\t0\ta.wav\t1', '"a.wav\t9\t0\ta.wav\t1', "a.wav\t5"),
]


@pytest.mark.parametrize("line", LINES)
def test_a_manifest_has_whole_fields_and_stays_in_its_corpus(tmp_path: Path, line: str) -> None:
    manifest = tmp_path / "train.tsv"
    manifest.write_text(f"{tmp_path}\na.wav\t9\t0\ta.wav\t1\n{line}\n")
    assert "line 3" in refused(lambda: read_manifest(manifest))


def test_a_corpus_that_names_files_elsewhere(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "data").mkdir(parents=True)
    soundfile.write(tmp_path / "secret.wav", np.zeros(16_000), 16_000)
    for split in ("train", "valid", "test"):
        (corpus / "data" / f"{split}_data.csv").write_text(
            "path,action,object,location\n../secret.wav,a,b,c\n"
        )
    message = stage(
        "preprocess/runner.py", "--downstream", "fluent_commands", "--action", "generate_manifest",
        "--workspace", tmp_path / "w", "--set", f"datarc.root_path={corpus}", code=2,
    )  # fmt: skip
    assert "'../secret.wav': expected a path inside" in message
    assert not list((tmp_path / "w").rglob("*.tsv"))


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "", ".hidden", "a\n"])
def test_a_unit_model_is_a_name(name: str) -> None:
    refused(lambda: fill_in(FairseqConfig(), name, find_unit_model("a", Workspace(Path()))))


@pytest.mark.parametrize("text", ["fairseqrc: {layer: many}", "fairseqrc: {other: 1}", "["])
def test_the_config_next_to_units(tmp_path: Path, text: str) -> None:
    folder = Workspace(tmp_path).downstream_data("speech_commands") / "logmel100"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    unit_model = find_unit_model("logmel100", Workspace(tmp_path))
    assert "config.yaml" in refused(lambda: UnitFiles(unit_model, "speech_commands"))


@pytest.mark.parametrize(
    "text",
    ["0 1\n0 1\n", "</s> 1\n", "0 -1\n", "0\n", "0 one\n", "\xff\n", "\x1b[2J 1 1 1\x1b[2J x\n"],
    ids=ascii,
)
def test_a_dict(tmp_path: Path, text: str) -> None:
    (tmp_path / "dict.txt").write_bytes(text.encode("latin-1"))
    assert "dict.txt" in refused(lambda: load_dictionary(tmp_path))


def test_layer_means_of_another_format(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = means_folder(workspace, "corpus", "tiny100")
    folder.mkdir(parents=True)
    manifest = workspace.downstream_data("corpus") / "manifest/train.tsv"
    manifest.parent.mkdir()
    write_manifest(manifest, tmp_path, [Entry("a.wav", 9, 0, "a.wav", "1")])
    record = {"plan": {"manifest": {"train": sha256(manifest)}}, "left_out": []}
    (folder / "provenance.json").write_text(json.dumps(record))
    path, canary = folder / "train.npy", tmp_path / "it-ran"
    np.save(path, np.ones((1, 2, 3), np.float32))

    def read() -> np.ndarray:
        return read_means(workspace, "corpus", "tiny100", "train").means

    assert read().tolist() == [[[1] * 3] * 2]
    np.save(path, np.array([[[Runs(canary)]]], dtype=object), allow_pickle=True)
    for content in (path.read_bytes(), b"", b"\x93NUMPY", path.read_bytes()[:40]):
        path.write_bytes(content)
        refused(read)
    assert not canary.exists()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old format"])
def test_a_checkpoint(tmp_path: Path, is_zip: bool, mapped: bool) -> None:
    """Tied weights, an old Namespace and an empty tensor are read; half a file is refused."""
    tied = torch.zeros(50, 8)
    model = {"a": tied, "b": tied, "c": torch.empty(0, 8)}
    state = {"args": argparse.Namespace(a=1), "model": model}
    path = tmp_path / "a.pt"
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    assert load_torch(path, mapped)["model"].keys() == model.keys()
    whole = path.read_bytes()
    for content in (b"", b"\x00" * 100, b"hello", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert str(path) in refused(lambda: load_torch(path, mapped))
    torch.save([1], path)
    assert "found list" in refused(lambda: load_torch(path, mapped))
    assert "not found" in refused(lambda: load_torch(tmp_path / "none.pt", mapped))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    whole = path.read_bytes()
    assert load_safetensors(path)["a"].shape == (9,)
    for content in (b"", b"hello", whole[:-1], struct.pack("<Q", 1 << 60) + whole[8:]):
        path.write_bytes(content)
        assert str(path) in refused(lambda: load_safetensors(path))


def index_file(count: int, sizes: list[int], offsets: list[int], code: int = 8) -> bytes:
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, count)
    return header + np.array(sizes, np.int32).tobytes() + np.array(offsets, np.int64).tobytes()


@pytest.mark.parametrize(
    ("index", "tokens", "message"),
    [
        (b"", [4, 2, 5, 2], "train.idx"),
        (b"TNTIDX\x00\x00" + bytes(40), [4, 2, 5, 2], "train.idx"),
        (index_file(2, [2, 2], [0, 4])[:-9], [4, 2, 5, 2], "train.idx"),
        (index_file(0, [], []), [4, 2, 5, 2], "train.idx"),
        (index_file(1, [2], [0]), [104, 2], "a token outside the 104 symbols"),
    ],
    ids=["empty", "another format", "cut short", "no rows", "no symbol"],
)
def test_binaries(tmp_path: Path, index: bytes, tokens: list[int], message: str) -> None:
    def write(index: bytes, tokens: list[int]) -> None:
        (tmp_path / "train.idx").write_bytes(index)
        (tmp_path / "train.bin").write_bytes(np.array(tokens, np.uint16).tobytes())

    write(index_file(2, [2, 2], [0, 4]), [4, 2, 5, 2])
    assert open_rows(tmp_path / "train", tiny.dictionary())[1].tolist() == [5, 2]
    write(index, tokens)
    assert message in refused(lambda: open_rows(tmp_path / "train", tiny.dictionary()))
