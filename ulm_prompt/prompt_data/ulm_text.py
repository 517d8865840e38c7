"""The text that a unit LM is trained on, one utterance per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.files import read_json, text_lines, writing
from pipeline.rows import are_units, read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.verbal import SEPARATOR

MOST_DIGITS = 6  # of a unit's number
WIDTH = 96  # dimensions of an utterance after the SVD of its n-gram weights
CLUSTERS = 100  # per codebook; a topic's name is a unit


def read_unit_text(files: Sequence[Path]) -> Iterator[str]:
    """Stream the lines of unit text files. Raises ``UserError`` for a line that is not integers."""
    for path in files:
        missing = "not found; expected a text file with one line of units per utterance"
        for number, line in enumerate(text_lines(path, missing), start=1):
            line = " ".join(line.split())
            if not are_units(line):
                raise UserError(f"{path}, line {number}: expected units, found {line[:60]!r}")
            yield line


def task_units(workspace: Workspace, unit_model: str, split: str) -> dict[str, list[str]]:
    """Return downstream -> its distinct utterances of ``split``; a class-balanced split repeats
    some. Raises ``UserError`` if the downstreams were quantised with different k-means.
    """
    units: dict[str, list[str]] = {}
    folder_by_kmeans: dict[str, Path] = {}  # the k-means of units made elsewhere is unknown
    for path in sorted((workspace.root / "preprocess").glob(f"*/data/{unit_model}/{split}")):
        units[path.parents[2].name] = list(dict.fromkeys(row.units for row in read_rows(path)))
        record = path.parent / "quantized" / "provenance.json"
        if record.is_file():
            plan = read_json(record, "preprocess/runner.py --action quantized").get("plan") or {}
            if kmeans := plan.get("kmeans"):
                folder_by_kmeans.setdefault(kmeans, path.parent)
    if len(folder_by_kmeans) > 1:
        first, second, *_ = folder_by_kmeans.values()
        remedy = "run preprocess/runner.py --action quantized and postprocess on both again"
        raise UserError(f"{first} and {second}: quantised with different k-means; {remedy}")
    return units


def write_ulm_text(
    folder: Path, text: dict[str, Sequence[Path]], tasks: dict[str, dict[str, list[str]]],
    codebooks: int, max_valid: int, seed: int,
) -> dict[str, Path]:  # fmt: skip
    """Write ``folder``/{train,valid}.txt: the lines of the ``text`` files, then the tasks' units.

    ``text`` and ``tasks`` are by split. ``codebooks``: the number of topics that follow each task
    utterance, after ``<s>``. ``max_valid``: the most valid lines per source; 0: all lines.
    """
    lines = {split: {"text": read_unit_text(files)} for split, files in text.items()}
    for downstream, train in tasks["train"].items():
        if downstream not in tasks["valid"]:
            raise UserError(f"{downstream}: has train units but no valid split; quantise it too")
        task = {"train": train, "valid": tasks["valid"][downstream][: max_valid or None]}
        units = sorted({unit for line in chain(*task.values()) for unit in line.split()}, key=int)
        codes = topics(*task.values(), codebooks, seed) if codebooks else ()
        for split, rows in zip(task, codes):
            names = (" ".join(units[code % len(units)] for code in row) for row in rows)
            task[split] = [line + SEPARATOR + topic for line, topic in zip(task[split], names)]
        for split, utterances in task.items():
            lines[split][downstream] = utterances
    written = {}
    for split, sources in lines.items():
        written[split] = folder / f"{split}.txt"
        counts: Counter[str] = Counter()
        with writing(written[split]) as handle:
            for name, source in sources.items():
                for line in islice(source, max_valid if split == "valid" and max_valid else None):
                    handle.write(line + "\n")
                    counts[name] += 1
        if not counts:
            remedy = "quantise a task with preprocess/runner.py, or add --text and --valid_text"
            raise UserError(f"no {split} units; {remedy}")
        print(f"{split}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return written


def write_dict(path: Path, texts: dict[str, Path]) -> None:
    """Write a dict.txt of all units from 0 to the highest of any split, with their counts in train.
    Raises ``UserError`` for a unit too high for a k-means: dict.txt lists every unit below it.
    """
    counts: Counter[str] = Counter()
    highest = 0
    for split, text in texts.items():
        with open(text, encoding="utf-8") as handle:
            for line in handle:
                units = line.replace(SEPARATOR, " ").split()
                longest = max(units, key=len, default="")
                if len(longest) > MOST_DIGITS:
                    raise UserError(f"{text}: unit {longest[:60]}; expected a k-means cluster")
                highest = max(highest, *map(int, units))
                if split == "train":
                    counts.update(units)
    with writing(path) as handle:
        handle.writelines(f"{unit} {counts[str(unit)]}\n" for unit in range(highest + 1))


def topics(
    train: Sequence[str], valid: Sequence[str], codebooks: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster utterances (lines of units) by their unit n-grams. Returns (utterances, codebooks)
    integers below ``CLUSTERS`` for each split.

    A topic says, without labels, what an utterance is about. A small unit LM reads little text and
    makes little use of earlier units. Continuing ``units <s>`` with the topics teaches it to.

    TF-IDF weights uni- to trigrams. An SVD reduces them, and they are scaled to length 1. Each
    codebook is a k-means in a random half of the dimensions, learned on ``train``.
    """
    # imported here: train_ulm.py checks its flags first
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 3), token_pattern=r"\S+", min_df=min(10, 1 + len(train) // 1000),
        sublinear_tf=True, max_features=15_000,
    )  # fmt: skip
    weights = vectorizer.fit_transform(train)
    width = max(1, min(WIDTH, weights.shape[1] - 1, len(train)))
    reduce = TruncatedSVD(width, random_state=seed, n_iter=2)
    reduced = reduce.fit_transform(weights), reduce.transform(vectorizer.transform(valid))
    points = [rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9) for rows in reduced]
    generator = np.random.default_rng(seed)
    clusters = min(CLUSTERS, 2 + len(train) // 20, len(train))
    codes = []  # per codebook: the clusters of both splits
    for book in range(codebooks):
        directions = np.linalg.qr(generator.normal(size=(width, width)))[0][:, : (width + 1) // 2]
        kmeans = MiniBatchKMeans(
            clusters, random_state=seed + book, batch_size=2048, n_init=1, max_iter=15
        ).fit(points[0] @ directions)
        codes.append([kmeans.predict(rows @ directions) for rows in points])
    return tuple(np.stack(split_codes, axis=1) for split_codes in zip(*codes))
