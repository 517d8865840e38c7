"""Stage 2c: rename labels to existing units.

It writes the map to verbal.json and the renamed text to data_<method>/. --verbalizer NAME writes a
second map and text to verbalizers/NAME/. If there are more labels than units, the rest are named by
two or more units, 12+47. A prompt learns them with train.py --set verbalizer=learnable.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

from pipeline.errors import UserError, run
from pipeline.files import holding, read_json
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data import label_names, verbal
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs, print_next


def read_labelspace(path: Path, task: str) -> list[str]:
    """Return the task's labels. Raises ``UserError`` if they are missing or are not a list."""
    labels = read_json(path, verbal.LABELS_MADE_BY).get(task)
    if not isinstance(labels, list):
        raise UserError(f"{path}: no labels of {task}; run {verbal.LABELS_MADE_BY}")
    return labels


def spread_units(lm_dir: Path, units: list[str], number: int) -> list[str]:
    """Return ``number`` units that are far apart in the LM's embedding space, most frequent first:
    from each cluster of a k-means the unit nearest to the centre.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    from ulm_prompt.prompt_lm.lm import unit_embeddings

    embeddings = unit_embeddings(lm_dir, units)  # (U, D)
    clusters = KMeans(number, n_init=10, random_state=0).fit(embeddings)
    distances = clusters.transform(embeddings)  # (U, number)
    distances[clusters.labels_[:, None] != np.arange(number)] = np.inf  # only units of the cluster
    return [units[index] for index in sorted(distances.argmin(axis=0))]


def verbal_map(
    args: argparse.Namespace, pair: Pair, labels: list[str], train: Path, counts: list[Counter[str]]
) -> dict[str, str]:
    """Return label -> unit, in the order of ``labels`` (the task's label space). ``counts``: the
    units' and the labels' frequencies in the text ``train``.

    The k-th most frequent label becomes the k-th chosen unit; with ``freq``, the k-th most frequent
    unit (paper, section 3.3). Ties keep the order of first appearance. Unseen labels come last.
    """
    units, ranked = ([name for name, _ in names.most_common()] for names in counts)
    ranked += [label for label in labels if label not in counts[1]]
    used = min(len(ranked), len(units))
    if args.method == "kmeans":
        units = spread_units(lm_folder(Workspace(args.workspace), pair.unit_model), units, used)
    if args.method == "random":
        units = random.Random(args.seed).sample(units, used)
    names = units[:used] if pair.config.is_text else label_names.unit_names(units, len(ranked))
    if len(names) < len(ranked):
        problem = f"{len(ranked)} labels but only {len(units)} distinct units to name them by"
        raise UserError(f"{train}: {problem}; use a unit model with more clusters")
    by_label = dict(zip(ranked, names))
    return {label: by_label[label] for label in labels}


def make_verbalizer(args: argparse.Namespace, pair: Pair) -> None:
    """Write one task's map and renamed text."""
    workspace = Workspace(args.workspace)
    folder, kind = workspace.datasets(pair.unit_model), verbal.renamed_kind(pair, args.method)
    sources = verbal.prompt_texts(workspace, pair)
    with holding(folder):
        labels = read_labelspace(folder / "labelspace.json", pair.task)
        counts: list[Counter[str]] = [Counter(), Counter()]  # in order of first appearance
        for row in verbal.read_prompt_text(sources["train"], renamed=False):
            for count, text in zip(counts, row):
                count.update(text.split())
        names = verbal_map(args, pair, labels, sources["train"], counts)
        renamed = {
            split: verbal.rename_labels(sources[split], target, names, counts[1])
            for split, target in verbal.prompt_texts(workspace, pair, kind).items()
        }
        verbal.record_verbal(workspace, pair, names, args.method)
    print(
        f"{pair.task} {pair.unit_model}: {len(names)} labels renamed by {args.method} in "
        f"{sum(count for count, _ in renamed.values()):,} rows -> {kind}/, "
        f"{verbal.verbal_path(workspace, pair)}"
    )
    if joint := sum(label_names.JOIN in name for name in names.values()):
        remedy = "train with --set verbalizer=learnable: the fixed one cannot answer them"
        print(f"  {joint:,} labels have no unit of their own; {remedy}")
    for split, (_, unseen) in renamed.items():
        if unseen:
            print(f"  {split}: {unseen:,} rows have a label that train never has")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    methods = "freq (default): the most frequent units; kmeans: far apart in the LM's space; random"
    parser.add_argument("--method", choices=verbal.VERBAL_METHODS, default="freq", help=methods)
    parser.add_argument("--seed", type=int, default=1, help="seed of random (default: 1)")
    add_selection(parser, verbalizer=True)
    args = parser.parse_args()
    workspace, without_lm = Workspace(args.workspace), set()
    for pair in find_pairs(args):
        make_verbalizer(args, pair)
        if not lm_folder(workspace, pair.unit_model).is_dir():
            without_lm.add(pair.unit_model)
    if without_lm:
        get_lm = "ulm_prompt/train_ulm.py, or pretrained_models/download.py for a released one"
        print(f"{', '.join(sorted(without_lm))}: no unit LM yet; run {get_lm}, then")
    print_next(args, "ulm_prompt/fairseq_preprocess.py")


if __name__ == "__main__":
    run(main)
