"""Manifests and configs that lead out of their place, and records that lie about what lies beside
them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from baselines.classifiers.means import means_folder, read_means
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.workspace import Workspace
from preprocess.actions.config import FairseqConfig, fill_in
from preprocess.actions.manifest import Entry, read_manifest, write_manifest
from tests.conftest import stage
from tests.reliability.hostile import Runs, refused
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_data.prompt_record import RECORD as RECORD_NAME
from ulm_prompt.prompt_data.prompt_record import PromptRecord, write_record
from ulm_prompt.prompt_lm import checkpoint
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.training.recipe import UnitLMRecipe
from ulm_prompt.training.runs import check_same_run
from ulm_prompt.using.find_prompts import task_and_unit_model
from ulm_prompt.using.speech import UnitFiles

OUTSIDE = ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "..", ""]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_manifest_stays_in_its_corpus(tmp_path: Path, path: str) -> None:
    manifest, root = tmp_path / "train.tsv", tmp_path / "corpus"
    manifest.write_text(f"{root}\na.wav\t9\t0\ta.wav\t1\n{path}\t9\t0\tb\t1\n")
    assert "line 3" in refused(lambda: read_manifest(manifest))
    with pytest.raises(UserError, match="expected a path inside"):
        write_manifest(tmp_path / "new.tsv", root, [Entry(path, 9, 0, "b", "1")])
    assert not (tmp_path / "new.tsv").exists()


@pytest.mark.parametrize("numbers", ["-1\t0", "0\t0", "9\t-1", "1e9\t0", "9\t" + "9" * 5000])
def test_a_manifest_counts_samples(tmp_path: Path, numbers: str) -> None:
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t{numbers}\ta.wav\t1\n")
    assert "line 2" in refused(lambda: read_manifest(tmp_path / "train.tsv"))


@pytest.mark.parametrize("line", ['"a"x.wav\t9\t0\ta.wav\t1', '"a.wav\t9\t0\ta.wav\t1'])
def test_a_manifest_quotes_whole_fields(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\n{line}\n")
    assert "line 2" in refused(lambda: read_manifest(tmp_path / "train.tsv"))


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
    refused(lambda: fill_in(FairseqConfig(), name, None))


@pytest.mark.parametrize(
    "text",
    ["taskrc: [1]", "fairseqrc: {layer: many}", "fairseqrc: {other: 1}", "a: ${oc.env:HOME}", "["],
)
def test_the_config_beside_units(tmp_path: Path, text: str) -> None:
    folder = Workspace(tmp_path).downstream_data("speech_commands") / "logmel100"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    message = refused(lambda: UnitFiles(Workspace(tmp_path), "logmel100", "speech_commands"))
    assert "config.yaml" in message


@pytest.mark.parametrize(
    "text",
    [
        "0 1\n0 1\n",
        "0 1\n0 1 #fairseq:overwrite\n",
        "</s> 1\n",
        "<s> 9 #fairseq:overwrite\n",
        "0 -1\n",
        "0 " + "9" * 5000 + "\n",
        "0\n",
        "0 one\n",
        "\xff\n",
        "\x1b[2J 1 1 1\x1b[2J x\n",
    ],
    ids=ascii,
)
def test_a_dict(tmp_path: Path, text: str) -> None:
    (tmp_path / "dict.txt").write_bytes(text.encode("latin-1"))
    assert "dict.txt" in refused(lambda: load_dictionary(tmp_path))


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt with its card, and the LM it belongs to."""
    folder = tmp_path_factory.mktemp("prompt")
    tiny.write_lm(folder / "lm", tiny.lm())
    unit_lm = checkpoint.load_unit_lm(folder / "lm")
    state = tiny.prompted().prompt.published_state()
    torch.save({"model": state}, folder / checkpoint.BEST)
    record = PromptRecord("KS", "tiny100", 5, "freq", {"0": "1"}, unit_lm.fingerprint)
    write_record(folder, record)
    checkpoint.load(folder, folder / "lm")
    return folder


