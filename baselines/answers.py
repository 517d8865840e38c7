"""A baseline's answers in the published form, which ulm_prompt/cal_acc.py scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.workspace import Workspace
from ulm_prompt.sample_file import write_samples


def write_answers(
    path: Path, files: Sequence[str], labels: Sequence[str], answers: Sequence[str]
) -> float:
    """Write id -> file_name, src (empty), label, predict, and return the accuracy in %.

    A classifier only knows the label set, so its ``_within_labels`` twin holds the same answers.
    """
    sources = [
        {"file_name": file, "src": "", "label": label}
        for file, label in zip(files, labels, strict=True)
    ]
    entries = {
        row: {kind: {"predict": answer} for kind in ("free", "within")}
        for row, answer in enumerate(answers)
    }
    write_samples(path, sources, entries, scored=False)
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    return 100 * right / len(sources)


def answers_path(
    workspace: Workspace, task: str, unit_model: str, baseline: str, date: str
) -> Path:
    """Beside a prompt's answers of the same date, under a name of its own."""
    return workspace.samples(task, unit_model, f"{baseline}_{date}", date)


def card_path(workspace: Workspace, task: str, unit_model: str, baseline: str, date: str) -> Path:
    """What a baseline's run leaves last, in the run's folder: what it was made from, and scores."""
    folder = workspace.root / "checkpoints" / f"{task}_{unit_model}_{baseline}_{date}"
    return folder / f"{baseline}.json"
