"""Learning curves, read from the log that training leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.files import replacing

_VALID = re.compile(r"valid on 'valid' subset \| (?P<scores>.*)")
_SCORE = re.compile(r"(\w+) (-?[\d.]+(?:e-?\d+)?)")


def valid_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """Update number -> scores of each validation, in order; what a restart repeated counts once."""
    curve = {}
    with open(train_log, encoding="utf-8") as handle:
        for line in handle:
            if match := _VALID.search(line):
                scores = {name: float(value) for name, value in _SCORE.findall(match["scores"])}
                curve[int(scores["num_updates"])] = scores
    return dict(sorted(curve.items()))


def draw_curves(
    runs: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]], title: str, path: Path
) -> None:
    """Write a PNG with the valid accuracy of each run over its updates, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = plt.get_cmap("tab10").colors
    for number, (name, curves) in enumerate(runs.items()):
        for seed, curve in enumerate(curves):
            accuracies = [scores["accuracy"] for scores in curve.values()]
            style = {"color": colours[number % 10], "marker": "os^D"[number // 10 % 4]}
            axis.plot(list(curve), accuracies, label=None if seed else name, markersize=4, **style)
    axis.set(title=title, xlabel="updates", ylabel="accuracy on valid, %", xscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
