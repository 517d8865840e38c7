"""The text that a unit LM is trained on: a line an utterance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from pipeline.errors import UserError
from pipeline.files import read_json, text_lines, writing
from pipeline.rows import are_units, read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.verbal import SEPARATOR

MOST_DIGITS = 6  # of a unit


def read_unit_text(files: Sequence[Path]) -> Iterator[str]:
    """The lines of unit text files. Raises ``UserError`` for anything but integers."""
    for path in files:
        if not path.is_file():
            raise UserError(f"--text {path}: not found; expected a file with a line of units each")
        for number, line in enumerate(text_lines(path, "not found"), start=1):
            line = " ".join(line.split())
            if not are_units(line):
                raise UserError(f"{path}, line {number}: expected units, found {line[:60]!r}")
            yield line


def task_units(workspace: Workspace, unit_model: str, split: str) -> dict[str, list[str]]:
    """The distinct utterances of ``split``, by the downstream that was quantised with
    ``unit_model``.

    Distinct, because a class-balanced split draws the same file many times. Raises ``UserError``
    for downstreams that were quantised with different k-means: one unit would mean two things.
    """
    paths = sorted((workspace.root / "preprocess").glob(f"*/data/{unit_model}/{split}"))
    _check_one_kmeans([path.parent for path in paths])
    return {
        path.parents[2].name: list(dict.fromkeys(row.units for row in read_rows(path)))
        for path in paths
    }


def _check_one_kmeans(folders: Sequence[Path]) -> None:
    """Of units that were made here; of others nobody knows."""
    found: dict[str, Path] = {}
    for folder in folders:
        record = folder / "quantized" / "provenance.json"
        if record.is_file():
            plan = read_json(record, "preprocess/runner.py --action quantized").get("plan")
            if isinstance(plan, dict) and plan.get("kmeans"):
                found.setdefault(str(plan["kmeans"]), folder)
    if len(found) > 1:
        one, other, *_ = found.values()
        raise UserError(
            f"{one} and {other}: quantised with different k-means; run preprocess/runner.py "
            "--action quantized and postprocess on both again"
        )


def write_ulm_text(
    folder: Path,
    text: dict[str, Sequence[Path]],
    tasks: dict[str, dict[str, list[str]]],
    codebooks: int,
    max_valid: int,
    seed: int,
) -> dict[str, Path]:
    """Write ``folder``/{train,valid}.txt: the given text files, then the tasks' units.

    ``text`` and ``tasks`` by split. With ``codebooks`` each task utterance is followed by ``<s>``
    and its topics. ``max_valid`` > 0 keeps so many valid lines of every source.
    """
    lines = {split: {"text": read_unit_text(files)} for split, files in text.items()}
    for downstream, train in tasks["train"].items():
        if downstream not in tasks["valid"]:
            raise UserError(f"{downstream}: has train units but no valid split; quantise it too")
        valid = tasks["valid"][downstream][: max_valid or None]
        if codebooks:
            train, valid = _with_topics(train, valid, codebooks, seed)
        lines["train"][downstream], lines["valid"][downstream] = train, valid
    written = {}
    for split, sources in lines.items():
        written[split] = folder / f"{split}.txt"
        limit = max_valid or None if split == "valid" else None
        counts = Counter()
        with writing(written[split]) as handle:
            for name, source in sources.items():
                for line in islice(source, limit):
                    handle.write(line + "\n")
                    counts[name] += 1
        if not counts:
            raise UserError(
                f"no {split} units; quantise a task with preprocess/runner.py, "
                "or give --text and --valid_text"
            )
        print(f"{split}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return written


def _with_topics(
    train: list[str], valid: list[str], codebooks: int, seed: int
) -> tuple[list[str], list[str]]:

    units = sorted({unit for line in chain(train, valid) for unit in line.split()}, key=int)

    def named(lines: list[str], codes: Sequence[Sequence[int]]) -> list[str]:
        names = (" ".join(units[code % len(units)] for code in row) for row in codes)
        return [line + SEPARATOR + name for line, name in zip(lines, names)]

    return tuple(map(named, (train, valid), topics(train, valid, codebooks, seed)))


def write_dict(path: Path, texts: dict[str, Path]) -> None:
    """A dict.txt of all units up to the highest one, with their counts in train.

    A unit that only another split shows has its symbol too. Raises ``UserError`` for one beyond any
    k-means: every number up to it would become a symbol.
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
        for unit in map(str, range(highest + 1)):
            handle.write(f"{unit} {counts[unit]}\n")


# Topics: names for what an utterance is about, found without labels, that a small unit LM learns
# to tell. A released unit LM has read so much that its states hold an utterance's meaning; a
# small one sees a few minutes of text and hardly looks back. Asked to continue ``units <s>`` with
# the utterance's topics, it learns to.


WIDTH = 96  # dimensions that an utterance's n-gram weights are reduced to
CLUSTERS = 100  # of each codebook; a topic's name is a unit


def topics(
    train: Sequence[str], valid: Sequence[str], codebooks: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster utterances (lines of units) by the unit n-grams they hold.

    TF-IDF of uni- to trigrams, reduced by SVD to the unit sphere; each codebook is a k-means in a
    random half of the dimensions. Learned on ``train``. Returns (utterances, codebooks) of integers
    below ``CLUSTERS`` for each split.
    """
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 3), token_pattern=r"\S+", min_df=min(10, 1 + len(train) // 1000),
        sublinear_tf=True, max_features=15_000,
    )  # fmt: skip
    weights = vectorizer.fit_transform(train)
    width = max(1, min(WIDTH, weights.shape[1] - 1, len(train)))
    reduce = TruncatedSVD(width, random_state=seed, n_iter=2)
    places = [_unit_length(reduce.fit_transform(weights))]
    places.append(_unit_length(reduce.transform(vectorizer.transform(valid))))
    generator = np.random.default_rng(seed)
    found: list[list[np.ndarray]] = [[], []]
    for book in range(codebooks):
        directions = np.linalg.qr(generator.normal(size=(width, width)))[0][:, : (width + 1) // 2]
        kmeans = MiniBatchKMeans(
            min(CLUSTERS, 2 + len(train) // 20, len(train)),
            random_state=seed + book,
            batch_size=2048,
            n_init=1,
            max_iter=15,
        )
        kmeans.fit(places[0] @ directions)
        for codes, place in zip(found, places):
            codes.append(kmeans.predict(place @ directions))
    return np.stack(found[0], axis=1), np.stack(found[1], axis=1)


def _unit_length(places: np.ndarray) -> np.ndarray:
    return places / (np.linalg.norm(places, axis=1, keepdims=True) + 1e-9)
