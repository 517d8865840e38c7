"""Stages that stream hold as much of 800 rows as of 200."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.rows import write_rows
from pipeline.workspace import Workspace
from tests.reliability.scale import DOWNSTREAM, UNIT_MODEL, synthetic
from ulm_prompt.gen_labelspace import labels_of
from ulm_prompt.make_data import make_split
from ulm_prompt.prompt_data.binaries import encode_text
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.verbalizer import count_train, rename_split, train_text

PAIR = Pair("IC", UNIT_MODEL, load_task("IC"))
LABELS = {str(label): str(label) for label in range(24)}


STAGES: dict[str, Callable[[Workspace], object]] = {
    "make_data": lambda workspace: make_split(workspace, PAIR, "train"),
    "gen_labelspace": lambda workspace: labels_of(workspace, PAIR),
    "count": lambda workspace: count_train(train_text(workspace, PAIR)),
    "rename": lambda workspace: rename_split(workspace, PAIR, LABELS, "freq", "train", Counter()),
    "encode": lambda workspace: sum(
        map(len, encode_text(train_text(workspace, PAIR), LETTERS, Path("dict.txt")))
    ),
}
LETTERS = {**{str(unit): unit for unit in range(100)}, "<s>": 0}


def write(root: Path, count: int) -> Workspace:
    workspace = Workspace(root / str(count))
    for split in ("train", "valid", "test"):
        write_rows(workspace.rows(DOWNSTREAM, UNIT_MODEL, split), synthetic(count, seed=1))
        make_split(workspace, PAIR, split)
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
def test_memory_does_not_grow(sizes: list[Workspace], name: str) -> None:
    few, many = (peak(STAGES[name], workspace) for workspace in sizes)
    assert many < 1.2 * few + 10_000, f"{few:,} bytes for 200 rows, {many:,} for 800"
