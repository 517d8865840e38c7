"""Manifests and configs that lead out of their place, and records that lie about what lies beside
them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from baselines.classifiers.means import means_folder, read_means
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.unit_models import find_unit_model
from pipeline.workspace import Workspace
from preprocess.actions.config import FairseqConfig, fill_in
from preprocess.actions.manifest import Entry, read_manifest, write_manifest
from tests.conftest import stage
from tests.reliability.hostile import Runs, refused
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.using.speech import UnitFiles

OUTSIDE = ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "..", ""]
LINES = [
    *(f"{path}\t9\t0\tb\t1" for path in OUTSIDE),
    *(f"a.wav\t{counts}\ta.wav\t1" for counts in ("-1\t0", "0\t0", "9\t-1", "1e9\t0", "x\t0")),
    *('"a"x.wav\t9\t0\ta.wav\t1', '"a.wav\t9\t0\ta.wav\t1', "a.wav\t5"),
]


@pytest.mark.parametrize("line", LINES)
def test_a_manifest_holds_whole_fields_and_stays_in_its_corpus(tmp_path: Path, line: str) -> None:
    manifest = tmp_path / "train.tsv"
    manifest.write_text(f"{tmp_path}\na.wav\t9\t0\ta.wav\t1\n{line}\n")
    assert "line 3" in refused(lambda: read_manifest(manifest))


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_manifest_is_written_that_leads_out(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="expected a path inside"):
        write_manifest(tmp_path / "new.tsv", tmp_path, [Entry(path, 9, 0, "b", "1")])
    assert not (tmp_path / "new.tsv").exists()


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
def test_the_config_beside_units(tmp_path: Path, text: str) -> None:
    folder = Workspace(tmp_path).downstream_data("speech_commands") / "logmel100"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    known = find_unit_model("logmel100", Workspace(tmp_path))
    assert "config.yaml" in refused(lambda: UnitFiles(known, "speech_commands"))


@pytest.mark.parametrize(
    "text",
    ["0 1\n0 1\n", "</s> 1\n", "0 -1\n", "0\n", "0 one\n", "\xff\n", "\x1b[2J 1 1 1\x1b[2J x\n"],
    ids=ascii,
)
def test_a_dict(tmp_path: Path, text: str) -> None:
    (tmp_path / "dict.txt").write_bytes(text.encode("latin-1"))
    assert "dict.txt" in refused(lambda: load_dictionary(tmp_path))


def test_layer_means_that_are_something_else(tmp_path: Path) -> None:
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