@pytest.mark.parametrize(
    "lies",
    [
        {"prefix_prompt_length": 6},
        {"prefix_prompt_length": "5"},
        {"prefix_prompt_length": True},
        {"fine_tune": True},
        {"fine_tune": "no"},
        {"lm_fingerprint": "0" * 16},
        {"verbal": ["1"]},
        {"verbal": {"0": 1}},
        {"training": None},
        {"training": {"verbalizer": "learnable"}},
        {"valid": []},
        {"run": {"data": {}, "rounding": "0"}},
        {"path": "/etc/passwd"},
    ],
    ids=str,
)
def test_a_card_that_lies(prompt: Path, tmp_path: Path, lies: dict[str, Any]) -> None:
    shutil.copytree(prompt, tmp_path / "p")
    card = tmp_path / "p" / RECORD_NAME
    card.write_text(json.dumps(json.loads(card.read_text()) | lies))
    refused(lambda: checkpoint.load(tmp_path / "p", tmp_path / "p" / "lm"))


@pytest.mark.parametrize("name", ["../../evil", "/evil", 7, None, ["KS"]])
def test_a_card_names_no_path(prompt: Path, tmp_path: Path, name: Any) -> None:
    shutil.copytree(prompt, tmp_path / "p")
    card = tmp_path / "p" / RECORD_NAME
    for key in ("task", "unit_model"):
        values = json.loads((prompt / RECORD_NAME).read_text())
        card.write_text(json.dumps(values | {key: name}))
        message = refused(lambda: task_and_unit_model(tmp_path / "p" / checkpoint.BEST))
        assert f"{key}: expected" in message


@pytest.mark.parametrize("text", ["[]", "1", '{"recipe": {}, "text": {}}', "{"])
def test_a_run_that_lies(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint_last.pt").touch()
    (tmp_path / "run.json").write_text(text)
    recipe = UnitLMRecipe()
    refused(lambda: check_same_run(tmp_path, recipe, {}))


@pytest.fixture
def means(tmp_path: Path) -> Path:
    """The layer means of one file, with their record."""
    workspace = Workspace(tmp_path)
    folder = means_folder(workspace, "corpus", "tiny100")
    folder.mkdir(parents=True)
    manifest = workspace.downstream_data("corpus") / "manifest/train.tsv"
    manifest.parent.mkdir()
    write_manifest(manifest, tmp_path, [Entry("a.wav", 9, 0, "a.wav", "1")])
    record = {"plan": {"manifest": {"train": sha256(manifest)}}, "left_out": []}
    (folder / "provenance.json").write_text(json.dumps(record))
    np.save(folder / "train.npy", np.ones((1, 2, 3), np.float32))
    assert read_means(workspace, "corpus", "tiny100", "train").means.tolist() == [[[1] * 3] * 2]
    return folder


@pytest.mark.parametrize(
    "lies",
    [
        {"plan": None},
        {"plan": {"manifest": ["train"]}},
        {"plan": {"manifest": {}}},
        {"left_out": "a.wav"},
        {"left_out": [["a.wav"]]},
        {"left_out": ["a.wav"]},
    ],
    ids=str,
)
def test_layer_means_whose_record_lies(means: Path, tmp_path: Path, lies: dict) -> None:
    record = means / "provenance.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | lies))
    refused(lambda: read_means(Workspace(tmp_path), "corpus", "tiny100", "train"))


def test_layer_means_that_are_something_else(means: Path, tmp_path: Path) -> None:
    def refuses() -> None:
        refused(lambda: read_means(Workspace(tmp_path), "corpus", "tiny100", "train"))

    path = means / "train.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (1, 5 * 10**6, 5 * 10**6)}
    with open(path, "wb") as file:  # 100 TB
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(24))
    refuses()
    canary = tmp_path / "it-ran"
    np.save(path, np.array([[[Runs(canary)]]], dtype=object), allow_pickle=True)
    refuses()
    assert not canary.exists()
    for content in (b"", b"\x93NUMPY", path.read_bytes()[:40]):
        path.write_bytes(content)
        refuses()


@pytest.mark.parametrize("make", [lambda runs: {"model": {"a": runs}}, lambda runs: {"model": [1]}])
def test_weights_are_tensors(tmp_path: Path, make: Callable) -> None:
    torch.save(make(Runs(tmp_path / "it-ran")), tmp_path / "a.pt")
    refused(lambda: checkpoint.read_weights(tmp_path / "a.pt"))
    assert not (tmp_path / "it-ran").exists()
