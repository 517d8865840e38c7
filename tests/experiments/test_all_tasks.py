"""SpeechPrompt v2's recipe and table, and all tasks with one command."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import runs
from experiments.paper import PAPERS, load_paper, missing, run_of, trained_numbers
from experiments.tables import Figure, render
from pipeline.errors import UserError
from pipeline.rows import SPLITS, write_rows
from pipeline.workspace import Workspace
from reproduce import main
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.prompt_data.label_names import unit_names
from ulm_prompt.prompt_data.tasks import load_task
from ulm_prompt.prompt_lm.prompt import LabelMap, Prompt
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
    tiny.write_lm(Workspace(tmp_path).lm("hubert100"))
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


def run_here(command: list[str], prefix: str, environment: dict[str, str]) -> int:
    """A stage in this process, its workspace the last flag; its exit code."""
    print("$ python", *command)
    try:
        call(Path(command[0]).stem, Path(command[-1]), *command[1:])
    except UserError as error:
        print(error)
        return 2
    return 0


def reproduced(monkeypatch: pytest.MonkeyPatch, workspace: Path, *flags: str) -> None:
    words = ["reproduce.py", "--workspace", str(workspace), *flags]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(runs, "run_script", run_here)
    one_by_one = contextlib.nullcontext(SimpleNamespace(map=map))  # torch and signals: no threads
    monkeypatch.setattr(runs, "ThreadPoolExecutor", lambda jobs: one_by_one)
    main()


def test_one_failing_task_of_three_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run makes only what the first could not."""
    workspace = Workspace(tmp_path)
    prepare(tmp_path, *tiny.LABELS)
    rows = [workspace.rows("table", "tiny100", split) for split in SPLITS]
    for path in rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no row\n")
    flags = "--all", "--unit_model", "tiny100", "--set", "max_update=3", "warmup_updates=0"
    with pytest.raises(SystemExit):
        reproduced(monkeypatch, tmp_path, *flags)
    printed = capsys.readouterr()
    assert "left out, neither corpus nor rows are here: ASR, SF, " in printed.out
    assert "error: task TABLE tiny100: see the messages above" in printed.err
    assert "(2 of 3)" in printed.out and "| KS | accuracy | tiny100 | – | **" in printed.out
    for path in rows:
        write_rows(path, tiny.rows("speech_commands", 40, 1))
    reproduced(monkeypatch, tmp_path, *flags)
    again = capsys.readouterr().out
    assert "(3 of 3)" in again and "train.py --date task-seed100501 --recipe fast" in again
    assert "--prompt_task KS" not in again and (tmp_path / "samples/tables_all").is_dir()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--all", "--unit_model", "tiny100"), "no task has a corpus or rows here"),
        (("--all",), "give --unit_model"),
        (("--set", "lr=1"), "for --all alone"),
        (("--paper", "v2", "--write_docs"), "--paper v1 alone"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    flags: tuple[str, ...], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=what):
        reproduced(monkeypatch, tmp_path, *flags)
