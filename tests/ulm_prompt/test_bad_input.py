"""A user's mistakes: one line that names the file or flag, exit code 2, nothing half-written."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.torch_files import load_torch
from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.ulm_prompt import tiny
from tests.ulm_prompt.forked import stage
from ulm_prompt.prompt_lm.lm import load_unit_lm

UNIT_MODEL = "tiny100"
TEXT_STAGES = ("make_data", "gen_labelspace", "verbalizer")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny.write_corpus(tmp_path, UNIT_MODEL)
    return tmp_path


def data_stages(root: Path, *names: str, code: int = 0) -> str:
    """Run the stages; the last one exits with ``code``."""
    for name in names[:-1]:
        stage(f"ulm_prompt/{name}.py", "--workspace", root)
    return stage(f"ulm_prompt/{names[-1]}.py", "--workspace", root, code=code)


def replace_first_row(root: Path, split: str, row: str) -> Path:
    path = Workspace(root).rows("speech_commands", UNIT_MODEL, split)
    _, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([row + "\n", *rest]))
    return path


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if ".tmp" in path.name or ".old" in path.name]


def test_unknown_task(root: Path) -> None:
    message = stage("ulm_prompt/make_data.py", "--workspace", root, "--prompt_task", "XX", code=2)
    assert "--prompt_task XX" in message and "KS, IC" in message


def test_no_data_at_all(tmp_path: Path) -> None:
    assert "no quantised data" in data_stages(tmp_path, "make_data", code=2)


def test_missing_split(root: Path) -> None:
    path = Workspace(root).rows("speech_commands", UNIT_MODEL, "valid")
    path.unlink()
    assert str(path) in data_stages(root, "make_data", code=2)


def test_row_without_units(root: Path) -> None:
    path = replace_first_row(root, "test", "silent.wav||3")
    message = data_stages(root, "make_data", code=2)
    assert f"{path}, line 1: no units (silent.wav)" in message
    target = Workspace(root).prompt_text(UNIT_MODEL, "speech_commands", "data_prompt", "test")
    assert not target.exists() and not leftovers(root)


def test_wrong_number_of_labels(root: Path) -> None:
    replace_first_row(root, "train", "a.wav|1 2 3|1 2")
    assert "has 1 label(s) an utterance, found 2" in data_stages(root, "make_data", code=2)


def test_label_missing_from_the_label_space(root: Path) -> None:
    data_stages(root, "make_data", "gen_labelspace")
    replace_first_row(root, "test", "a.wav|1 2 3|77")
    assert "label 77" in data_stages(root, "make_data", "verbalizer", code=2)


def test_more_labels_than_units(root: Path) -> None:
    path = Workspace(root).rows("speech_commands", UNIT_MODEL, "train")
    path.write_text("".join(f"{label}.wav|1 2|{label}\n" for label in range(5)))
    message = data_stages(root, *TEXT_STAGES, code=2)
    assert "5 labels but only 2 distinct units" in message


def test_stale_verbalizer(root: Path) -> None:
    """Rows that changed after verbalizer.py ran are noticed, not silently used."""
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    data_stages(root, *TEXT_STAGES)
    replace_first_row(root, "train", "a.wav|1 2 3|1")
    message = data_stages(root, "make_data", "fairseq_preprocess", code=2)
    assert "verbal.json: stale" in message


def test_rows_that_changed_after_make_data(root: Path) -> None:
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    data_stages(root, *TEXT_STAGES)
    replace_first_row(root, "test", "a.wav|1 2 3|1")
    assert "run ulm_prompt/make_data.py again" in data_stages(root, "fairseq_preprocess", code=2)


def test_an_edited_verbalizer(root: Path) -> None:
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    data_stages(root, *TEXT_STAGES)
    path = Workspace(root).datasets(UNIT_MODEL) / "verbal.json"
    path.write_text(path.read_text().replace('"0": "0"', '"0": "50"'))
    assert "verbal.json: stale" in data_stages(root, "fairseq_preprocess", code=2)


def test_an_lm_is_not_trained_on_other_text_under_the_same_date(root: Path) -> None:
    command = ("ulm_prompt/train_ulm.py", "--workspace", root, "--unit_model", UNIT_MODEL)
    command += ("--date", "a", "--config", "tiny", "--set", "max_update=60", "decoder_layers=1")
    stage(*command)
    before = (Workspace(root).lm(UNIT_MODEL) / "checkpoint_best.pt").read_bytes()
    assert "this run has finished" in stage(*command)
    assert (Workspace(root).lm(UNIT_MODEL) / "checkpoint_best.pt").read_bytes() == before
    assert "another recipe" in stage(*command, "lr=0.1", code=2)
    replace_first_row(root, "train", "a.wav|1 2 3|1")
    assert "another text" in stage(*command, code=2)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("sample_break_mode=none", "topics=4: needs sample_break_mode=eos"),
        ("sample_break_mode=line", "sample_break_mode=line: expected one of eos, none"),
        ("decoder_attention_heads=5", "expected a divisor of decoder_embed_dim=128"),
        ("lr_schedule=linear", "lr_schedule=linear: expected one of fixed, cosine"),
        ("dropout=7", "dropout=7.0: expected 0 or more, below 1"),
        ("lr=nan", "lr=nan: expected at least 0"),
        ("update_freq=0", "update_freq=0: expected at least 1"),
        ("max_update=50 warmup_updates=50", "the cosine schedule ends there"),
        ("dtype=int8", "dtype=int8: expected one of float32"),
    ],
)
def test_an_lm_s_knob_that_cannot_be(root: Path, knobs: str, message: str) -> None:
    """Told before anything is written, the text of the LM included."""
    command = ("ulm_prompt/train_ulm.py", "--workspace", root, "--unit_model", UNIT_MODEL)
    knobs = knobs.split()
    said = stage(*command, "--date", "a", "--config", "tiny", "--set", *knobs, code=2)
    assert message in said
    assert not (root / "checkpoints").exists()


def test_unit_outside_the_dict(root: Path) -> None:
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    replace_first_row(root, "valid", "a.wav|1 2 100|1")
    message = data_stages(root, *TEXT_STAGES, "fairseq_preprocess", code=2)
    assert "line 1: unit 100 is not in" in message
    assert not Workspace(root).data_bin(UNIT_MODEL, "KS").exists() and not leftovers(root)


def test_no_lm(root: Path) -> None:
    message = data_stages(root, *TEXT_STAGES, "fairseq_preprocess", code=2)
    assert "dict.txt: not found" in message and "train_ulm.py" in message


def test_unknown_recipe_knob_and_value(root: Path) -> None:
    command = ("ulm_prompt/train.py", "--workspace", root, "--date", "a")
    assert "sched" in stage(*command, "--set", "sched=cosine", code=2)
    assert "expected one of" in stage(*command, "--set", "lr_schedule=cosin", code=2)
    assert "recipe quick" in stage(*command, "--recipe", "quick", code=2)
    assert not (root / "checkpoints").exists()


def test_unknown_model_date(root: Path) -> None:
    message = stage(
        "ulm_prompt/sample.py", "--workspace", root, "--model_date", "none", "--sample_date", "a",
        code=2,
    )  # fmt: skip
    assert "correct --model_date" in message


def test_full_disk(root: Path) -> None:
    """A write that the system refuses: exit code 1, one line, nothing left behind."""
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "ulm_prompt/make_data.py"), "--workspace", str(root)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not list((root / "ulm_prompt").rglob("*.txt")) and not leftovers(root)


class TestLM:
    """An LM that is not whole is never trained on."""

    @pytest.fixture
    def lm(self, tmp_path: Path) -> Path:
        tiny.write_lm(tmp_path)
        return tmp_path

    def change(self, lm: Path, **entries: object) -> None:
        path = lm / "checkpoint_best.pt"
        state = torch.load(path, weights_only=False)
        for name, value in entries.items():
            if value is None:
                del state["model"][name.replace("__", ".")]
            else:
                state["model"][name.replace("__", ".")] = value
        torch.save(state, path)

    def refused(self, lm: Path, expected: str) -> None:
        with pytest.raises(UserError, match=expected) as error:
            load_unit_lm(lm)
        assert "\n" not in str(error.value)

    def test_whole(self, lm: Path) -> None:
        assert len(load_unit_lm(lm).dictionary) == 104

    def test_dict_of_another_size(self, lm: Path) -> None:
        (lm / "dict.txt").write_text("0 1\n1 1\n")
        self.refused(lm, "6 symbols, but checkpoint_best.pt has 104")

    def test_missing_weight(self, lm: Path) -> None:
        self.change(lm, decoder__layers__1__fc1__weight=None)
        self.refused(lm, r"is missing decoder\.layers\.1\.fc1\.weight")

    def test_unexpected_weight(self, lm: Path) -> None:
        self.change(lm, decoder__extra=torch.zeros(2))
        self.refused(lm, r"unexpected decoder\.extra")

    def test_misshapen_weight(self, lm: Path) -> None:
        self.change(lm, decoder__layers__1__fc1__bias=torch.zeros(3))
        self.refused(lm, r"misshapen decoder\.layers\.1\.fc1\.bias \(3,\) for \(128,\)")

    def test_no_checkpoint_at_all(self, lm: Path) -> None:
        (lm / "checkpoint_best.pt").write_bytes(b"not a zip file")
        self.refused(lm, "checkpoint")


class Payload:
    """What a hostile pickle looks like: it creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["model", "args", "extra_state"])
def test_a_checkpoint_never_runs_code(tmp_path: Path, place: str) -> None:
    victim = tmp_path / "victim"
    torch.save({"model": {}, place: Payload(victim)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="without running its code"):
        load_torch(tmp_path / "checkpoint.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Payload(victim)))
    with pytest.raises(UserError):
        load_torch(tmp_path / "old.pt")
    assert not victim.exists()
