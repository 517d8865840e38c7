"""fairseq with our changes: its files on a full disk, batches that do not fit, validation if an
epoch is one update (few-shot), and a run that is interrupted within an epoch.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from pipeline.errors import UserError
from pipeline.torch_files import load_torch
from pipeline.workspace import Workspace
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.scoring.scores import valid_curve
from ulm_prompt.training.fairseq_run import CurveWriter, LogFile, patched

LINE = "a line of the log"
FULL = "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 1 GiB in all"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limit every file to 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("way", ["save", "save more than a buffer", "copy"])
def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, request, way: str) -> None:
    best, last = tmp_path / "checkpoint_best.pt", tmp_path / "checkpoint_last.pt"
    with patched():
        checkpoint_utils.torch_persistent_save({"model": torch.zeros(1000)}, str(best))
        assert checkpoint_utils.PathManager.copy(str(best), str(last), overwrite=True)
        checkpoint_utils.torch_persistent_save({"model": torch.ones(1000)}, str(best))
        request.getfixturevalue("full_disk")
        with pytest.raises(OSError) as error:
            if way == "copy":
                checkpoint_utils.PathManager.copy(str(best), str(last), overwrite=True)
            value = torch.ones(1000 if way == "save" else 100_000)
            checkpoint_utils.torch_persistent_save({"model": value}, str(last))
    assert error.value.filename == str(last)
    assert load_torch(last)["model"].sum() == 0 and sorted(tmp_path.iterdir()) == [best, last]


@pytest.mark.parametrize("kind", ["curves", "log"])
def test_a_log_that_cannot_be_written_is_an_error(
    tmp_path: Path, full_disk: None, kind: str
) -> None:
    """It does not wait for a thread that has died."""
    path = tmp_path / kind
    log = LogFile(path) if kind == "log" else CurveWriter(str(path))
    with pytest.raises(OSError) as error:
        for step in range(200):
            if kind == "log":
                log.handle(logging.makeLogRecord({"msg": LINE}))
            else:
                log.add_text("sys.argv", "train.py")
                log.add_scalar("loss", 0.5, step)
                log.flush()
    assert error.value.filename == str(path)


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(f"{LINE}\nvalid on 'valid' subset | loss 3.1")
    log = LogFile(path)
    log.handle(logging.makeLogRecord({"msg": LINE}))
    log.close()
    assert path.read_text() == f"{LINE}\n{LINE}\n"


@pytest.mark.parametrize("training", [True, False])
def test_training_ends_with_a_batch_that_does_not_fit(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """The longest batch does not fit, in train or in valid."""
    forward = PromptLanguageModel.forward

    def fits(model: PromptLanguageModel, tokens: torch.Tensor, read_at: torch.Tensor) -> object:
        if tokens.shape[1] > 14 and model.training == training:
            raise torch.OutOfMemoryError(FULL)
        return forward(model, tokens, read_at)

    monkeypatch.setattr(PromptLanguageModel, "forward", fits)
    with pytest.raises(UserError, match=r"GPU's memory \(CUDA out of .* MiB\.\); lower batch_size"):
        flags = ("--prompt_task", "KS", "--date", f"full{training}")
        call("train", prepared, *flags, "--set", "max_epoch=1", "batch_size=8")


def test_a_name_that_numpy_2_removed_exists_only_for_fairseq() -> None:
    """fairseq's own datasets use it; ours do not."""
    before = hasattr(np, "compat")
    with patched():
        assert np.zeros(2, dtype=np.compat.long).dtype == np.int64
    assert hasattr(np, "compat") == before


def train(root: Path, date: str, *knobs: str) -> str:
    flags = ("--prompt_task", "KS", "--date", f"few_{date}", "--recipe", "fast", "--set")
    return call("train", root, *flags, *knobs)


def curve(root: Path, date: str) -> dict[int, dict[str, float]]:
    return valid_curve(Workspace(root).logs("KS", "tiny100", f"few_{date}") / "train.log")


def test_an_epoch_of_one_update(prepared: Path) -> None:
    """Validation runs after every ``validate_every`` updates, not after each epoch. The best
    checkpoint is kept, and the record contains the shots.
    """
    knobs = ("shots=3", "max_update=45", "validate_every=10", "warmup_updates=5")
    printed = train(prepared, "update", *knobs)
    assert "few-shot: 12 of 203 rows, 3 of each class" in printed
    scores = curve(prepared, "update")
    assert list(scores) == [10, 20, 30, 40, 45]
    folder = Workspace(prepared).checkpoints("KS", "tiny100", "few_update")
    record = read_record(folder)
    assert record.training["shots"] == 3
    best = max(score["accuracy"] for score in scores.values())
    assert record.valid["accuracy"] == best == scores[record.run.updates]["accuracy"]
    kept = {path.name for path in folder.glob("*.pt")}
    assert kept == {"checkpoint_best.pt", "checkpoint_last.pt"}
    with pytest.raises(UserError, match="another shots"):
        train(prepared, "update", "shots=2", *knobs[1:])


def test_validations_by_updates_end_with_the_last_epoch(prepared: Path) -> None:
    knobs = ("shots=8", "max_update=0", "lr_schedule=fixed", "max_epoch=5", "validate_every=4")
    train(prepared, "epochs", *knobs)
    assert list(curve(prepared, "epochs")) == [4, 8, 10]
    assert "has finished" in train(prepared, "epochs", *knobs)


def test_a_run_cut_off_within_an_epoch_resumes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resumes from the last validation and ends with the weights of an uninterrupted run, also
    with prompt dropout and noise on the units.
    """
    knobs = ("max_update=16", "validate_every=5", "warmup_updates=2", "prompt_dropout=0.1",
             "unit_noise=0.2")  # fmt: skip
    train(prepared, "whole", *knobs)
    step = Trainer.train_step

    def cut_off(trainer: Trainer, *args: object, **options: object) -> object:
        if trainer.get_num_updates() == 12:
            raise KeyboardInterrupt
        return step(trainer, *args, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "train_step", cut_off)
        train(prepared, "cut", *knobs)
    assert "Loaded checkpoint" in train(prepared, "cut", *knobs)
    whole, cut = (
        Workspace(prepared).checkpoints("KS", "tiny100", f"few_{date}") / "checkpoint_last.pt"
        for date in ("whole", "cut")
    )
    resumed = torch.load(cut, weights_only=True)["model"]
    for name, tensor in torch.load(whole, weights_only=True)["model"].items():
        assert torch.equal(tensor, resumed[name]), name
