"""Measure how the cost of decoding and of a training step grows with the utterance's length, the
batch size and the prompt length. Print a table; --picture FILE also writes a plot.

python -m tests.benchmarks growth, or python -m tests.benchmarks.bench_growth [--picture FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tests.benchmarks.measure import DEVICE, random_model, timed
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.search import Options, decode

DEFAULTS = {"length": 100, "batch": 32, "prompt": 6}
VALUES = {
    "length": (25, 50, 100, 200, 400, 800),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
    "prompt": (1, 3, 6, 12, 25, 50, 100),
}
TITLES = {"length": "units an utterance", "batch": "utterances a batch", "prompt": "prompt length"}
LABELS = 3


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="write the plot to this PNG file")
    args = parser.parse_args(arguments)
    print(f"3.2M LM on {DEVICE}, {torch.get_num_threads()} threads; defaults: {DEFAULTS}")
    times = {}
    for knob, values in VALUES.items():
        print(f"{TITLES[knob]:>20}{'decode, ms an utterance':>26}{'train, ms an utterance':>25}")
        times[knob] = [measure(**DEFAULTS | {knob: value}) for value in values]
        for value, (decoding, training) in zip(values, times[knob], strict=True):
            print(f"{value:20}{decoding:26.2f}{training:25.2f}", flush=True)
    if args.picture:
        draw(times, args.picture)


def measure(length: int, batch: int, prompt: int) -> tuple[float, float]:
    """Return milliseconds per utterance of decoding and of a training step."""
    model = random_model("3.2M", prompt)
    tokens = np.random.default_rng(0).integers(4, tiny.SYMBOLS, (batch, length + 2 + LABELS))
    tokens[:, length], tokens[:, -1] = 0, tiny.EOS  # units <s> labels </s>
    rows = [torch.tensor([tiny.EOS, *row]) for row in tokens[:, : length + 1]]
    sets = LabelSets.build("slots", tokens[:, length + 1 : -1].tolist(), tiny.SYMBOLS, tiny.EOS)
    options = Options(max_labels=LABELS + 1, batch_size=batch)
    cached = CachedLM(model, tiny.PAD, tiny.EOS)
    examples = [{"id": 0, "tokens": row, "separator": length} for row in tokens]
    sample, criterion = tiny.on(DEVICE, tiny.collate(examples)), tiny.criterion("answer")
    model.eval()
    decoding = milliseconds(lambda: list(decode(cached, rows, sets, options)))
    model.train()
    return decoding / batch, milliseconds(lambda: criterion(model, sample)[0].backward()) / batch


def milliseconds(work: Callable[[], object], seconds: float = 1.5) -> float:
    """Return the median time of ``work``, repeated at least three times and for ``seconds``."""
    times: list[float] = []
    work()
    while len(times) < 3 or sum(times) < seconds:
        times.append(timed(work)[0])
    return 1000 * median(times)


def draw(times: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Write the plot as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axis, (knob, pairs) in zip(figure.subplots(1, 3, sharey=True), times.items()):
        axis.loglog(VALUES[knob], pairs, marker="o", label=("decode", "training step"))
        axis.set(xlabel=TITLES[knob], xticks=VALUES[knob], xticklabels=map(str, VALUES[knob]))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("milliseconds an utterance")
    figure.axes[0].legend()
    figure.suptitle("3.2M unit LM; where not varied: 100 units, 32 utterances, prompt length 6")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
