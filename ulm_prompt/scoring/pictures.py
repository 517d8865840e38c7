"""The pictures that the stages write."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from pipeline.files import replacing
from ulm_prompt.scoring.class_report import MOST_NAMED, OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ulm_prompt.scoring.sequence_scores import Bin

matplotlib.use("Agg")
logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all loggers print
COLOURS = plt.get_cmap("tab10").colors
MOST_COUNTED = 15  # classes; a larger confusion matrix has no numbers in the cells


def save(figure: plt.Figure, path: Path, dpi: int = 120) -> None:
    """Write a PNG; a failure leaves no partial file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    plt.close(figure)


Curve = Mapping[int, Mapping[str, float]]  # update -> scores


def draw_curves(
    runs: Mapping[str, Mapping[str, Curve]], guess: float | None, title: str, path: Path
) -> None:
    """Draw accuracy and loss on valid and train over updates. ``runs``: name of the run -> split ->
    curve. ``guess``: the accuracy of the most frequent label, in %.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axis, score, axis_label in (
        (left, "accuracy", "accuracy, % (given the correct previous labels)"),
        (right, "label_loss", "loss, nats per label"),
    ):
        for (name, splits), colour in zip(runs.items(), cycle(COLOURS)):
            for (split, curve), style in zip(splits.items(), ("o-", ".--")):
                values, label = [scores[score] for scores in curve.values()], f"{name}, {split}"
                axis.plot(list(curve), values, style, color=colour, markersize=4, label=label)
        axis.set(xlabel="updates", ylabel=axis_label, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    if guess is not None:
        left.axhline(guess, color="black", linestyle=":", label="most frequent label of train")
    top = max(max(line.get_ydata(), default=0.0) for line in left.lines) or 1.0
    left.set_ylim(-0.02 * top, 1.05 * top)
    legend = {"title": "--date; train: with training noise", "loc": "outside lower center"}
    figure.legend(*left.get_legend_handles_labels(), ncols=5, **legend)
    figure.suptitle(title)
    save(figure, path)


def draw_verbalizer(
    embeddings: Mapping[str, np.ndarray], labels: Mapping[str, tuple[str, str]], title: str,
    path: Path,
) -> None:  # fmt: skip
    """Draw the LM's unit embeddings, (D,) each, in the plane of the two main principal components.

    ``labels``: unit -> (slot, name) of the label that the unit means. Each axis label gives a share
    of the variance. The title gives the number of labels that have no unit of their own.
    """
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    points = dict(zip(embeddings, pca.fit_transform(np.stack(list(embeddings.values())))))
    figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
    other_points = np.array([point for unit, point in points.items() if unit not in labels])
    if len(other_points):
        axis.scatter(*other_points.T, s=14, color="0.75", label="other units")
    named = [(slot, name, unit) for unit, (slot, name) in labels.items() if unit in points]
    for slot, colour in zip(dict.fromkeys(slot for slot, *_ in named), cycle(COLOURS)):
        slot_points = np.array([points[unit] for unit_slot, _, unit in named if unit_slot == slot])
        axis.scatter(*slot_points.T, s=30, color=colour, label=slot)
    for _, name, unit in named:
        style = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 8}
        axis.annotate(f"{name} ({unit})", points[unit], **style)
    first, second = (f"{100 * s:.0f} % of the variance" for s in pca.explained_variance_ratio_)
    if without_unit := len(labels.keys() - points.keys()):
        title += f" ({without_unit:,} labels have no unit of their own)"
    axis.set(title=title, xlabel=f"first component, {first}", ylabel=f"second, {second}")
    axis.legend(fontsize=9)
    axis.grid(alpha=0.2)
    save(figure, path)


def draw_attention(shares: np.ndarray, title: str, path: Path) -> None:
    """Draw attention ``shares``, (L, H, P). Left: the share of the whole prompt by layer and head.
    Right: the share of each prompt position by layer, averaged over heads.
    """
    size, layers = (11, 2.5 + 0.35 * len(shares)), range(len(shares))
    figure, axes = plt.subplots(1, 2, figsize=size, width_ratios=(1, 2), layout="constrained")
    panels = (
        (100 * shares.sum(2), "head", "attention on the prompt, %", 100),
        (100 * shares.mean(1), "prompt position", "on each position, %", None),
    )
    for axis, (values, name, colorbar_label, top) in zip(axes, panels):
        image = axis.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axis.set(xlabel=name, ylabel="layer")
        axis.set_yticks(layers, [layer + 1 for layer in layers])
        columns = range(0, values.shape[1], max(1, values.shape[1] // 10))
        axis.set_xticks(columns, [column + 1 for column in columns])
        figure.colorbar(image, ax=axis, label=colorbar_label)
    figure.suptitle(title)
    save(figure, path)


SlotAnswers = tuple[Sequence[str], Sequence[str], Sequence[str]]  # spoken, answered, classes


def draw_confusion(slots: Mapping[str, SlotAnswers], title: str, path: Path) -> None:
    """Draw one confusion matrix per slot, two in a row."""
    most = max(len(classes) for *_, classes in slots.values())
    side = 4 + 0.28 * min(most, MOST_NAMED if len(slots) == 1 else MOST_COUNTED)
    columns = min(2, len(slots))
    rows = math.ceil(len(slots) / columns)
    size = (side + 2) * columns, side * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(slots) :]:
        axis.remove()
    for axis, (slot, answers) in zip(axes.flat, slots.items()):
        confusion_on(axis, *answers, slot or title)
    if len(slots) > 1:
        figure.suptitle(title)
    save(figure, path, dpi=110)


def confusion_on(
    axis: Axes, spoken: Sequence[str], answered: Sequence[str], classes: Sequence[str], title: str
) -> None:
    """Draw a confusion matrix. Rows: spoken classes. Columns: answered classes, then ``OTHER``."""
    columns = {name: column for column, name in enumerate((*classes, OTHER))}
    counts = np.zeros((len(classes), len(columns)))
    for label, answer in zip(spoken, answered, strict=True):
        counts[columns[label], columns[answer]] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    right = 100 * np.trace(counts) / counts.sum()
    title = f"{title}: {right:.1f} % of {len(spoken):,} test utterances"
    axis.set(title=title, xlabel="answered", ylabel="spoken")
    size = 9 if len(classes) <= MOST_COUNTED else 6
    if len(classes) <= MOST_NAMED:
        axis.set_xticks(range(len(columns)), list(columns), rotation=90, fontsize=size)
        axis.set_yticks(range(len(classes)), classes, fontsize=size)
    if len(classes) <= MOST_COUNTED:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            axis.text(column, row, f"{counts[row, column]:.0f}", **text)
    axis.figure.colorbar(image, ax=axis, label="share of the class", shrink=0.6)


def draw_cer_by_length(runs: Mapping[str, Sequence[Bin]], path: Path) -> None:
    """Draw CER over label length, one line per run. Larger points have more utterances."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, bins in runs.items():
        shortest, longest, utterances, rates = map(np.array, zip(*bins))
        middles = (shortest + longest) / 2
        (line,) = axis.plot(middles, rates, label=name)
        axis.scatter(middles, rates, 10 + 80 * utterances / max(utterances), color=line.get_color())
    axis.set(xlabel="labels of the utterance", ylabel="CER, %", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(title="larger points: more utterances")
    save(figure, path, dpi=110)
