"""Which runs count: a run is made once, and shown while its inputs and settings are current."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from baselines.classifiers.answers import load_settings
from baselines.classifiers.downstream import CONFIG, Settings
from experiments.paper import FIRST_SEED, load_paper, survey
from experiments.runs import trained_parameters
from experiments.tables import Figure, read_figures
from pipeline.files import sha256, write_json
from pipeline.rows import SPLITS, read_rows, write_rows
from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY, stage
from tests.ulm_prompt import tiny

TABLES = """
tasks: {KS: {metric: accuracy, corpus: keywords (from a friend)}}
methods: {PT: prompt, FT-LM: whole, n-grams: counts}
cells:
  - {method: PT, task: KS, unit_model: tiny100, published: 95.16, parameters: 0.03M, prompt: 1,
     own_lm: [max_update=60]}
  - {method: FT-LM, task: KS, unit_model: tiny100, own_lm: [no_such_knob=1]}
  - {method: PT, task: KS, unit_model: hubert100, prompt: 3}
  - {method: n-grams, task: KS, unit_model: tiny100}
"""
PROMPT, COUNTS = (f"{method} KS tiny100 seed {FIRST_SEED}" for method in ("PT", "n-grams"))


def reproduce(root: Path, *flags: object, code: int = 0) -> str:
    tables = root / "tables.yaml"
    return stage("reproduce.py", "--workspace", root, "--tables", tables, *flags, code=code)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make the cells in a workspace; one of them fails. Return the workspace and the output."""
    root = tmp_path_factory.mktemp("made")
    tiny.write_corpus(root)
    tiny.write_lm(Workspace(root).lm("tiny100"))
    (Workspace(root).lm("tiny100") / "ulm.json").write_text("{}")
    (root / "tables.yaml").write_text(TABLES)
    return root, reproduce(root, code=1)


@pytest.fixture
def root(made: tuple[Path, str], tmp_path: Path) -> Path:
    """Return a copy that a test may change, with the same file times."""
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


def look(root: Path, runs: int = 1) -> tuple[list[Figure], dict[str, str]]:
    return survey(load_paper(root / "tables.yaml"), runs, Workspace(root))


def shown(root: Path) -> dict[str, float]:
    return {f"{figure.cell} seed {figure.seed}": figure.value for figure in look(root)[0]}


def test_a_failure_does_not_stop_the_rest(made: tuple[Path, str]) -> None:
    root, printed = made
    assert "no_such_knob" in printed and "error: FT-LM KS tiny100 seed 100501" in printed
    assert f"missing {root}/corpora/speech_commands: keywords (from a friend)" in printed
    prompt, counts = read_figures(root / "samples" / "tables" / "results.csv")
    assert list(shown(root)) == [PROMPT, COUNTS]
    assert prompt.lm == "own" and len(prompt.lm_fingerprint) == 16 and 0 < prompt.updates <= 60
    published = trained_parameters(1, 1024, 12)
    assert published - trained_parameters(1, 32, 3) < prompt.trained_parameters <= published
    for figure, date in ((prompt, "tables"), (counts, f"n-grams-seed{FIRST_SEED}")):
        scores = stage("ulm_prompt/cal_acc.py", "--workspace", root, "--sample_date", date)
        assert re.search(r" accuracy +([\d.]+)", scores)[1] == f"{figure.value:.2f}"


def test_what_is_finished_is_not_made_again(root: Path) -> None:
    """If the binaries are deleted, only they are made again."""
    before = shown(root)
    again = reproduce(root, "--method", "PT")
    assert f"**{before[PROMPT]:.2f}**" in again and "$ python" not in again
    shutil.rmtree(root / "ulm_prompt")
    assert shown(root) == {COUNTS: before[COUNTS]}
    printed = reproduce(root, "--method", "PT")
    assert "fairseq_preprocess.py" in printed and "train.py --prompt_task" not in printed
    assert shown(root) == before


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


