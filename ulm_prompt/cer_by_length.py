"""CER against label length (the paper's figure): a PNG and a CSV in the folder of the (first)
--sample_date.

A line for each file of texts; utterances in bins of their number of labels.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import replacing, writing
from pipeline.workspace import Workspace
from ulm_prompt.cal_acc import add_sample_files, sample_files
from ulm_prompt.prompt_data.tasks import sequence_pair
from ulm_prompt.scoring.sequence_scores import (
    Answered,
    character_error_rate,
    read_answers,
    text_labels,
)


class Bin(NamedTuple):
    """Utterances of ``shortest`` to ``longest`` labels, and their CER in %."""

    shortest: int
    longest: int
    utterances: int
    cer: float


def binned(answered: Sequence[Answered], width: int) -> list[Bin]:
    """Bins of ``width`` lengths, from 1 on; those that no utterance is in are left out."""
    bins: dict[int, list[Answered]] = {}
    for one in answered:
        bins.setdefault((one.labels - 1) // width, []).append(one)
    found = []
    for number, own in sorted(bins.items()):
        texts = zip(*((one.reference.words, one.answer.words) for one in own))
        cer = character_error_rate(*texts)
        found.append(Bin(number * width + 1, (number + 1) * width, len(own), cer))
    return found


def name_of(path: Path, dates: Sequence[str]) -> str:
    """What the line of a sample file is called, with its --sample_date where there are several."""
    name = path.stem.removeprefix("samples_")
    return f"{path.parent.name.removeprefix('samples_')}: {name}" if len(dates) > 1 else name


def draw(runs: dict[str, list[Bin]], path: Path) -> None:
    """Write the PNG: a line a run, each point as large as its bin has utterances."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, bins in runs.items():
        middles = [(one.shortest + one.longest) / 2 for one in bins]
        rates = [one.cer for one in bins]
        (line,) = axis.plot(middles, rates, label=name)
        most = max(one.utterances for one in bins)
        sizes = [10 + 80 * one.utterances / most for one in bins]
        axis.scatter(middles, rates, sizes, color=line.get_color())
    axis.set(xlabel="labels of the utterance", ylabel="CER, %")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(title="larger points: more utterances")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_sample_files(parser)
    parser.add_argument("--width", type=int, default=20, help="lengths a bin (default: 20)")
    args = parser.parse_args()
    if args.width < 1:
        raise UserError(f"--width {args.width}: expected at least 1")
    workspace = Workspace(args.workspace)
    paths = sample_files(args)
    runs = {}
    for path in paths:
        pair = sequence_pair(workspace, path)
        if pair is not None:
            answered = read_answers(path, workspace, pair, text_labels(workspace, pair))
            runs[name_of(path, args.sample_date)] = binned(answered, args.width)
    if not runs:
        raise UserError(
            f"{paths[0].parent}: no samples of a task whose answers are texts; "
            "decode one with ulm_prompt/sample.py --prompt_task ASR"
        )
    output = paths[0].parent / "cer_by_length.csv"
    with writing(output) as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(["run", *Bin._fields])
        for name, bins in runs.items():
            table.writerows([name, *one[:3], f"{one.cer:.3f}"] for one in bins)
    draw(runs, output.with_suffix(".png"))
    print(f"{', '.join(runs)} -> {output} and .png")


if __name__ == "__main__":
    run(main)
