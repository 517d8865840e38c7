"""The demo's picture: each task's learning curve and confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from pipeline.files import read_json, replacing
from pipeline.workspace import Workspace
from ulm_prompt.cal_acc import read_samples
from ulm_prompt.curves import valid_curve

OTHER = "(other)"  # an answer that no test utterance has
MAX_NAMED = 31  # classes beyond which the axes stay bare


def draw(
    workspace: Workspace, tasks: Mapping[str, str], unit_model: str, date: str, path: Path
) -> None:
    """Write one PNG with a row per task (``tasks``: task -> downstream)."""
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(15, 7 * len(tasks)), width_ratios=(1, 1.5), layout="constrained"
    )
    for (curve_axis, matrix_axis), (task, downstream) in zip(axes, tasks.items()):
        card = read_json(workspace.checkpoints(task, unit_model, date) / "prompt.json", "train.py")
        names = read_json(
            workspace.downstream_data(downstream) / unit_model / "labels.json", "runner.py"
        )
        unit_names = {unit: names[label]["name"] for label, unit in card["verbal"].items()}
        _curve(curve_axis, workspace.logs(task, unit_model, date) / "train.log", task)
        _matrix(matrix_axis, workspace.samples(task, unit_model, date, date), unit_names, task)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    plt.close(figure)


def _curve(axis: plt.Axes, log: Path, task: str) -> None:
    curve = valid_curve(log)
    updates = list(curve)
    axis.plot(updates, [scores["accuracy"] for scores in curve.values()], color="tab:blue")
    axis.set(title=f"{task}: learning curve on valid", xlabel="updates", ylim=(0, 102))
    axis.set_ylabel("accuracy, % (labels before it given)", color="tab:blue")
    axis.grid(alpha=0.3)
    loss = axis.twinx()
    loss.plot(updates, [scores["label_loss"] for scores in curve.values()], color="tab:orange")
    loss.set_ylabel("loss, nats a label", color="tab:orange")
    loss.set_ylim(bottom=0)


def _matrix(axis: plt.Axes, samples: Path, unit_names: Mapping[str, str], task: str) -> None:
    entries = read_samples(samples)

    def name(units: str) -> str:
        return ", ".join(unit_names.get(unit, "?") for unit in units.split())

    classes = sorted({name(entry["label"]) for entry in entries})
    columns = [*classes, OTHER]
    counts = np.zeros((len(classes), len(columns)))
    for entry in entries:
        predicted = name(entry["predict"])
        column = columns.index(predicted) if predicted in classes else len(classes)
        counts[classes.index(name(entry["label"])), column] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    right = 100 * np.trace(counts) / counts.sum()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set(title=f"{task}: {right:.1f} % of {len(entries)} test utterances", xlabel="predicted")
    axis.set_ylabel("spoken")
    size = 9 if len(classes) <= 15 else 6
    if len(classes) <= MAX_NAMED:
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axis.set_yticks(range(len(classes)), classes, fontsize=size)
    if len(classes) <= 15:
        for row, column in np.argwhere(counts):
            dark = shares[row, column] > 0.5
            axis.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    axis.figure.colorbar(image, ax=axis, label="share of the class", shrink=0.6)
