"""SpeechPrompt v2's recipe and table, and all tasks with one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.paper import PAPERS, all_tasks, load_paper, missing, run_of, trained_numbers
from experiments.tables import Figure, render
from pipeline.errors import UserError
from pipeline.rows import SPLITS, write_rows
from pipeline.workspace import Workspace
from tests.conftest import stage
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_data.label_names import unit_names
from ulm_prompt.prompt_data.tasks import load_task
from ulm_prompt.prompt_lm.label_map import LabelMap
from ulm_prompt.prompt_lm.prompt import Prompt
from ulm_prompt.training.recipe import load_recipe


@pytest.fixture(scope="module")
def paper():
    return load_paper(PAPERS["v2"])


@pytest.mark.parametrize("classes", [2, 12, 1251])
def test_the_recipe_trains_the_published_numbers_but_the_special_symbols_rows(classes: int) -> None:
    recipe = load_recipe("v2", [])
    assert (recipe.verbalizer, recipe.lr, recipe.patience, recipe.batch_size) == (
        "learnable", 5e-3, 1, 32,
    )  # fmt: skip
    prompt = Prompt(12, 5, 1024)
    label_map = LabelMap(
        unit_names([str(unit) for unit in range(100)], classes), tiny.dictionary(), 1
    )
    assert sum(p.numel() for p in prompt.parameters()) == trained_numbers(5, 1024, 12) == 129_024
    trained = sum(p.numel() for part in (prompt, label_map) for p in part.parameters())
    assert trained == 129_024 + 104 * (classes + 4) - 4 * 104


def test_every_cell_has_a_task_and_says_what_it_lacks(paper, tmp_path: Path) -> None:
    assert {cell.task for cell in paper.cells} == set(paper.tasks)
    for cell in paper.cells:
        load_task(cell.task)
        assert missing(cell, paper, Workspace(tmp_path)), cell
    released = run_of(paper.cells[0], 1, Workspace(tmp_path))
    assert released.recipe == "v2" and "verbalizer=learnable" in released.knobs


def test_the_table_lists_every_cell_with_its_source_and_the_mean_of_those_at_hand(paper) -> None:
    figures = [
        Figure("v2", task, "hubert100", seed, value, 130_688, "released")
        for task, seed, value in (("KS", 1, 90.0), ("KS", 2, 94.0), ("GRABO", 1, 95.0),
                                  ("FAKE_SPEECH", 1, 12.0))
    ]  # fmt: skip
    lines = render(paper, figures).splitlines()
    assert (
        "| KS | accuracy | hubert100 | *94.50* (0.13M; as quoted by users) | **92.00**" in lines[2]
    )
    assert "| *92.70* (0.13M; as quoted by users; 92.4 too) |" in lines[3]
    assert lines[-1].endswith("| **93.50** (2 of 13) |") and len(lines) == len(paper.cells) + 3


def test_one_failing_task_of_three_does_not_stop_the_others(tmp_path: Path) -> None:
    """The second run makes what the first could not."""
    workspace = Workspace(tmp_path)
    for downstream in tiny.LABELS:
        tiny.write_corpus(tmp_path, "tiny100", downstream)
    rows = [workspace.rows("table", "tiny100", split) for split in SPLITS]
    for path in rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no row\n")
    tiny.write_lm(workspace.lm("tiny100"))
    (workspace.lm("tiny100") / "ulm.json").write_text("{}")
    flags = ("reproduce.py", "--workspace", tmp_path, "--all", "--unit_model", "tiny100",
             "--set", "max_update=60")  # fmt: skip
    said = stage(*flags, code=1)
    assert "left out, neither corpus nor rows are here: ASR, SF, " in said
    assert "error: task TABLE tiny100: see the messages above" in said
    assert "(2 of 3)" in said and "| KS | accuracy | tiny100 | – | **" in said
    for path in rows:
        write_rows(path, tiny.rows("speech_commands", 40, 1))
    again = stage(*flags)
    assert "(3 of 3)" in again and "--prompt_task KS" not in again


def test_flags_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task has a corpus or rows here"):
        all_tasks("tiny100", [], Workspace(tmp_path))
    for flags, what in (
        (("--all",), "give --unit_model"),
        (("--set", "lr=1"), "for --all alone"),
        (("--paper", "v2", "--write_docs"), "--paper v1 alone"),
    ):
        assert what in stage("reproduce.py", "--workspace", tmp_path, *flags, code=2)
