"""verbal.json, and the record beside it of what it was made from, so that it is never silently
stale.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.rows import SPLITS
from pipeline.workspace import Workspace
from ulm_prompt.binaries import SOURCES
from ulm_prompt.tasks import Pair, in_paper_order

MADE_BY = "ulm_prompt/verbalizer.py"


def record_verbal(workspace: Workspace, pair: Pair, names: dict[str, str], method: str) -> None:
    """Save one task's label -> unit map in verbal.json, and its sources in verbal_sources.json."""
    folder = workspace.datasets(pair.unit_model)
    sources = {"method": method, "data_prompt": _source_hashes(workspace, pair)}
    for name, entry in (("verbal_sources.json", sources), ("verbal.json", names)):
        path = folder / name
        by_task = read_json(path, MADE_BY) if path.exists() else {}
        by_task[pair.task] = entry
        write_json(path, in_paper_order(by_task))


def load_verbal(workspace: Workspace, pair: Pair) -> tuple[str, dict[str, str]]:
    """The method that made the task's verbalizer, and its label -> unit map.

    Raises ``UserError`` when it is missing, or the prompt text has changed since it was made.
    """
    folder = workspace.datasets(pair.unit_model)
    names = read_json(folder / "verbal.json", MADE_BY)
    sources = read_json(folder / "verbal_sources.json", MADE_BY)
    if pair.task not in names or pair.task not in sources:
        raise UserError(f"{folder / 'verbal.json'}: nothing about {pair.task}; run {MADE_BY}")
    if sources[pair.task]["data_prompt"] != _source_hashes(workspace, pair):
        raise UserError(
            f"{folder / 'verbal.json'}: stale, {pair.task}'s data_prompt/ has changed since it was "
            f"made; run {MADE_BY} again"
        )
    return sources[pair.task]["method"], names[pair.task]


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


def _source_hashes(workspace: Workspace, pair: Pair) -> dict[str, str]:
    hashes = {}
    for split in SPLITS:
        text = workspace.prompt_text(pair.unit_model, pair.config.downstream, "data_prompt", split)
        if not text.exists():
            raise UserError(f"{text}: not found; run ulm_prompt/make_data.py first")
        hashes[split] = sha256(text)
    return hashes
