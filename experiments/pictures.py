"""A study's picture: learning curves, a curve over a number, bars, or one dot a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np

from experiments.study_cell import Outcome
from experiments.study_plan import Cell, groups
from pipeline.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ACCURACIES = (0, 20, 40, 60, 70, 80, 85, 90, 92, 94, 96, 98, 99, 100)  # that are marked


LABELS = {"prefix_prompt_length": "prompt length P (trained parameters)",
          "shots": "examples of each class (k)"}  # fmt: skip


def draw(x: str, outcomes: Mapping[Cell, Outcome], title: str, path: Path) -> None:
    """Write a PNG over the study's x axis: mean and standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = x == "updates"
    figure, axis = plt.subplots(figsize=(10 if curves else 7.5, 5), layout="constrained")
    axis.set_title(title)
    axis.grid(alpha=0.3, which="both" if curves else "major")
    if curves:
        _learning_curves(axis, outcomes)
    elif x == "seed":
        _dots(axis, outcomes)
    elif x == "run":
        _bars(axis, outcomes)
    else:
        _curve(axis, outcomes, x)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def scores(outcomes: Mapping[Cell, Outcome]) -> dict[str, dict[str, list[float]]]:
    """Split -> way -> accuracy of each seed. Test is there when every run was decoded, and answers
    are no texts, which have error rates instead.
    """
    found = {"valid": {}}
    if all("accuracy" in (outcome.test or {}) for outcome in outcomes.values()):
        found["test"] = {}
    for name, cells in groups(list(outcomes)).items():
        found["valid"][name] = [outcomes[cell].valid["accuracy"] for cell in cells]
        if "test" in found:
            found["test"][name] = [outcomes[cell].test["accuracy"] for cell in cells]
    return found


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _learning_curves(axis: Axes, outcomes: Mapping[Cell, Outcome]) -> None:
    """Valid accuracy over updates, a line a seed; the axis spreads what lies near 100 %."""
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors
    for number, (name, cells) in enumerate(groups(list(outcomes)).items()):
        style = {"color": colours[number % 10], "marker": "osD^vPX*"[number % 8], "markersize": 4}
        for place, cell in enumerate(cells):
            updates = [each["num_updates"] for each in outcomes[cell].curve]
            values = [each["accuracy"] for each in outcomes[cell].curve]
            axis.plot(updates, values, label=None if place else name, linewidth=1.2, **style)
    axis.set(xlabel="updates", ylabel="accuracy on valid, %", xscale="log")
    first, last = (int(limit(axis.dataLim.intervalx)) for limit in (min, max))
    ticks = [first * 2**power for power in range(12) if first * 2**power <= last]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    low, high = axis.dataLim.intervaly
    axis.set_yscale("function", functions=(_spread_out, _squeezed))
    axis.set_ylim(max(0.0, low - 3), high + (100 - high) / 5)
    axis.set_yticks([tick for tick in ACCURACIES if low - 3 <= tick <= high + (100 - high) / 5])
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _spread_out(accuracy: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(101 - accuracy, 1e-3))


def _squeezed(spread: np.ndarray) -> np.ndarray:
    return 101 - np.exp(-spread)


def _curve(axis: Axes, outcomes: Mapping[Cell, Outcome], x: str) -> None:
    """Accuracy over a number of the run, on a log axis; 0 shots are all, at its right end."""
    of_way = {name: cells[0] for name, cells in groups(list(outcomes)).items()}
    numbers = {name: getattr(cell, x) for name, cell in of_way.items()}
    whole = 3 * max(numbers.values(), default=1) or 1
    places = {name: number or whole for name, number in numbers.items()}
    for (split, by_way), marker in zip(scores(outcomes).items(), "os"):
        order = sorted(by_way, key=places.get)
        axis.errorbar(
            [places[name] for name in order],
            [mean(by_way[name]) for name in order],
            [_deviation(by_way[name]) for name in order],
            marker=marker,
            capsize=3,
            label=split,
        )
    labels = [str(number or "all") for number in numbers.values()]
    if x == "prefix_prompt_length":
        trained = [outcomes[cell].trained_parameters for cell in of_way.values()]
        labels = [f"{label}\n({_short(count)})" for label, count in zip(labels, trained)]
    axis.set(xlabel=LABELS[x], ylabel="accuracy, %", xscale="log")
    axis.set_xticks(list(places.values()), labels)
    axis.set_xticks([], minor=True)
    axis.legend()


def _bars(axis: Axes, outcomes: Mapping[Cell, Outcome]) -> None:
    """A bar for each way, its seeds as dots."""
    found = scores(outcomes)
    width = 0.8 / len(found)
    for place, (split, by_way) in enumerate(found.items()):
        at = [number + (place - (len(found) - 1) / 2) * width for number in range(len(by_way))]
        heights = [mean(values) for values in by_way.values()]
        bars = axis.bar(at, heights, 0.9 * width, label=split, alpha=0.8)
        axis.bar_label(bars, [f"{height:.1f}" for height in heights], label_type="center")
        for each, values in zip(at, by_way.values()):
            axis.plot([each] * len(values), values, "k.", markersize=4)
    axis.set(ylabel="accuracy, %", ylim=(0, 115), yticks=range(0, 101, 20))
    axis.set_xticks(range(len(found["valid"])), list(found["valid"]))
    axis.legend(loc="upper left", ncols=2)


def _dots(axis: Axes, outcomes: Mapping[Cell, Outcome]) -> None:
    """A dot for each seed, mean and standard deviation beside them."""
    found = scores(outcomes)
    ways = [
        (f"{name}\n{split}", values) for split, by in found.items() for name, values in by.items()
    ]
    for place, (_, values) in enumerate(ways):
        spread = [place + 0.12 * ((number % 5) - 2) / 2 for number in range(len(values))]
        axis.plot(spread, values, "o", alpha=0.7)
        for x, (number, value) in zip(spread, enumerate(values, start=1)):
            axis.annotate(
                str(number), (x, value), xytext=(5, 3), textcoords="offset points", fontsize=7
            )
        middle, deviation = mean(values), _deviation(values)
        axis.errorbar(place + 0.3, middle, deviation, fmt="ks", capsize=4)
        text = f"{middle:.2f} ± {deviation:.2f}"
        axis.annotate(text, (place + 0.3, middle), xytext=(8, -3), textcoords="offset points")
    axis.set(ylabel="accuracy, %", xlim=(-0.5, len(ways) - 0.1), xlabel="numbers: seeds")
    axis.set_xticks(range(len(ways)), [label for label, _ in ways])


def _short(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
