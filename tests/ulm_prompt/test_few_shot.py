"""Few-shot training: which rows are drawn, and validation where an epoch is one update."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from fairseq.trainer import Trainer

from pipeline.errors import UserError
from pipeline.rows import read_rows, write_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from ulm_prompt.prompt_lm.data import draw_shots
from ulm_prompt.scoring.pictures import valid_curve

# four classes of which one has three distinct rows; all are drawn several times
ROWS = [((each, each % 7), (each % 4, 9)) for each in range(40) if each % 4 or each < 12]
BALANCED = ROWS * 3 + ROWS[::-1]


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_every_class_gives_so_many_distinct_rows(shots: int) -> None:
    places = draw_shots(BALANCED, shots, seed=3)
    assert list(places) == sorted(places)
    drawn = [BALANCED[place] for place in places]
    assert len(set(drawn)) == len(drawn)
    counts = Counter(labels for _, labels in drawn)
    assert counts == {(0, 9): min(shots, 3), **{(each, 9): shots for each in (1, 2, 3)}}


def test_a_draw_depends_on_the_seed_and_rows_alone() -> None:
    few, more = (draw_shots(BALANCED, shots, seed=3) for shots in (2, 5))
    assert set(few) < set(more), "nested"
    assert list(few) == list(draw_shots(iter(BALANCED), 2, seed=3))
    assert list(few) != list(draw_shots(BALANCED, 2, seed=4))
    renamed = [(units, tuple(90 - label for label in labels)) for units, labels in BALANCED]
    assert list(few) == list(draw_shots(renamed, 2, seed=3)), "another verbalizer"
    assert len(draw_shots(BALANCED, 1000, seed=3)) == len(ROWS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KS, whose train rows come twice."""
    root = tmp_path_factory.mktemp("workspace")
    workspace = Workspace(root)
    tiny.write_corpus(root)
    path = workspace.rows("speech_commands", "tiny100", "train")
    write_rows(path, 2 * list(read_rows(path)))
    tiny.write_lm(workspace.lm("tiny100"))
    data_stages(root)
    return root


def train(root: Path, date: str, *knobs: str) -> str:
    return call("train", root, "--date", date, "--recipe", "fast", "--set", *knobs)


def test_an_epoch_of_one_update(root: Path) -> None:
    """Validation comes every so many updates, not after each of them; the best one's checkpoint is
    kept; the card says how many shots.
    """
    knobs = ("shots=3", "max_update=45", "validate_every=10", "warmup_updates=5")
    printed = train(root, "few", *knobs)
    assert "few-shot: 12 of 406 rows, 3 of each class" in printed
    workspace = Workspace(root)
    curve = valid_curve(workspace.logs("KS", "tiny100", "few") / "train.log")
    assert list(curve) == [10, 20, 30, 40, 45]
    folder = workspace.checkpoints("KS", "tiny100", "few")
    card = json.loads((folder / "prompt.json").read_text())
    assert card["training"]["shots"] == 3
    best = max(scores["accuracy"] for scores in curve.values())
    assert card["valid"]["accuracy"] == best == curve[card["run"]["updates"]]["accuracy"]
    kept = {path.name for path in folder.glob("*.pt")}
    assert kept == {"checkpoint_best.pt", "checkpoint_last.pt"}
    with pytest.raises(UserError, match="another shots"):
        train(root, "few", "shots=2", *knobs[1:])


def test_validations_by_updates_end_with_the_last_epoch(root: Path) -> None:
    knobs = ("shots=8", "max_update=0", "lr_schedule=fixed", "max_epoch=5", "validate_every=4")
    train(root, "epochs", *knobs)
    log = Workspace(root).logs("KS", "tiny100", "epochs") / "train.log"
    assert list(valid_curve(log)) == [4, 8, 10]
    assert "has finished" in train(root, "epochs", *knobs)


def test_a_run_cut_off_within_an_epoch_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last validation, to the weights of one that was not, prompt dropout and noise on
    the units included.
    """
    knobs = ("max_update=16", "validate_every=5", "warmup_updates=2", "prompt_dropout=0.1",
             "unit_noise=0.2")  # fmt: skip
    train(root, "whole", *knobs)
    step = Trainer.train_step

    def cut_off(trainer: Trainer, *args: object, **others: object) -> object:
        if trainer.get_num_updates() == 12:
            raise KeyboardInterrupt
        return step(trainer, *args, **others)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "train_step", cut_off)
        train(root, "cut", *knobs)
    assert "Loaded checkpoint" in train(root, "cut", *knobs)
    models = []
    for date in ("whole", "cut"):
        folder = Workspace(root).checkpoints("KS", "tiny100", date)
        models.append(torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"])
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
