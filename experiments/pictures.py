"""The pictures of a study and of the demo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.paper import Paper
from experiments.runs import Outcome, Run, by_row
from experiments.tables import Figure
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import label_names
from ulm_prompt.scoring.class_report import in_names
from ulm_prompt.scoring.pictures import COLOURS, confusion_on, save
from ulm_prompt.scoring.scores import valid_curve

ACCURACIES = (0, 20, 40, 60, 70, 80, 85, 90, 92, 94, 96, 98, 99, 100)  # that are marked
LABELS = {"prefix_prompt_length": "prompt length P (trained parameters)",
          "shots": "examples of each class (k)"}  # fmt: skip


def draw_study(x: str, outcomes: Mapping[Run, Outcome], title: str, path: Path) -> None:
    """Write a PNG over the study's x axis: mean and standard deviation over seeds."""
    curves = x == "updates"
    figure, axis = plt.subplots(figsize=(10 if curves else 7.5, 5), layout="constrained")
    axis.set_title(title)
    axis.grid(alpha=0.3, which="both" if curves else "major")
    if curves:
        _learning_curves(axis, by_row(outcomes))
    elif x in LABELS:
        _over_a_number(axis, outcomes, x)
    else:
        _seeds(axis, outcomes, x == "seed")
    save(figure, path, dpi=110)


def draw_demo(
    workspace: Workspace, tasks: Iterable[str], unit_model: str, date: str, path: Path
) -> None:
    """Write one PNG with a row for each task: learning curve and confusion matrix."""
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
            (curve_axis, "accuracy", "accuracy, % (labels before it given)", "tab:blue"),
            (loss_axis, "label_loss", "loss, nats a label", "tab:orange"),
        ):
            axis.plot(list(curve), [scores[score] for scores in curve.values()], color=colour)
            axis.set_ylabel(label, color=colour)
        loss_axis.set_ylim(bottom=0)
        names = label_names(workspace, Pair(task, unit_model, load_task(task)))
        samples = workspace.samples(task, unit_model, date, date)
        confusion_on(matrix_axis, *in_names(samples, names).answers(), task)
    save(figure, path, dpi=80)


