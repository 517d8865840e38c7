"""The papers' tables and ``--all``: their contents, what they need, and how they are made."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import runs
from experiments.paper import PAPERS, Cell, Paper, TaskEntry, load_paper, missing, run_of
from experiments.runs import trained_parameters
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
from reproduce import main
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.prompt_data.label_names import unit_names
from ulm_prompt.prompt_lm.prompt import LabelMap, Prompt
from ulm_prompt.training.recipe import load_recipe

V1, V2 = (load_paper(path) for path in PAPERS.values())


def cell(name: str) -> Cell:
    return next(cell for cell in V1.cells if str(cell) == name)


def test_the_published_prompt_lengths_give_the_published_counts() -> None:
    counts = {6: 154_624, 3: 77_824, 2: 52_224, 176: 4_506_624}
    prompts = [cell for cell in V1.cells if cell.method == "PT"]
    assert {cell.prompt for cell in prompts} == set(counts)
    for prompt in prompts:
        count = trained_parameters(prompt.prompt, 1024, 12)
        assert count == counts[prompt.prompt] and millions(count) == prompt.parameters


@pytest.mark.parametrize("classes", [2, 12, 1251])
def test_recipe_v2_trains_the_published_numbers_but_the_special_symbols_rows(classes: int) -> None:
    recipe = load_recipe("v2", [])
    knobs = (recipe.verbalizer, recipe.lr, recipe.patience, recipe.batch_size)
    assert knobs == ("learnable", 5e-3, 1, 32)
    prompt, units = Prompt(12, 5, 1024), [str(unit) for unit in range(100)]
    label_map = LabelMap(unit_names(units, classes), tiny.dictionary(), 1)
    assert sum(p.numel() for p in prompt.parameters()) == trained_parameters(5, 1024, 12) == 129_024
    trained = sum(p.numel() for part in (prompt, label_map) for p in part.parameters())
    assert trained == 129_024 + 104 * (classes + 4) - 4 * 104


def test_a_row_has_the_mean_over_seeds_and_an_empty_cell_says_so() -> None:
    figures = [
        Figure("PT", task, "hubert100", seed, value, 77_824, lm, 151_263_232)
        for task, seed, value, lm in (
            ("KS", 1, 90.0, "released"), ("KS", 2, 94.0, "released"), ("IC", 1, 1.234, "own"),
        )
    ]  # fmt: skip
    *_, published, ours = render(V1, figures).splitlines()[:4]
    assert published.split("|")[2].strip() == "*95.16* (0.08M)"
    assert [entry.strip() for entry in ours.split("|")[2:-1]] == [
        "**92.00** ± 2.83 [91.0, 92.9] (2 seeds; 0.08M)",
        "**1.23** [0.9, 1.6] (0.08M; own LM, 151M)", "–", "–",
    ]  # fmt: skip


def test_a_table_by_task_has_sources_and_the_mean_of_those_at_hand() -> None:
    figures = [
        Figure("v2", task, "hubert100", seed, value, 130_688, "released")
        for task, seed, value in (("KS", 1, 90.0), ("KS", 2, 94.0), ("GRABO", 1, 95.0),
                                  ("FAKE_SPEECH", 1, 12.0))
    ]  # fmt: skip
    lines = render(V2, figures).splitlines()
    assert "| KS | accuracy | hubert100 | *94.50* (0.13M; as quoted by users) | **92.00" in lines[2]
    assert "| *92.70* (0.13M; as quoted by users; 92.4 too) |" in lines[3]
    assert lines[-1].endswith("| **93.50** (2 of 13) |") and len(lines) == len(V2.cells) + 3


def test_the_documents_hold_the_figures_and_their_table(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_figures(path, read_figures(FIGURES))
    assert path.read_text() == FIGURES.read_text()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of figures"):
        read_figures(path)
    shutil.copy(DOCUMENT, path)
    text, table = path.read_text(), render(V1, read_figures(FIGURES))
    assert text.count(table) == 1, "python reproduce.py --write_docs"
    put_table(path, "| new |\n")
    assert path.read_text() == text.replace(table, "| new |\n")
    path.write_text("no marks")
    with pytest.raises(UserError, match="expected the marks"):
        put_table(path, table)


def test_the_documents_keep_the_cells_of_other_workspaces() -> None:
    earlier = [Figure("PT", "KS", "hubert100", seed, 90.0) for seed in (1, 2)]
    earlier += [Figure("PT", "IC", "hubert100", 1, 91.0), Figure("FT-LM", "KS", "cpc100", 1, 92.0)]
    new = [Figure("n-grams", "KS", "hubert100", 1, 94.0), Figure("PT", "KS", "hubert100", 2, 95.0)]
    assert [f.value for f in with_earlier(V1, new, earlier)] == [91.0, 95.0, 92.0, 94.0]
    assert with_earlier(V1, earlier, []) == with_earlier(V1, [], earlier)


@pytest.mark.parametrize("paper", [V1, V2], ids=PAPERS)
def test_an_empty_workspace_is_told_of_every_file(paper: Paper, tmp_path: Path) -> None:
    """Each line names a missing file, and no file is named twice."""
    assert {cell.task for cell in paper.cells} == set(paper.tasks)
    for wanted in paper.cells:
        lines = missing(wanted, paper, Workspace(tmp_path))
        if wanted.method == "FT-DM" and wanted.task in ("ASR", "SF"):
            assert "is not implemented" in lines[0]
            continue
        if lines[-1].startswith("instead of corpus, checkpoint, k-means: rows"):
            assert str(tmp_path / "preprocess") in lines.pop()
        paths = [Path(line.removeprefix("missing ").split(": ", 1)[0]) for line in lines]
        assert paths and len(set(paths)) == len(paths)
        assert all(tmp_path in path.parents and not path.exists() for path in paths), wanted
        assert all(f"--workspace {tmp_path}" in line for line in lines if "python " in line)


def test_what_no_table_lists_is_learned_not_downloaded(tmp_path: Path) -> None:
    wanted = Cell("task", "TABLE", "mfcc100", prompt=5)
    paper = Paper(tasks={"TABLE": TaskEntry("accuracy", "your recordings")})
    kmeans, lm = missing(wanted, paper, Workspace(tmp_path))[-2:]
    flags = f"--unit_model mfcc100 --workspace {tmp_path}"
    learn = "python preprocess/runner.py --action learn_kmeans"
    assert kmeans.endswith(f"mfcc100_km.npz: {learn} {flags}")
    assert lm.endswith(
        f"mfcc100_lm: python ulm_prompt/train_ulm.py --date tables --config medium {flags}"
    )


def test_on_a_released_lm_the_recipe_is_the_paper_s(tmp_path: Path) -> None:
    tiny.write_lm(Workspace(tmp_path).lm("hubert100"))
    run = run_of(V2.cells[0], 1, Workspace(tmp_path))
    assert run.recipe == "v2" and "verbalizer=learnable" in run.knobs


def test_the_demo_s_corpus_is_not_the_paper_s(tmp_path: Path) -> None:
    """The demo's corpus is refused, even when quantised. Units from elsewhere are accepted."""
    wanted, workspace = cell("n-grams KS hubert100"), Workspace(tmp_path)
    root = tmp_path / "corpora" / "speech_commands"
    root.mkdir(parents=True)
    assert not any(str(root) in line for line in missing(wanted, V1, workspace))
    (root / "demo.json").write_text("{}")
    tiny.write_corpus(tmp_path, "hubert100")
    assert missing(wanted, V1, workspace) == []
    workspace.rows("speech_commands", "hubert100", "train").with_name("quantized").mkdir()
    assert f"{root}: contains the demo's corpus" in missing(wanted, V1, workspace)[0]


