"""The paper's tables: what they hold, what they ask for, and how they are made."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from reproduction import figures as figures_module
from reproduction.cells import FIRST_SEED, PAPER, load_paper
from reproduction.documents import DOCUMENTS, FIGURES, put_table, split_at_marks
from reproduction.figures import Figure, finished, read_figures, with_earlier, write_figures
from reproduction.needs import missing
from reproduction.stages import trained_numbers
from reproduction.table import millions, render
from tests.conftest import stage
from tests.ulm_prompt import tiny

TABLES = """
tasks: {KS: {metric: accuracy, corpus: keywords (from a friend)}}
methods: {PT: prompt, FT-LM: whole}
cells:
  - {method: PT, task: KS, unit_model: tiny100, published: 95.16, parameters: 0.03M, prompt: 1,
     own_lm: [max_update=60]}
  - {method: FT-LM, task: KS, unit_model: tiny100, own_lm: [no_such_knob=1]}
  - {method: PT, task: KS, unit_model: hubert100, prompt: 3}
"""


@pytest.fixture
def paper():
    return load_paper(PAPER)


def figure(**changes: object) -> Figure:
    values = {
        "method": "PT", "task": "KS", "unit_model": "hubert100", "seed": 1, "value": 90.0,
        "trained_parameters": 77_824, "lm": "released", "lm_parameters": 151_263_232,
        "updates": 10, "git_revision": "abc",
    }  # fmt: skip
    return Figure(**values | changes)


def test_the_published_prompt_lengths_give_the_published_counts(paper):
    counts = {6: 154_624, 3: 77_824, 2: 52_224, 176: 4_506_624}
    prompts = [cell for cell in paper.cells if cell.method == "PT"]
    assert {cell.prompt for cell in prompts} == set(counts)
    for cell in prompts:
        count = trained_numbers(cell.prompt, 1024, 12)
        assert count == counts[cell.prompt]
        assert millions(count) == cell.parameters


def test_a_row_has_the_mean_over_seeds_and_an_empty_cell_says_so(paper):
    figures = [figure(), figure(seed=2, value=94.0), figure(task="IC", lm="own", value=1.234)]
    *_, published, ours = render(paper, figures).splitlines()[:4]
    assert published.split("|")[2].strip() == "*95.16* (0.08M)"
    assert [entry.strip() for entry in ours.split("|")[2:-1]] == [
        "**92.00** ± 2.83 (2 seeds; 0.08M)", "**1.23** (0.08M; own LM, 151M)", "–", "–",
    ]  # fmt: skip


def test_figures_come_back_from_their_file(tmp_path):
    figures = [figure(seed=seed, value=random.random()) for seed in range(3)]
    write_figures(tmp_path / "results.csv", figures)
    assert read_figures(tmp_path / "results.csv") == figures
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of figures"):
        read_figures(tmp_path / "other.csv")


def test_every_finished_seed_is_shown_whatever_was_asked_for(paper, monkeypatch, tmp_path):
    """The first three seeds and the fifth are there."""
    there = {FIRST_SEED: 1.0, FIRST_SEED + 1: 2.0, FIRST_SEED + 2: 3.0, FIRST_SEED + 4: 5.0}
    monkeypatch.setattr(
        figures_module, "read_figure",
        lambda cell, metric, seed, workspace: figure(value=there[seed]) if seed in there else None,
    )  # fmt: skip
    for asked, values in {1: [1, 2, 3], 4: [1, 2, 3], 5: [1, 2, 3, 5], 9: [1, 2, 3, 5]}.items():
        runs = finished(paper.cells[0], "accuracy", asked, Workspace(tmp_path))
        assert [run.value for run in runs] == values


def test_an_empty_workspace_is_told_of_every_file(paper, tmp_path):
    """Each line names a file that is not there; and no file of the list is named twice."""
    for cell in paper.cells:
        lines = missing(cell, paper, Workspace(tmp_path))
        if cell.method == "FT-DM" and cell.task in ("ASR", "SF"):
            assert "is not built here" in lines[0]
            continue
        paths = [Path(line.split(": ", 1)[0]) for line in lines]
        assert paths and len(set(paths)) == len(paths)
        assert all(tmp_path in path.parents and not path.exists() for path in paths), cell


def test_the_documents_hold_the_table_of_their_figures(paper):
    table = render(paper, read_figures(FIGURES))
    for path in DOCUMENTS:
        assert split_at_marks(path)[1] == table, f"{path.name}: python reproduce.py --write_docs"


def test_the_documents_keep_the_cells_of_other_workspaces():
    earlier = [Figure("PT", "KS", "hubert100", seed, 90.0) for seed in (1, 2)]
    earlier += [Figure("PT", "IC", "hubert100", 1, 91.0), Figure("FT-LM", "KS", "cpc100", 1, 92.0)]
    new = [Figure("n-grams", "KS", "hubert100", 1, 94.0), Figure("PT", "KS", "hubert100", 2, 95.0)]
    assert [f.value for f in with_earlier(new, earlier)] == [91.0, 95.0, 92.0, 94.0]
    assert with_earlier(earlier, []) == with_earlier([], earlier)


def test_only_what_stands_between_the_marks_changes(tmp_path):
    path = tmp_path / "README.md"
    shutil.copy(DOCUMENTS[0], path)
    before, table, after = split_at_marks(path)
    put_table(path, "| new |\n")
    assert split_at_marks(path) == (before, "| new |\n", after)
    put_table(path, table)
    assert path.read_text() == DOCUMENTS[0].read_text()
    path.write_text("no marks")
    with pytest.raises(UserError, match="expected the marks"):
        put_table(path, table)


def test_cells_are_made_once_and_a_failure_does_not_stop_the_rest(tmp_path):
    tiny.write_corpus(tmp_path)
    tiny.write_lm(Workspace(tmp_path).lm("tiny100"))
    (Workspace(tmp_path).lm("tiny100") / "ulm.json").write_text("{}")
    (tmp_path / "tables.yaml").write_text(TABLES)
    flags = ("--workspace", tmp_path, "--tables", tmp_path / "tables.yaml")
    said = stage("reproduce.py", *flags, code=1)
    assert "no_such_knob" in said and "error: FT-LM KS tiny100 seed 100501" in said
    assert f"missing {tmp_path}/corpora/speech_commands: keywords (from a friend)" in said
    (entry,) = read_figures(tmp_path / "samples" / "tables" / "results.csv")
    assert entry.lm == "own" and 0 < entry.updates <= 60
    scores = stage("ulm_prompt/cal_acc.py", "--workspace", tmp_path, "--sample_date", "tables")
    assert re.search(r" accuracy +([\d.]+)", scores)[1] == f"{entry.value:.2f}"
    published = trained_numbers(1, 1024, 12)
    assert published - trained_numbers(1, 32, 3) < entry.trained_parameters <= published
    again = stage("reproduce.py", *flags, "--list")
    assert f"**{entry.value:.2f}**" in again and "$ python" not in again
    again = stage("reproduce.py", *flags, "--method", "PT")
    assert "ulm_prompt/" not in again.split("|", 1)[0]


def test_a_cell_that_the_tables_lack_is_named(tmp_path):
    said = stage("reproduce.py", "--workspace", tmp_path, "--unit_model", "logmel100", code=2)
    assert "no cell with logmel100" in said
