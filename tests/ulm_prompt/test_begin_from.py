"""``train_ulm.py --begin_from`` trains another LM further, for example a released LM."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import stage
from ulm_prompt.prompt_lm.lm import load_unit_lm

UNIT_MODEL = "tiny100"
SHAPE = {"layers": 2, "width": 16, "heads": 2}
KNOBS = (
    "decoder_layers=2", "decoder_embed_dim=16", "decoder_ffn_embed_dim=64",
    "decoder_attention_heads=2", "tokens_per_sample=64", "max_tokens=512",
    "warmup_updates=0",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with rows, and in ``released/`` an LM whose dict has another order."""
    tiny.write_corpus(tmp_path, UNIT_MODEL)
    tiny.write_lm(tmp_path / "released", **SHAPE)
    names = tmp_path / "released" / "dict.txt"
    names.write_text("".join(reversed(names.read_text().splitlines(keepends=True))))
    return tmp_path


def train_ulm(root: Path, *knobs: str, begin_from: Path | None = None, code: int = 0) -> str:
    flags = ["--workspace", root, "--unit_model", UNIT_MODEL, "--date", "a", "--config", "tiny"]
    flags += ["--begin_from", begin_from] if begin_from else []
    if (text := root / "text.txt").exists():
        flags += ["--text", text, "--valid_text", text]
    return stage("ulm_prompt/train_ulm.py", *flags, "--set", *KNOBS, *knobs, code=code)


def test_training_begins_from_the_weights_and_the_dict_of_the_lm(root: Path) -> None:
    """An update with a tiny learning rate changes neither. A run resumes only with the LM that it
    began from.
    """
    begun, trained = root / "released", Workspace(root).lm(UNIT_MODEL)
    knobs = ("max_update=1", "lr=1e-9")
    train_ulm(root, *knobs, begin_from=begun)
    assert (trained / "dict.txt").read_bytes() == (begun / "dict.txt").read_bytes()
    before, after = (load_unit_lm(folder).model.state_dict() for folder in (begun, trained))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)
    assert "finished" in train_ulm(root, *knobs, begin_from=begun)
    assert "another begin_from" in train_ulm(root, *knobs, code=2)
    tiny.write_lm(begun, seed=1, **SHAPE)
    assert "another begin_from" in train_ulm(root, *knobs, begin_from=begun, code=2)
    assert "move it away" in train_ulm(root, *knobs, begin_from=trained, code=2)


def test_text_is_read_with_the_dict_of_the_lm(root: Path) -> None:
    """After training on unit 7 alone, the LM expects 7 by its own dict, not by the usual dict."""
    (root / "text.txt").write_text("7 7 7 7 7 7 7 7\n" * 200)
    for rows in (root / "preprocess").rglob("tiny100/*"):
        rows.unlink()
    knobs = ("topics=0", "max_update=60", "lr=1e-2")
    train_ulm(root, *knobs, begin_from=root / "released")
    lm = load_unit_lm(Workspace(root).lm(UNIT_MODEL))
    seven = lm.dictionary.index("7")
    logits = lm.model(torch.tensor([[lm.dictionary.eos(), seven, seven]]))[0]
    assert logits[0, -1].argmax() == seven


def test_a_second_run_keeps_the_lm(root: Path) -> None:
    """Prompts may depend on it. This includes an LM of an old version, which names no run."""
    train_ulm(root, "max_update=1")
    workspace = Workspace(root)
    folder, run = workspace.lm(UNIT_MODEL), workspace.checkpoints("ulm", UNIT_MODEL, "a")
    before = (folder / "checkpoint_best.pt").read_bytes()
    shutil.move(run, root / "moved")
    assert f"{folder} already exists: kept" in train_ulm(root, "max_update=2")
    assert not (run / "text").exists()
    shutil.move(root / "moved", run)
    assert "this run has finished" in train_ulm(root, "max_update=1")
    (folder / "ulm.json").write_text("{}")
    assert "already exists: kept" in train_ulm(root, "max_update=1")
    assert (folder / "checkpoint_best.pt").read_bytes() == before
    shutil.rmtree(folder)
    train_ulm(root, "max_update=1")
    assert (folder / "checkpoint_best.pt").exists()


def test_an_lm_to_begin_from_that_does_not_fit(root: Path) -> None:
    """Its size, its dict, or what it computes with weights of the right size may not fit."""
    released = root / "released"

    def refused(*knobs: str, begin_from: Path = released) -> str:
        return train_ulm(root, *knobs, begin_from=begin_from, code=2)

    assert "decoder_layers=2, but the config has 3" in refused("decoder_layers=3")
    assert "dict.txt: not found" in refused(begin_from=root / "none")
    original = torch.load(released / "checkpoint_best.pt", weights_only=False)
    for setting, value in (("no_scale_embedding", True), ("activation_fn", "gelu")):
        state = copy.deepcopy(original)
        setattr(state["args"], setting, value)
        torch.save(state, released / "checkpoint_best.pt")
        assert f"an LM with {setting}={value}, but the config has" in refused()
    torch.save(original, released / "checkpoint_best.pt")
    assert not list((root / "checkpoints").rglob("*.txt")), "no text is written yet"
    rows = Workspace(root).rows("speech_commands", UNIT_MODEL, "train")
    rows.write_text(rows.read_text() + "a.wav|1 2 100|1\n")
    assert "unit 100 is not in" in refused("max_update=2")
    assert not Workspace(root).lm(UNIT_MODEL).exists()


def test_a_dict_alone_gives_the_new_lm_its_symbols(root: Path) -> None:
    """Stages 2 and 3 have used this dict. Their binaries stay valid, also if training resumes."""
    lm, task = Workspace(root).lm(UNIT_MODEL), ("--workspace", root)
    lm.mkdir(parents=True)
    shutil.copyfile(root / "released" / "dict.txt", lm / "dict.txt")
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        stage(f"ulm_prompt/{name}.py", *task)
    assert "dict.txt: the LM uses these symbols" in train_ulm(root, "max_update=1")
    assert "finished" in train_ulm(root, "max_update=1")
    assert (lm / "dict.txt").read_bytes() == (root / "released" / "dict.txt").read_bytes()
    stage("ulm_prompt/train.py", *task, "--date", "a", "--set", "max_update=1")