def draw_results(paper: Paper, figures: Iterable[Figure], path: Path) -> None:
    """Write README's chart: the test accuracy of the paper's prompts beside what we measured."""
    published = {
        (cell.task, cell.unit_model): cell.published
        for cell in paper.cells
        if cell.method == "PT" and paper.tasks[cell.task].metric == "accuracy"
    }
    bars = {"PT, paper": published}
    for method in ("PT", "FT-LM", "n-grams"):
        values: dict[tuple[str, str], list[float]] = {column: [] for column in published}
        for run in figures:
            if run.method == method and (run.task, run.unit_model) in values:
                values[run.task, run.unit_model].append(run.value)
        bars[method] = {column: mean(runs) for column, runs in values.items() if runs}
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
    colours = ("#9aa5b1", "#1f6fb2", "#e08a1e", "#c9c2b5")
    for number, ((name, accuracies), colour) in enumerate(zip(bars.items(), colours)):
        at = [list(published).index(column) + 0.2 * (number - 1.5) for column in accuracies]
        drawn = axis.bar(at, list(accuracies.values()), 0.19, color=colour, label=name)
        axis.bar_label(drawn, fmt="%.1f", fontsize=7.5, padding=1)
    axis.set_xticks(range(len(published)), [", ".join(column) for column in published])
    axis.set(ylim=(90, 100.4), ylabel="test accuracy, % (axis from 90)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=len(bars), loc="outside upper center", frameon=False)
    save(figure, path)


def _accuracies(outcomes: Mapping[Run, Outcome]) -> dict[str, dict[str, list[float]]]:
    """Split -> row -> accuracy of each seed. Test is there when all runs were decoded, and answers
    are no texts, which have error rates instead.
    """
    rows = by_row(outcomes).items()
    by_split = {"valid": {n: [seed.card["valid"]["accuracy"] for seed in s] for n, s in rows}}
    if all("accuracy" in outcome.test for outcome in outcomes.values()):
        by_split["test"] = {n: [seed.test["accuracy"] for seed in s] for n, s in rows}
    return by_split


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _learning_curves(axis: Axes, rows: Mapping[str, list[Outcome]]) -> None:
    """Valid accuracy over updates, a line a seed; the axis stretches the part near 100 %."""
    for number, (name, seeds) in enumerate(rows.items()):
        style = {"color": COLOURS[number % 10], "marker": "osD^vPX*"[number % 8], "markersize": 4}
        for index, seed in enumerate(seeds):
            values = [scores["accuracy"] for scores in seed.curve.values()]
            label = None if index else name
            axis.plot(list(seed.curve), values, label=label, linewidth=1.2, **style)
    axis.set(xlabel="updates", ylabel="accuracy on valid, %", xscale="log")
    first, last = map(int, axis.dataLim.intervalx)
    ticks = [first * 2**power for power in range(12) if first * 2**power <= last]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    low, high = axis.dataLim.intervaly
    bottom, top = low - 3, high + (100 - high) / 5
    axis.set_yscale(
        "function",
        functions=(lambda y: -np.log(np.maximum(101 - y, 1e-3)), lambda s: 101 - np.exp(-s)),
    )
    axis.set_ylim(max(0.0, bottom), top)
    axis.set_yticks([tick for tick in ACCURACIES if bottom <= tick <= top])
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _over_a_number(axis: Axes, outcomes: Mapping[Run, Outcome], x: str) -> None:
    """Accuracy over a number of the run, on a log axis; 0 shots are all, at its right end."""
    if x == "shots":
        numbers = {run.row: result.card["training"].get(x, 0) for run, result in outcomes.items()}
    else:
        numbers = {run.row: run.prefix_prompt_length for run in outcomes}
    whole = 3 * max(numbers.values()) or 1
    positions = {name: number or whole for name, number in numbers.items()}
    order = sorted(positions, key=positions.get)
    for (split, by_row_name), marker in zip(_accuracies(outcomes).items(), "os"):
        means = [mean(by_row_name[name]) for name in order]
        deviations = [_deviation(by_row_name[name]) for name in order]
        at = [positions[name] for name in order]
        axis.errorbar(at, means, deviations, marker=marker, capsize=3, label=split)
    labels = [str(number or "all") for number in numbers.values()]
    if x == "prefix_prompt_length":
        trained = [seeds[0].card["trained_parameters"] for seeds in by_row(outcomes).values()]
        short = (f"{n / 1e6:.2f}M" if n >= 1e6 else f"{n / 1e3:.0f}k" for n in trained)
        labels = [f"{label}\n({count})" for label, count in zip(labels, short)]
    axis.set(xlabel=LABELS[x], ylabel="accuracy, %", xscale="log")
    axis.set_xticks(list(positions.values()), labels)
    axis.set_xticks([], minor=True)
    axis.legend()


def _seeds(axis: Axes, outcomes: Mapping[Run, Outcome], numbered: bool) -> None:
    """A dot for each seed of each row, mean and standard deviation beside them."""
    columns = {
        f"{name}\n{split}": values
        for split, by_row_name in _accuracies(outcomes).items()
        for name, values in by_row_name.items()
    }
    for position, values in enumerate(columns.values()):
        at = [position + 0.12 * ((number % 5) - 2) / 2 for number in range(len(values))]
        axis.plot(at, values, "o", alpha=0.7)
        for seed, point in enumerate(zip(at, values), start=1) if numbered else ():
            axis.annotate(str(seed), point, xytext=(5, 3), textcoords="offset points", fontsize=7)
        middle, deviation = mean(values), _deviation(values)
        axis.errorbar(position + 0.3, middle, deviation, fmt="ks", capsize=4)
        text = f"{middle:.2f} ± {deviation:.2f}" if numbered else f"{middle:.1f}"
        point = position + 0.3, middle
        axis.annotate(text, point, xytext=(8, -3), textcoords="offset points", fontsize=8)
    axis.set(ylabel="accuracy, %", xlim=(-0.5, len(columns) - 0.1))
    axis.set_xlabel("numbers: seeds" if numbered else "")
    axis.set_xticks(range(len(columns)), list(columns))
