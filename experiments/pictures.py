"""Draw the pictures of the studies, of the demo, and of the results in README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.paper import Paper
from experiments.runs import Outcome, Run
from experiments.tables import Figure, grouped, spread
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import label_names
from ulm_prompt.scoring.class_report import in_names
from ulm_prompt.scoring.pictures import COLOURS, confusion_on, save
from ulm_prompt.scoring.scores import valid_curve

ACCURACIES = (0, 20, 40, 60, 70, 80, 85, 90, 92, 94, 96, 98, 99, 100)  # ticks of the axis
LABELS = {"prefix_prompt_length": "prompt length P (trained parameters)",
          "shots": "examples of each class (k)"}  # fmt: skip


def draw_study(x: str, outcomes: Mapping[Run, Outcome], title: str, path: Path) -> None:
    """Write a study's PNG: learning curves, or mean and standard deviation of the accuracy."""
    curves = x == "updates"
    rows = grouped((run.row, outcome) for run, outcome in outcomes.items())
    if x == "seed":
        rows = {f"{run.row}\nseed {run.seed}": [outcome] for run, outcome in outcomes.items()}
    figure, axis = plt.subplots(figsize=(10 if curves else 7.5, 5), layout="constrained")
    axis.set_title(title)
    axis.grid(alpha=0.3)
    if curves:
        _learning_curves(axis, rows)
    else:
        _accuracies(axis, x, rows)
    save(figure, path, dpi=110)


def _learning_curves(axis: Axes, rows: Mapping[str, list[Outcome]]) -> None:
    """Draw valid accuracy over updates, one line per seed. The y axis is stretched near 100 %."""
    for number, (name, outcomes) in enumerate(rows.items()):
        style = {"color": COLOURS[number % 10], "marker": "osD^vPX*"[number % 8], "markersize": 4}
        for index, outcome in enumerate(outcomes):
            values = [scores["accuracy"] for scores in outcome.curve.values()]
            label = None if index else name
            axis.plot(list(outcome.curve), values, label=label, linewidth=1.2, **style)
    low, high = axis.dataLim.intervaly
    axis.set(xlabel="updates", ylabel="accuracy on valid, %")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_yscale(
        "function",
        functions=(lambda y: -np.log(np.maximum(101 - y, 1e-3)), lambda s: 101 - np.exp(-s)),
    )
    axis.set_yticks(ACCURACIES)
    axis.set_ylim(max(0.0, low - 3), high + (100 - high) / 5)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _accuracies(axis: Axes, x: str, rows: Mapping[str, list[Outcome]]) -> None:
    """Draw accuracy on valid, and on test if every run has it (texts have error rates instead).
    An ``x`` in ``LABELS`` is a log axis with 0 shots (all) at the right end; else each row has a
    position of its own.
    """
    positions, labels = dict(zip(rows, range(len(rows)))), list(rows)
    if x in LABELS:
        records = [outcomes[0].record for outcomes in rows.values()]
        numbers = [
            record["training"].get(x, 0) if x == "shots" else record[x] for record in records
        ]
        right_end = 3 * max(numbers) or 1
        positions = {name: number or right_end for name, number in zip(rows, numbers)}
        labels = [str(number or "all") for number in numbers]
        if x != "shots":
            trained = [record["trained_parameters"] for record in records]
            short = (f"{n / 1e6:.2f}M" if n >= 1e6 else f"{n / 1e3:.0f}k" for n in trained)
            labels = [f"{label}\n({count})" for label, count in zip(labels, short)]
        axis.set_xscale("log")
    splits = {"valid": {name: [o.record["valid"]["accuracy"] for o in rows[name]] for name in rows}}
    if all("accuracy" in outcome.test for outcomes in rows.values() for outcome in outcomes):
        splits["test"] = {name: [o.test["accuracy"] for o in rows[name]] for name in rows}
    order = sorted(positions, key=positions.get)
    for (split, values), marker in zip(splits.items(), "os"):
        axis.errorbar(
            [positions[name] for name in order],
            [mean(values[name]) for name in order],
            [stdev(values[name]) if len(values[name]) > 1 else 0.0 for name in order],
            fmt=f"{marker}-" if x in LABELS else marker,
            capsize=3,
            label=split if x != "seed" else f"{split}: {spread(sum(values.values(), []))}",
        )
    axis.set(xlabel=LABELS.get(x, ""), ylabel="accuracy, %")
    axis.set_xticks(list(positions.values()), labels)
    axis.set_xticks([], minor=True)
    axis.legend()


def draw_demo(
    workspace: Workspace, tasks: Iterable[str], unit_model: str, date: str, path: Path
) -> None:
    """Write one PNG with a learning curve and a confusion matrix per task."""
    tasks = list(tasks)
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(15, 7 * len(tasks)), width_ratios=(1, 1.5), layout="constrained"
    )
    for (curve_axis, matrix_axis), task in zip(axes, tasks):
        curve = valid_curve(workspace.logs(task, unit_model, date) / "train.log")
        title = f"{task}: learning curve on valid"
        curve_axis.set(title=title, xlabel="updates", ylim=(0, 102))
        curve_axis.grid(alpha=0.3)
        loss_axis = curve_axis.twinx()
        for axis, score, label, colour in (
            (curve_axis, "accuracy", "accuracy, % (teacher forcing)", "tab:blue"),
            (loss_axis, "label_loss", "loss, nats per label", "tab:orange"),
        ):
            axis.plot(list(curve), [scores[score] for scores in curve.values()], color=colour)
            axis.set_ylabel(label, color=colour)
        loss_axis.set_ylim(bottom=0)
        names = label_names(workspace, Pair(task, unit_model, load_task(task)))
        samples = workspace.samples(task, unit_model, date, date)
        confusion_on(matrix_axis, *in_names(samples, names).answers(), task)
    save(figure, path, dpi=80)


def draw_results(paper: Paper, figures: Sequence[Figure], path: Path) -> None:
    """Write README's chart: test accuracy of the paper's prompts and of our runs."""
    cells = [c for c in paper.cells if paper.tasks[c.task].metric == "accuracy"]
    published = {(c.task, c.unit_model): c.published for c in cells if c.method == "PT"}
    bars = {"PT, paper": published}
    for method in ("PT", "FT-LM", "n-grams"):
        values = grouped(((f.task, f.unit_model), f.value) for f in figures if f.method == method)
        bars[method] = {column: mean(values[column]) for column in values if column in published}
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
    colours = ("#9aa5b1", "#1f6fb2", "#e08a1e", "#c9c2b5")
    for number, ((name, accuracies), colour) in enumerate(zip(bars.items(), colours)):
        positions = [list(published).index(column) + 0.2 * (number - 1.5) for column in accuracies]
        drawn = axis.bar(positions, list(accuracies.values()), 0.19, color=colour, label=name)
        axis.bar_label(drawn, fmt="%.1f", fontsize=7.5, padding=1)
    axis.set_xticks(range(len(published)), [", ".join(column) for column in published])
    axis.set(ylim=(90, 100.4), ylabel="test accuracy, % (axis from 90)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=len(bars), loc="outside upper center", frameon=False)
    save(figure, path)
