"""Noise on the units of train rows: how much, where, and the same again after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import data_stages
from ulm_prompt.prompt_lm.data import RowDataset, UnitNoise
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.prompt_lm.task import UnitPromptConfig, UnitPromptTask
from ulm_prompt.training.recipe import load_recipe


def test_a_tenth_of_the_units_is_replaced_and_a_tenth_left_out() -> None:
    row = np.full(50_000, 7)
    found = UnitNoise(0.1, np.array([8, 9]), seed=1)(row, index=3, epoch=1)
    assert (row == 7).all()
    assert len(found) / 50_000 == pytest.approx(0.9, abs=0.01)
    shares = [np.mean(found == unit) for unit in (7, 8, 9)]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_what_stays_keeps_its_order() -> None:
    row = np.arange(1000)
    found = UnitNoise(0.3, np.array([-1]), seed=1)(row, index=0, epoch=1)
    stayed = found[found >= 0]
    assert (np.diff(stayed) > 0).all() and 400 < len(stayed) < 580


def test_one_unit_stays_of_the_shortest_row() -> None:
    noise = UnitNoise(0.95, np.array([5]), seed=1)
    assert all(len(noise(np.array([7, 7]), index, 1)) >= 1 for index in range(100))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    tiny.write_corpus(root)
    tiny.write_lm(Workspace(root).lm("tiny100"))
    data_stages(root)
    return root


def served(dataset: RowDataset, epoch: int) -> list[list[int]]:
    dataset.set_epoch(epoch)
    return [dataset[index]["tokens"].tolist() for index in range(len(dataset))]


def test_train_rows_alone_are_disturbed_and_in_every_epoch_otherwise(root: Path) -> None:
    workspace = Workspace(root)
    folders = {"data": str(workspace.data_bin("tiny100", "KS")), "lm": str(workspace.lm("tiny100"))}
    task = UnitPromptTask.setup_task(
        UnitPromptConfig(**folders, unit_noise=0.2, max_tokens=0, seed=1)
    )
    symbols = load_dictionary(workspace.lm("tiny100"))
    for split in ("train", "valid"):
        task.load_dataset(split)
        clean = RowDataset(workspace.data_bin("tiny100", "KS") / split, symbols, shuffle=False)
        first, second = (served(task.datasets[split], epoch) for epoch in (1, 2))
        assert served(task.datasets[split], 1) == first, "the same again"
        if split == "valid":
            assert first == second == served(clean, 1)
            continue
        different = [a != b for a, b in zip(first, second)]
        assert np.mean(different) > 0.5
        batch = task.datasets[split].collater([task.datasets[split][i] for i in range(8)])
        for index in range(8):  # the labels are where the loss looks for them
            labels = clean[index]["tokens"][clean[index]["separator"] :].tolist()
            found = [unit for unit in batch["target"][index].tolist() if unit != clean.pad]
            assert found == labels


@pytest.mark.parametrize("share", [-0.1, 1.0, 8])
def test_a_share_is_no_percentage(share: float) -> None:
    with pytest.raises(UserError, match=f"unit_noise={float(share)}: expected 0 or more, below 1"):
        load_recipe("fast", [f"unit_noise={share}"])