def test_rows_of_texts_need_the_names_of_their_labels(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for split in SPLITS:
        write_rows(workspace.rows("librispeech", "hubert100", split), [Row("a.wav", "1 2", "0 1")])
    tiny.write_lm(workspace.lm("hubert100"))
    (line,) = missing(cell("PT ASR hubert100"), V1, workspace)
    assert "preprocess/librispeech/data/hubert100/labels.json: what each label" in line


def run_here(command: list[str], prefix: str, environment: dict[str, str]) -> int:
    """Run a stage in this process, and return the exit code. The last flag is the workspace."""
    print("$ python", *command)
    try:
        call(Path(command[0]).stem, Path(command[-1]), *command[1:])
    except UserError as error:
        print(error)
        return 2
    return 0


def reproduced(monkeypatch: pytest.MonkeyPatch, workspace: Path, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--workspace", str(workspace), *flags])
    monkeypatch.setattr(runs, "run_script", run_here)
    # torch and signals need the main thread, so the runs follow one another
    one_by_one = contextlib.nullcontext(SimpleNamespace(map=map))
    monkeypatch.setattr(runs, "ThreadPoolExecutor", lambda jobs: one_by_one)
    main()


def test_one_failing_task_of_three_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call makes only the run that failed in the first."""
    prepare(tmp_path, *tiny.LABELS)
    rows = [Workspace(tmp_path).rows("table", "tiny100", split) for split in SPLITS]
    for path in rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no row\n")
    flags = "--all", "--unit_model", "tiny100", "--set", "max_update=3", "warmup_updates=0"
    with pytest.raises(SystemExit):
        reproduced(monkeypatch, tmp_path, *flags)
    printed = capsys.readouterr()
    assert "skipped, found neither corpus nor rows: ASR, SF, " in printed.out
    assert "error: task TABLE tiny100 seed 100501: see the messages above" in printed.err
    assert "(2 of 3)" in printed.out and "| KS | accuracy | tiny100 | – | **" in printed.out
    for path in rows:
        write_rows(path, tiny.rows("speech_commands", 40, 1))
    reproduced(monkeypatch, tmp_path, *flags)
    again = capsys.readouterr().out
    assert (
        "(3 of 3)" in again
        and "train.py --recipe fast" in again
        and "--date task-seed100501" in again
    )
    assert "--prompt_task KS" not in again and (tmp_path / "samples/tables_all").is_dir()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ("--all --unit_model tiny100", "no task has a corpus or rows"),
        ("--all", "give --unit_model"),
        ("--set lr=1", "only with --all"),
        ("--paper v2 --write_docs", "only the tables of --paper v1"),
        ("--method PT --unit_model logmel100", "no cell with PT logmel100: expected one of PT hub"),
        (
            "--prompt_task TABLE",
            "TABLE: expected one of KS, IC, ASR, SF; for other tasks use --all",
        ),
        ("--seeds 0", "--seeds 0 --jobs 1: expected at least 1"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    flags: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=what):
        reproduced(monkeypatch, tmp_path, *flags.split())
