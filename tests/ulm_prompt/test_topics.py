"""Topics: what they know of utterances whose kind nobody told; how they stand in the LM's text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from ulm_prompt.prompt_data.ulm_text import topics, write_ulm_text

KINDS = 4


def spoken(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Utterances of four kinds, each of noise around one of four sequences of the same units."""
    rng = np.random.default_rng(seed)
    words = [np.random.default_rng(kind).permutation(12) for kind in range(KINDS)]
    kinds = rng.integers(KINDS, size=count).tolist()
    lines = [np.concatenate([rng.integers(12, size=4), words[kind]]) for kind in kinds]
    return [" ".join(map(str, line)) for line in lines], kinds


def test_topics_tell_kinds_by_the_order_of_units() -> None:
    """Each kind holds the same units: uni-grams alone know nothing."""
    train, train_kinds = spoken(800, seed=1)
    valid, valid_kinds = spoken(200, seed=2)
    found = topics(train, valid, codebooks=3, seed=1)
    assert [codes.shape for codes in found] == [(800, 3), (200, 3)]
    for codes, kinds in zip(found, (train_kinds, valid_kinds)):
        for book in codes.T:
            assert book.min() >= 0 and book.max() < 100
            majority = [np.bincount(np.array(kinds)[book == topic]).max() for topic in set(book)]
            assert sum(majority) / len(kinds) > 0.95
    assert normalized_mutual_info_score(*found[0].T[:2]) < 0.999, "codebooks differ"


def test_text_holds_each_utterance_and_its_topics(tmp_path: Path) -> None:
    train, valid = spoken(60, seed=1)[0], spoken(20, seed=2)[0]
    tasks = {"train": {"words": train}, "valid": {"words": valid}}
    written = write_ulm_text(tmp_path, {"train": [], "valid": []}, tasks, 3, 5, seed=1)
    codes = topics(train, valid[:5], 3, seed=1)
    for split, lines, rows in zip(("train", "valid"), (train, valid[:5]), codes):
        found = [line.split(" <s> ") for line in written[split].read_text().splitlines()]
        assert [units for units, _ in found] == lines
        for row, (_, names) in zip(rows.tolist(), found):
            assert [int(name) for name in names.split()] == [code % 12 for code in row]
