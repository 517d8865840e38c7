"""Few-shot training: validation where an epoch is one update, and a run cut off within one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fairseq.trainer import Trainer

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.ulm_prompt.in_process import call
from ulm_prompt.scoring.scores import valid_curve


def train(root: Path, date: str, *knobs: str) -> str:
    flags = ("--prompt_task", "KS", "--date", f"few_{date}", "--recipe", "fast", "--set")
    return call("train", root, *flags, *knobs)


def test_an_epoch_of_one_update(prepared: Path) -> None:
    """Validation comes every so many updates, not after each of them; the best one's checkpoint is
    kept; the card says how many shots.
    """
    knobs = ("shots=3", "max_update=45", "validate_every=10", "warmup_updates=5")
    printed = train(prepared, "update", *knobs)
    assert "few-shot: 12 of 203 rows, 3 of each class" in printed
    workspace = Workspace(prepared)
    curve = valid_curve(workspace.logs("KS", "tiny100", "few_update") / "train.log")
    assert list(curve) == [10, 20, 30, 40, 45]
    folder = workspace.checkpoints("KS", "tiny100", "few_update")
    card = json.loads((folder / "prompt.json").read_text())
    assert card["training"]["shots"] == 3
    best = max(scores["accuracy"] for scores in curve.values())
    assert card["valid"]["accuracy"] == best == curve[card["run"]["updates"]]["accuracy"]
    kept = {path.name for path in folder.glob("*.pt")}
    assert kept == {"checkpoint_best.pt", "checkpoint_last.pt"}
    with pytest.raises(UserError, match="another shots"):
        train(prepared, "update", "shots=2", *knobs[1:])


def test_validations_by_updates_end_with_the_last_epoch(prepared: Path) -> None:
    knobs = ("shots=8", "max_update=0", "lr_schedule=fixed", "max_epoch=5", "validate_every=4")
    train(prepared, "epochs", *knobs)
    log = Workspace(prepared).logs("KS", "tiny100", "few_epochs") / "train.log"
    assert list(valid_curve(log)) == [4, 8, 10]
    assert "has finished" in train(prepared, "epochs", *knobs)


def test_a_run_cut_off_within_an_epoch_goes_on(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last validation, to the weights of one that was not, prompt dropout and noise on
    the units included.
    """
    knobs = ("max_update=16", "validate_every=5", "warmup_updates=2", "prompt_dropout=0.1",
             "unit_noise=0.2")  # fmt: skip
    train(prepared, "whole", *knobs)
    step = Trainer.train_step

    def cut_off(trainer: Trainer, *args: object, **others: object) -> object:
        if trainer.get_num_updates() == 12:
            raise KeyboardInterrupt
        return step(trainer, *args, **others)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "train_step", cut_off)
        train(prepared, "cut", *knobs)
    assert "Loaded checkpoint" in train(prepared, "cut", *knobs)
    models = []
    for date in ("whole", "cut"):
        folder = Workspace(prepared).checkpoints("KS", "tiny100", f"few_{date}")
        models.append(torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"])
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
