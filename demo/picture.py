"""The demo's picture: each task's learning curve and confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pipeline.files import replacing
from pipeline.workspace import Workspace
from ulm_prompt.curves import valid_curve
from ulm_prompt.scoring.class_report import answers
from ulm_prompt.scoring.confusion import confusion_on
from ulm_prompt.scoring.label_names import label_names
from ulm_prompt.tasks import Pair, load_task


def draw(
    workspace: Workspace, tasks: Iterable[str], unit_model: str, date: str, path: Path
) -> None:
    """Write one PNG with a row per task."""
    tasks = list(tasks)
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(15, 7 * len(tasks)), width_ratios=(1, 1.5), layout="constrained"
    )
    for (curve_axis, matrix_axis), task in zip(axes, tasks):
        _curve(curve_axis, workspace.logs(task, unit_model, date) / "train.log", task)
        names = label_names(workspace, Pair(task, unit_model, load_task(task)))
        samples = workspace.samples(task, unit_model, date, date)
        confusion_on(matrix_axis, *answers(samples, names), task)
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
