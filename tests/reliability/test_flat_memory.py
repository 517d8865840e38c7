"""Stages that stream hold as much of 800 rows as of 200."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.files import write_json
from pipeline.rows import read_rows, write_rows
from pipeline.workspace import Workspace
from tests.reliability.scale import DOWNSTREAM, UNIT_MODEL, synthetic
from ulm_prompt.gen_labelspace import labels_of
from ulm_prompt.make_data import make_split
from ulm_prompt.prompt_data.binaries import encode_text
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import prompt_texts, rename_labels
from ulm_prompt.scoring.sample_file import WITHIN, write_samples
from ulm_prompt.scoring.scores import score
from ulm_prompt.verbalizer import count_train

PAIR = Pair("IC", UNIT_MODEL, load_task("IC"))
LABELS = {str(label): str(label) for label in range(24)}
ANSWER = {kind: {"predict": "1 2 3", "score": -0.5} for kind in ("free", "within")}


def samples(workspace: Workspace) -> Path:
    return workspace.samples("IC", UNIT_MODEL, "d", "d")


def train_text(workspace: Workspace) -> Path:
    return prompt_texts(workspace, PAIR)["train"]


def write_answers(workspace: Workspace) -> None:
    rows = read_rows(workspace.rows(DOWNSTREAM, UNIT_MODEL, "train"))
    sources = ({"file_name": row.file, "src": row.units, "label": "1 2 3"} for row in rows)

    class Same(dict):
        def __missing__(self, row: int) -> dict:
            return ANSWER

    write_samples(samples(workspace), sources, Same(), scored=False)


STAGES: dict[str, Callable[[Workspace], object]] = {
    "make_data": lambda workspace: make_split(workspace, PAIR, "train"),
    "gen_labelspace": lambda workspace: labels_of(workspace, PAIR),
    "count": lambda workspace: count_train(train_text(workspace)),
    "rename": lambda workspace: rename_labels(
        train_text(workspace), workspace.root / "renamed.txt", LABELS, Counter()
    ),
    "encode": lambda workspace: sum(
        map(len, encode_text(train_text(workspace), LETTERS, Path("dict.txt")))
    ),
    "answers": write_answers,
    "cal_acc": lambda workspace: score(samples(workspace)),
}
LETTERS = {**{str(unit): unit for unit in range(100)}, "<s>": 0}


def write(root: Path, count: int) -> Workspace:
    workspace = Workspace(root / str(count))
    for split in ("train", "valid", "test"):
        write_rows(workspace.rows(DOWNSTREAM, UNIT_MODEL, split), synthetic(count, seed=1))
        make_split(workspace, PAIR, split)
    entries = {
        str(row): {
            "file_name": "a",
            "src": "7 " * 100,
            "label": "1 2 3",
            "predict": f"1 2 {row % 5}",
        }
        for row in range(count)
    }
    for path in (
        samples(workspace),
        samples(workspace).with_stem(samples(workspace).stem + WITHIN),
    ):
        write_json(path, entries)
    return workspace


def peak(stage: Callable[[Workspace], object], workspace: Workspace) -> int:
    tracemalloc.start()
    try:
        stage(workspace)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> list[Workspace]:
    root = tmp_path_factory.mktemp("sizes")
    return [write(root, count) for count in (200, 800)]


@pytest.mark.parametrize("name", STAGES)
def test_memory_does_not_grow(
    sizes: list[Workspace], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.json_members.PIECE", 10_000)
    few, many = (peak(STAGES[name], workspace) for workspace in sizes)
    assert many < 1.2 * few + 10_000, f"{few:,} bytes for 200 rows, {many:,} for 800"
