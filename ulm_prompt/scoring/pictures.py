"""Learning curves, read from the log that training leaves."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

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


# Pictures of prompts: how they learned, where their labels lie among the units, how much the LM
# looks at them.


matplotlib.use("Agg")


logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets every logger speak
COLOURS = plt.get_cmap("tab10").colors


def save(figure: plt.Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def draw_curves(
    runs: Mapping[str, Mapping[int, Mapping[str, float]]], title: str, path: Path
) -> None:
    """Accuracy and loss on valid over updates, of each run by its name."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, score, what in (
        (left, "accuracy", "accuracy on valid, % (labels before it given)"),
        (right, "label_loss", "loss on valid, nats a label"),
    ):
        for name, curve in runs.items():
            values = [scores[score] for scores in curve.values()]
            axis.plot(list(curve), values, marker="o", markersize=3, label=name)
        axis.set(xlabel="updates", ylabel=what)
        axis.grid(alpha=0.3)
    right.set_ylim(bottom=0)
    left.legend(title="--date")
    figure.suptitle(title)
    save(figure, path)


def draw_verbalizer(
    embeddings: Mapping[str, np.ndarray],
    labels: Mapping[str, tuple[str, str]],
    title: str,
    path: Path,
) -> None:
    """The LM's unit embeddings, (D,) each, in the plane of their two largest principal components.

    ``labels``: unit -> (slot, name) of what it stands for. The axes say how much of the variance
    they show.
    """
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    points = dict(zip(embeddings, pca.fit_transform(np.stack(list(embeddings.values())))))
    figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
    others = np.array([point for unit, point in points.items() if unit not in labels])
    if len(others):
        axis.scatter(*others.T, s=14, color="0.75", label="other units")
    slots = list(dict.fromkeys(slot for slot, _ in labels.values()))
    for number, slot in enumerate(slots):
        units = [unit for unit, (own, _) in labels.items() if own == slot and unit in points]
        colour = COLOURS[number % len(COLOURS)]
        axis.scatter(*np.array([points[unit] for unit in units]).T, s=30, color=colour, label=slot)
        for unit in units:
            text = f"{labels[unit][1]} ({unit})"
            axis.annotate(text, points[unit], (4, 3), textcoords="offset points", fontsize=8)
    first, second = (
        f"{100 * share:.0f} % of the variance" for share in pca.explained_variance_ratio_
    )
    axis.set(title=title, xlabel=f"first component, {first}", ylabel=f"second, {second}")
    axis.legend(fontsize=9)
    axis.grid(alpha=0.2)
    save(figure, path)


def draw_attention(shares: np.ndarray, title: str, path: Path) -> None:
    """``shares``, (L, H, P): on the left the whole prompt's share by layer and head, on the right
    each prefix position's by layer, averaged over heads.
    """
    layers, heads, length = shares.shape
    size = (11, 2.5 + 0.35 * layers)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=size, width_ratios=(1, 2), layout="constrained"
    )
    panels = (
        (left, 100 * shares.sum(2), "head", "attention on the prompt, %", 100),
        (right, 100 * shares.mean(1), "prefix position", "on each position, %", None),
    )
    for axis, values, name, what, top in panels:
        image = axis.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axis.set(
            xlabel=name, ylabel="layer", yticks=range(layers), yticklabels=range(1, layers + 1)
        )
        columns = range(0, values.shape[1], max(1, values.shape[1] // 10))
        axis.set_xticks(columns, [column + 1 for column in columns])
        figure.colorbar(image, ax=axis, label=what)
    figure.suptitle(title)
    save(figure, path)
