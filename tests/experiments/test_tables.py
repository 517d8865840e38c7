"""The paper's tables: what they hold, what they ask for, and how they are made."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from experiments.paper import PAPER, load_paper, missing, trained_numbers
from experiments.tables import (
    DOCUMENT,
    FIGURES,
    Figure,
    millions,
    put_table,
    read_figures,
    render,
    with_earlier,
    write_figures,
)
from pipeline.errors import UserError
from pipeline.rows import SPLITS, Row, write_rows
from pipeline.workspace import Workspace
from reproduce import chosen
from tests.ulm_prompt import tiny


@pytest.fixture(scope="module")
def paper():
    return load_paper(PAPER)


def test_the_published_prompt_lengths_give_the_published_counts(paper):
    counts = {6: 154_624, 3: 77_824, 2: 52_224, 176: 4_506_624}
    prompts = [cell for cell in paper.cells if cell.method == "PT"]
    assert {cell.prompt for cell in prompts} == set(counts)
    for cell in prompts:
        count = trained_numbers(cell.prompt, 1024, 12)
        assert count == counts[cell.prompt]
        assert millions(count) == cell.parameters


def test_a_row_has_the_mean_over_seeds_and_an_empty_cell_says_so(paper):
    figures = [
        Figure("PT", task, "hubert100", seed, value, 77_824, lm, 151_263_232)
        for task, seed, value, lm in (
            ("KS", 1, 90.0, "released"), ("KS", 2, 94.0, "released"), ("IC", 1, 1.234, "own"),
        )
    ]  # fmt: skip
    *_, published, ours = render(paper, figures).splitlines()[:4]
    assert published.split("|")[2].strip() == "*95.16* (0.08M)"
    assert [entry.strip() for entry in ours.split("|")[2:-1]] == [
        "**92.00** ± 2.83 [91.0, 92.9] (2 seeds; 0.08M)",
        "**1.23** [0.9, 1.6] (0.08M; own LM, 151M)", "–", "–",
    ]  # fmt: skip


def test_figures_come_back_from_their_file(tmp_path):
    path = tmp_path / "results.csv"
    write_figures(path, read_figures(FIGURES))
    assert path.read_text() == FIGURES.read_text()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of figures"):
        read_figures(path)


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
        assert all(f"--workspace {tmp_path}" in line for line in lines if "python " in line)


def test_the_demo_s_corpus_is_not_the_paper_s(paper, tmp_path):
    """Not even after it was quantised; units from elsewhere are."""
    (cell,) = (c for c in paper.cells if str(c) == "n-grams KS hubert100")
    workspace = Workspace(tmp_path)
    root = tmp_path / "corpora" / "speech_commands"
    root.mkdir(parents=True)
    assert not any(str(root) in line for line in missing(cell, paper, workspace))
    (root / "demo.json").write_text("{}")
    tiny.write_corpus(tmp_path, "hubert100")
    assert missing(cell, paper, workspace) == []
    quantized = workspace.rows("speech_commands", "hubert100", "train").with_name("quantized")
    quantized.mkdir()
    assert f"{root}: holds the demo's corpus" in missing(cell, paper, workspace)[0]


def test_rows_of_texts_need_the_names_of_their_labels(paper, tmp_path):
    (cell,) = (c for c in paper.cells if str(c) == "PT ASR hubert100")
    rows = [Row("a.wav", "1 2", "0 1")]
    for split in SPLITS:
        write_rows(Workspace(tmp_path).rows("librispeech", "hubert100", split), rows)
    tiny.write_lm(Workspace(tmp_path).lm("hubert100"))
    (line,) = missing(cell, paper, Workspace(tmp_path))
    assert "preprocess/librispeech/data/hubert100/labels.json: what each label" in line


def test_the_documents_keep_the_cells_of_other_workspaces(paper):
    earlier = [Figure("PT", "KS", "hubert100", seed, 90.0) for seed in (1, 2)]
    earlier += [Figure("PT", "IC", "hubert100", 1, 91.0), Figure("FT-LM", "KS", "cpc100", 1, 92.0)]
    new = [Figure("n-grams", "KS", "hubert100", 1, 94.0), Figure("PT", "KS", "hubert100", 2, 95.0)]
    assert [f.value for f in with_earlier(paper, new, earlier)] == [91.0, 95.0, 92.0, 94.0]
    assert with_earlier(paper, earlier, []) == with_earlier(paper, [], earlier)


def test_the_documents_hold_the_table_and_only_it_is_replaced(paper, tmp_path):
    path = tmp_path / "results.md"
    shutil.copy(DOCUMENT, path)
    text, table = path.read_text(), render(paper, read_figures(FIGURES))
    assert text.count(table) == 1, "python reproduce.py --write_docs"
    put_table(path, "| new |\n")
    assert path.read_text() == text.replace(table, "| new |\n")
    path.write_text("no marks")
    with pytest.raises(UserError, match="expected the marks"):
        put_table(path, table)


def test_a_cell_that_the_tables_lack_is_named(paper):
    flags = {"method": "PT", "prompt_task": None, "unit_model": "logmel100"}
    with pytest.raises(UserError, match="no cell with PT logmel100"):
        chosen(paper, argparse.Namespace(**flags))
