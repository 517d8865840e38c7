"""No code in a checkpoint, a k-means file or a config runs when the file is loaded."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pipeline.config import load_yaml
from pipeline.errors import UserError
from pipeline.torch_files import load_torch
from pipeline.workspace import Workspace
from preprocess.speech2unit.cpc import Cpc
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.hubert import Hubert
from preprocess.speech2unit.kmeans import load_kmeans
from tests.reliability.hostile import Runs, refused
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import stage
from ulm_prompt.prompt_lm.checkpoint import read_weights
from ulm_prompt.prompt_lm.lm import load_unit_lm

CPU = torch.device("cpu")


def holding(holder: Any, runs: Runs) -> Any:
    """Return ``holder`` with ``runs`` as an attribute, like the ``_metadata`` of a state dict."""
    holder._metadata = runs
    return holder


def in_a_config(runs: Runs) -> Any:
    config = OmegaConf.create({"model": {"arch": "transformer_lm"}}, flags={"allow_objects": True})
    config.model.dropout = None
    vars(config.model._content["dropout"])["_val"] = runs
    return config


POSITIONS: dict[str, Callable[[Runs], Any]] = {
    "top": lambda runs: runs,
    "model": lambda runs: {"model": runs},
    "a weight": lambda runs: {"model": {"decoder.embed_tokens.weight": runs}},
    "a key": lambda runs: {"model": {(1, runs): 2}},
    "args": lambda runs: {"args": runs, "model": {}},
    "a node of cfg": lambda runs: {"cfg": in_a_config(runs), "model": {}},
    "state of a dict": lambda runs: {"model": holding(OrderedDict(a=torch.zeros(2)), runs)},
    "attribute of a tensor": lambda runs: {"model": {"a": holding(torch.zeros(2), runs)}},
    "object array": lambda runs: {"model": {"a": np.array([runs, None], dtype=object)}},
    "weights of cpc": lambda runs: {"weights": runs, "config": {"hiddenGar": runs}},
}


def as_hugging_face(path: Path) -> Path:
    folder = path.parent / "hugging_face"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "hubert"}')
    shutil.copy(path, folder / "pytorch_model.bin")
    return folder


LOADERS: dict[str, Callable[[Path], object]] = {
    "unit LM": lambda path: load_unit_lm(path.parent),
    "prompt": read_weights,
    "hubert": lambda path: Hubert(Source(path, 1, None, CPU)),
    "hubert of Hugging Face": lambda path: Hubert(Source(as_hugging_face(path), 1, None, CPU)),
    "cpc": lambda path: Cpc(Source(path, 1, None, CPU)),
    "k-means": load_kmeans,
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("position", POSITIONS)
def test_no_loader_runs_code_in_a_checkpoint(tmp_path: Path, position: str, is_zip: bool) -> None:
    canary, path = tmp_path / "it-ran", tmp_path / "checkpoint_best.pt"
    torch.save(POSITIONS[position](Runs(canary)), path, _use_new_zipfile_serialization=is_zip)
    (tmp_path / "dict.txt").write_text("0 1\n")
    for load in LOADERS.values():
        refused(lambda load=load: load(path))
    assert not canary.exists()
    torch.load(path, weights_only=False)  # a careless reader does run it
    assert canary.exists()


@pytest.mark.parametrize("key", ["args", "cfg"])
@pytest.mark.parametrize(
    "hostile",
    [
        {"decoder_xformers_att_config": "CODE"},
        {"adaptive_input": True, "adaptive_input_cutoff": "CODE"},
        {"adaptive_softmax_cutoff": "CODE"},
        {"decoder": {"xformers_att_config": "CODE"}},
    ],
    ids=lambda hostile: " ".join(hostile),
)
def test_settings_are_never_evaluated(tmp_path: Path, hostile: dict, key: str) -> None:
    """fairseq's builder evaluates these as Python. Our loader ignores them or refuses the LM."""
    tiny.write_lm(tmp_path)
    canary, path = tmp_path / "it-ran", tmp_path / "checkpoint_best.pt"
    code = f"open({str(canary)!r}, 'w').close()"
    state = torch.load(path, weights_only=False)
    settings = {**vars(state.pop("args")), **hostile}
    settings = {name: code if value == "CODE" else value for name, value in settings.items()}
    if "decoder" in hostile:
        settings["decoder"] = {"xformers_att_config": code}
    state |= {
        "args": {"args": argparse.Namespace(**settings)},
        "cfg": {"cfg": {"model": settings}},
    }[key]
    torch.save(state, path)
    with contextlib.suppress(UserError):
        load_unit_lm(tmp_path)
    assert not canary.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a workspace with a short run of each training script."""
    root = tmp_path_factory.mktemp("trained")
    tiny.write_corpus(root)
    ulm = ("--unit_model", "tiny100", "--date", "a", "--config", "tiny")
    stage("ulm_prompt/train_ulm.py", "--workspace", root, *ulm, "--set", "max_update=2",
          "decoder_layers=1", "warmup_updates=1")  # fmt: skip
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        stage(f"ulm_prompt/{name}.py", "--workspace", root)
    stage("ulm_prompt/train.py", "--workspace", root, "--date", "a", "--set", "max_update=2")
    return root


@pytest.mark.parametrize("script", ["train", "train_ulm"])
def test_resuming_runs_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Not even if the environment makes torch read pickles, as before version 2.6."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    task = "KS" if script == "train" else "ulm"
    last = Workspace(trained).checkpoints(task, "tiny100", "a") / "checkpoint_last.pt"
    whole, canary = last.read_bytes(), trained / "it-ran"
    state = load_torch(last)
    flags = {"train": [], "train_ulm": ["--unit_model", "tiny100", "--config", "tiny"]}[script]
    knobs = ["max_update=2", *(["decoder_layers=1", "warmup_updates=1"] if flags else [])]
    command = (f"ulm_prompt/{script}.py", "--workspace", trained, "--date", "a", *flags)
    try:
        for hostile_state in (
            {**state, "extra_state": {**state["extra_state"], "note": Runs(canary)}},
            {**state, "optimizer_history": []},
        ):
            torch.save(hostile_state, last)
            message = stage(*command, "--set", *knobs, code=2)
            assert str(last) in message
    finally:
        last.write_bytes(whole)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch IT']",
        "a: !!python/name:os.system",
        "!!python/object/apply:os.system ['touch IT']",
        "a: ${oc.env:HOME}",
        "a: http://x/${oc.env:TOKEN}",
    ],
)
def test_a_config_contains_only_plain_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    message = refused(lambda: load_yaml(tmp_path / "config.yaml"))
    assert os.environ.get("HOME", "/root") + "'" not in message
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]