RECORD = f"checkpoints/KS_tiny100_checkpoints_PT-seed{FIRST_SEED}/prompt.json"
OTHERS: dict[str, Callable[[Path], object]] = {
    "another lm_fingerprint": lambda root: tiny.write_lm(
        Workspace(root).lm("tiny100"), tiny.lm(seed=7)
    ),
    "another max_update": lambda root: edit(root / "tables.yaml", "update=60", "update=61"),
    "another prefix_prompt_length": lambda root: edit(
        root / "tables.yaml", "prompt: 1", "prompt: 2"
    ),
    "another data": lambda root: edit(root / RECORD, '"train": "', '"train": "0'),
    "holds a run without a record": lambda root: (root / RECORD).unlink(),
    "checkpoint_best.pt": lambda root: (
        Workspace(root).lm("tiny100") / "checkpoint_best.pt"
    ).write_text("not a checkpoint"),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_a_run_of_something_else_is_left_out_with_the_reason(root: Path, reason: str) -> None:
    OTHERS[reason](root)
    assert list(shown(root)) == [COUNTS]
    assert reason in look(root)[1][PROMPT]


def test_rows_that_changed_make_every_figure_stale(root: Path) -> None:
    path = Workspace(root).rows("speech_commands", "tiny100", "test")
    write_rows(path, list(read_rows(path))[:-1])
    assert shown(root) == {}


def test_a_baseline_on_another_manifest_is_left_out(root: Path) -> None:
    (root / "tables.yaml").write_text(TABLES.replace("FT-LM", "FT-DM"))
    manifest = Workspace(root).downstream_data("speech_commands") / "manifest"
    manifest.mkdir()
    for split in SPLITS:
        (manifest / f"{split}.tsv").write_text(split)
    config = load_settings(Settings, CONFIG, [f"seed={FIRST_SEED}"])
    record = {
        "config": dataclasses.asdict(config),
        "data": {"manifest": {split: sha256(manifest / f"{split}.tsv") for split in SPLITS}},
        "test": {"accuracy": 12.5}, "trained_parameters": 3, "updates": 4,
        "made_by": {"git_revision": "abc"},
    }  # fmt: skip
    name = f"FT-DM KS tiny100 seed {FIRST_SEED}"
    path = root / f"checkpoints/KS_tiny100_downstream_FT-DM-seed{FIRST_SEED}/downstream.json"
    write_json(path, record)
    assert shown(root)[name] == 12.5
    (manifest / "test.tsv").write_text("others")
    assert "another data" in look(root)[1][name]
    write_json(path, {**record, "config": {}})
    assert "another config" in look(root)[1][name]


def test_every_finished_seed_is_shown_whatever_is_asked_for(root: Path) -> None:
    """Four seeds exist, 0 to 2 and 4 after the first seed. They differ only in the seed."""
    for seed in (1, 2, 4):
        for path in (*root.glob("checkpoints/*PT-seed*501"), *root.glob("samples/*/*PT-seed*501*")):
            copy = path.with_name(path.name.replace("100501", str(FIRST_SEED + seed)))
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy)
        record = root / RECORD.replace("100501", str(FIRST_SEED + seed))
        edit(record, '"seed": 100501', f'"seed": {FIRST_SEED + seed}')
    for count, seeds in {1: [0, 1, 2], 4: [0, 1, 2, 4]}.items():
        shown_seeds = [f.seed - FIRST_SEED for f in look(root, count)[0] if f.lm == "own"]
        assert shown_seeds == seeds


def test_answers_of_another_prompt_are_not_shown(root: Path) -> None:
    """Hashes decide, not file times: ``cp -p`` makes older files, ``cp`` makes newer ones."""
    (prompt,) = root.glob("checkpoints/KS_tiny100_checkpoints_PT*/checkpoint_best.pt")
    before = prompt.read_bytes()
    prompt.write_bytes(before)
    assert list(shown(root)) == [PROMPT, COUNTS]
    (samples,) = root.glob("samples/*/samples_KS_tiny100_PT*501.json")
    answers = samples.read_bytes()
    samples.write_bytes(answers.replace(b'"predict": "', b'"predict": "9', 1))
    os.utime(samples)
    assert list(shown(root)) == [COUNTS]
    samples.write_bytes(answers)
    prompt.write_bytes(before.replace(b"updates", b"Updates"))
    os.utime(prompt, (1, 1))
    assert list(shown(root)) == [COUNTS]


def test_a_signal_ends_the_commands_too(tmp_path: Path) -> None:
    child = f"import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)"
    code = f"from experiments.runs import run_all; print(run_all({{'a': [['-c', {child!r}]]}}, 1))"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM and "{" not in process.stdout.read()
