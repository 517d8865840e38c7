"""verbal.json, and the record beside it of what it was made from, so that it is never silently
stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, text_lines, write_json
from pipeline.rows import SPLITS, are_labels
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.binaries import SOURCES
from ulm_prompt.prompt_data.tasks import Pair, in_paper_order

MADE_BY = "ulm_prompt/verbalizer.py"


def record_rows(workspace: Workspace, pair: Pair) -> None:
    """Save beside data_prompt/ the hashes of the rows that it was made from."""
    write_json(_prompt_text(workspace, pair, "train").parent / SOURCES, _rows(workspace, pair))


def record_verbal(workspace: Workspace, pair: Pair, names: dict[str, str], method: str) -> None:
    """Save one task's label -> unit map in verbal.json, then its sources in verbal_sources.json."""
    folder = workspace.datasets(pair.unit_model)
    sources = {"method": method, **_sources(workspace, pair, names, method)}
    for name, entry in (("verbal.json", names), ("verbal_sources.json", sources)):
        path = folder / name
        by_task = read_json(path, MADE_BY) if path.exists() else {}
        by_task[pair.task] = entry
        write_json(path, in_paper_order(by_task))


def load_verbal(workspace: Workspace, pair: Pair) -> tuple[str, dict[str, str]]:
    """The method that made the task's verbalizer, and its label -> unit map.

    Raises ``UserError`` when it is missing, was edited, or what it was made from has changed.
    """
    folder = workspace.datasets(pair.unit_model)
    path = folder / "verbal.json"
    names = read_json(path, MADE_BY).get(pair.task)
    recorded = read_json(folder / "verbal_sources.json", MADE_BY).get(pair.task)
    if names is None or recorded is None:
        raise UserError(f"{path}: nothing about {pair.task}; run {MADE_BY}")
    method = recorded.get("method") if isinstance(recorded, dict) else None
    if not (isinstance(names, dict) and str(method).isidentifier()):
        raise UserError(f"{path}: expected label -> unit for {pair.task}; run {MADE_BY} again")
    for name, value in _sources(workspace, pair, names, method).items():
        if recorded.get(name) != value:
            raise UserError(
                f"{path}: stale, {pair.task}'s {name} has changed since it was made; "
                f"run {MADE_BY} again"
            )
    return method, names


def _sources(
    workspace: Workspace, pair: Pair, names: dict[str, str], method: str
) -> dict[str, object]:
    """What a verbalizer depends on. Raises ``UserError`` when data_prompt/ is stale itself."""
    texts = {split: _prompt_text(workspace, pair, split) for split in SPLITS}
    for text in texts.values():
        if not text.exists():
            raise UserError(f"{text}: not found; run ulm_prompt/make_data.py first")
    folder = texts["train"].parent
    if read_json(folder / SOURCES, "ulm_prompt/make_data.py") != _rows(workspace, pair):
        raise UserError(
            f"{folder}: stale, the rows it was made from have changed; "
            "run ulm_prompt/make_data.py again, then the stages after it"
        )
    sources = {
        "map": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "data_prompt": {split: sha256(text) for split, text in texts.items()},
    }
    if method == "kmeans":
        sources["LM"] = sha256(lm_folder(workspace, pair.unit_model) / "checkpoint_best.pt")
    return sources


def _rows(workspace: Workspace, pair: Pair) -> dict[str, str]:
    rows = {
        split: workspace.rows(pair.config.downstream, pair.unit_model, split) for split in SPLITS
    }
    for path in rows.values():
        if not path.exists():
            raise UserError(f"{path}: this split is missing; make it with preprocess/runner.py")
    return {split: sha256(path) for split, path in rows.items()}


def _prompt_text(workspace: Workspace, pair: Pair, split: str) -> Path:
    return workspace.prompt_text(pair.unit_model, pair.config.downstream, "data_prompt", split)


def renamed_texts(workspace: Workspace, pair: Pair) -> dict[str, Path]:
    """Each split's text with renamed labels. Raises ``UserError`` when it is missing or stale."""
    method, _ = load_verbal(workspace, pair)
    return {
        split: workspace.prompt_text(
            pair.unit_model, pair.config.downstream, f"data_{method}", split
        )
        for split in SPLITS
    }


def check_data_bin(workspace: Workspace, pair: Pair) -> None:
    """Raises ``UserError`` unless the task's data-bin was made from the renamed text that lies
    there now.
    """
    path = workspace.data_bin(pair.unit_model, pair.task) / SOURCES
    made_from = read_json(path, "ulm_prompt/fairseq_preprocess.py")
    if made_from != {split: sha256(text) for split, text in renamed_texts(workspace, pair).items()}:
        raise UserError(
            f"{path.parent}: stale, its text has changed since; "
            "run ulm_prompt/fairseq_preprocess.py again"
        )


# Prompt text: one ``units <s> labels`` a line.


SEPARATOR = " <s> "


def read_prompt_text(path: Path, made_by: str) -> Iterator[tuple[str, str]]:
    """Stream (units, labels) of each line, both as written.

    Raises ``UserError`` for a missing file (``made_by`` is the command that makes it) or a line
    without one ``<s>``.
    """
    lines = text_lines(path, f"not found; run {made_by} first")
    for number, line in enumerate(lines, start=1):
        units, separator, labels = line.partition(SEPARATOR)
        if not (units and separator and are_labels(labels)):
            raise UserError(
                f"{path}, line {number}: expected 'units <s> labels', found {line[:60]!r}; "
                f"run {made_by} again"
            )
        yield units, labels
