"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.files import replacing
from ulm_prompt.scoring.label_names import OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 40  # classes beyond which the axes stay bare
MOST_COUNTED = 15  # classes beyond which the squares hold no numbers


def draw_confusion(
    spoken: Sequence[str], answered: Sequence[str], classes: Sequence[str], title: str, path: Path
) -> None:
    """Write a PNG with the matrix alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = 4 + 0.28 * min(len(classes), MOST_NAMED)
    figure, axis = plt.subplots(figsize=(side + 2, side), layout="constrained")
    confusion_on(axis, spoken, answered, classes, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def confusion_on(
    axis: Axes, spoken: Sequence[str], answered: Sequence[str], classes: Sequence[str], title: str
) -> None:
    """Draw rows of what was spoken and columns of what was answered; the last is ``OTHER``."""
    columns = [*classes, OTHER]
    index = {name: place for place, name in enumerate(columns)}
    counts = np.zeros((len(classes), len(columns)))
    for label, answer in zip(spoken, answered, strict=True):
        counts[index[label], index[answer]] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    right = 100 * np.trace(counts) / counts.sum()
    axis.set(title=f"{title}: {right:.1f} % of {len(spoken):,} test utterances")
    axis.set(xlabel="answered", ylabel="spoken")
    size = 9 if len(classes) <= MOST_COUNTED else 6
    if len(classes) <= MOST_NAMED:
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axis.set_yticks(range(len(classes)), classes, fontsize=size)
    if len(classes) <= MOST_COUNTED:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            axis.text(column, row, f"{counts[row, column]:.0f}", **text)
    axis.figure.colorbar(image, ax=axis, label="share of the class", shrink=0.6)
