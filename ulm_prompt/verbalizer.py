"""Stage 2c: rename labels to existing units (verbal.json) and write the renamed text,
data_<method>/.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Container
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import holding, read_json, writing
from pipeline.rows import SPLITS
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs
from ulm_prompt.prompt_data.verbal import SEPARATOR, read_prompt_text, record_verbal

METHODS = ("freq", "kmeans", "random")


def read_labelspace(path: Path, task: str) -> list[str]:
    """The task's labels. Raises ``UserError`` where they are missing or no list of labels."""
    made_by = "ulm_prompt/gen_labelspace.py"
    labels = read_json(path, made_by).get(task)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{path}: no labels of {task}; run {made_by}")
    return labels


def train_text(workspace: Workspace, pair: Pair) -> Path:
    """The text that units and labels are counted over."""
    return workspace.prompt_text(pair.unit_model, pair.config.downstream, "data_prompt", "train")


def count_train(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Counts of units and of labels over a split, each in order of first appearance."""
    units: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for row_units, row_labels in read_prompt_text(path, "ulm_prompt/make_data.py"):
        units.update(row_units.split())
        labels.update(row_labels.split())
    return units, labels


def by_frequency(counts: Counter[str]) -> list[str]:
    """Most frequent first, ties by first appearance."""
    return [symbol for symbol, _ in counts.most_common()]


def spread_units(lm: Path, units: list[str], number: int) -> list[str]:
    """``number`` units that lie far apart in the LM's embedding space, most frequent first.

    k-means over the embeddings of ``units``; of each cluster's units the one nearest its centre.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    from ulm_prompt.prompt_lm.lm import unit_embeddings

    embeddings = unit_embeddings(lm, units)  # (U, D)
    clusters = KMeans(number, n_init=10, random_state=0).fit(embeddings)
    distances = clusters.transform(embeddings)  # (U, number)
    distances[clusters.labels_[:, None] != np.arange(number)] = np.inf  # a unit is of one cluster
    return [units[index] for index in sorted(distances.argmin(axis=0))]


def verbal_map(
    workspace: Workspace,
    pair: Pair,
    method: str,
    labels: list[str],
    counts: tuple[Counter[str], Counter[str]],
    seed: int = 1,
) -> dict[str, str]:
    """label -> unit, in the order of ``labels`` (the task's label space). ``counts``: of train's
    units and labels. ``seed``: of random.

    The k-th most frequent label of the train split becomes the k-th chosen unit: with ``freq`` the
    k-th most frequent unit (paper, section 3.3). Labels that train never shows come last.
    """
    train = train_text(workspace, pair)
    unit_counts, label_counts = counts
    units = by_frequency(unit_counts)
    ranked = by_frequency(label_counts)
    ranked += [label for label in labels if label not in label_counts]
    if len(ranked) > len(units):
        raise UserError(
            f"{train}: {len(ranked)} labels but only {len(units)} distinct units to name them by; "
            "use a unit model with more clusters"
        )
    if method == "kmeans":
        units = spread_units(lm_folder(workspace, pair.unit_model), units, len(ranked))
    if method == "random":
        units = random.Random(seed).sample(units, len(ranked))
    names = dict(zip(ranked, units))
    missing = [label for label in ranked if label not in labels]
    if missing:
        raise UserError(
            f"{train}: label {missing[0]} is not in labelspace.json; "
            "run ulm_prompt/gen_labelspace.py again"
        )
    return {label: names[label] for label in labels}


def rename_split(
    workspace: Workspace,
    pair: Pair,
    names: dict[str, str],
    method: str,
    split: str,
    seen: Container[str],
) -> tuple[int, int]:
    """Write ``data_<method>/<split>.txt`` with every label renamed; return its number of lines, and
    of those with a label that is not in ``seen``.
    """
    downstream = pair.config.downstream
    source = workspace.prompt_text(pair.unit_model, downstream, "data_prompt", split)
    target = workspace.prompt_text(pair.unit_model, downstream, f"data_{method}", split)
    count = unseen = 0
    with writing(target) as handle:
        rows = read_prompt_text(source, "ulm_prompt/make_data.py")
        for count, (units, labels) in enumerate(rows, start=1):
            try:
                renamed = " ".join(names[label] for label in labels.split())
            except KeyError as error:
                raise UserError(
                    f"{source}, line {count}: label {error.args[0]} is not in the verbalizer; "
                    "run ulm_prompt/gen_labelspace.py, then this stage again"
                ) from None
            unseen += any(label not in seen for label in labels.split())
            handle.write(f"{units}{SEPARATOR}{renamed}\n")
    return count, unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="freq",
        help="freq: as published; kmeans: units spread over the LM's embedding space; random: any",
    )
    parser.add_argument("--seed", type=int, default=1, help="of random (default: 1)")
    add_selection(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    for pair in find_pairs(args):
        folder = workspace.datasets(pair.unit_model)
        with holding(folder):
            labels = read_labelspace(folder / "labelspace.json", pair.task)
            counts = count_train(train_text(workspace, pair))
            names = verbal_map(workspace, pair, args.method, labels, counts, args.seed)
            renamed = {
                split: rename_split(workspace, pair, names, args.method, split, counts[1])
                for split in SPLITS
            }
            record_verbal(workspace, pair, names, args.method)
        rows = sum(count for count, _ in renamed.values())
        print(
            f"{pair.task} {pair.unit_model}: {len(names)} labels renamed by {args.method} in "
            f"{rows:,} rows -> data_{args.method}/, {folder / 'verbal.json'}"
        )
        for split, (_, unseen) in renamed.items():
            if unseen:
                print(f"  {split}: {unseen:,} rows have a label that train never has")
    print("next: python ulm_prompt/fairseq_preprocess.py")


if __name__ == "__main__":
    run(main)
