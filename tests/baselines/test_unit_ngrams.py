"""The linear classifier on unit n-grams."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest

from baselines import unit_ngrams
from baselines.classifiers.answers import load_settings
from baselines.unit_ngrams import CONFIG, Settings, classifiers
from pipeline.errors import UserError
from pipeline.rows import SPLITS, Row, write_rows
from pipeline.workspace import Workspace
from ulm_prompt.scoring.scores import score


def rows_of(count: int, seed: int) -> list[Row]:
    """Return rows whose label is the order of 7 and 9, which only bigrams can tell."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        units = [str(rng.randrange(20, 30)) for _ in range(rng.randint(2, 8))]
        label = rng.randrange(2)
        units[1:1] = ["7", "9"] if label else ["9", "7"]
        rows.append(Row(f"{number}.wav", " ".join(units), f"{label} {5 + label}"))
    return rows


@pytest.mark.parametrize("ngrams", [1, 2])
def test_the_script_learns_what_bigrams_tell(tmp_path, monkeypatch, capsys, ngrams):
    for seed, split in enumerate(SPLITS):
        rows = rows_of(300 if split == "train" else 100, seed)
        write_rows(Workspace(tmp_path).rows("fluent_commands", "own8", split), rows)
    flags = ["--date", "d", "--workspace", str(tmp_path), "--set", f"ngrams={ngrams}"]
    monkeypatch.setattr(sys, "argv", ["unit_ngrams", *flags])
    unit_ngrams.main()
    printed = capsys.readouterr().out
    result = score(Workspace(tmp_path).samples("IC", "own8", "ngrams_d", "d"))
    assert f"{result['accuracy']:.2f} % right on test" in printed
    assert (result["accuracy"] == 100) == (ngrams == 2)
    assert result["accuracy_within_labels"] == result["accuracy"] and result["utterances"] == 100


def test_features_are_log_counts_and_weights_stand_for_repeated_rows():
    import numpy as np
    from sklearn.svm import LinearSVC

    settings = load_settings(Settings, CONFIG, ["costs=[0.1]"])
    distinct = rows_of(60, 3)
    for number in range(0, 60, 3):  # wrong labels, so that the weights matter
        distinct[number] = distinct[number]._replace(labels="0 5")
    train = [row for number, row in enumerate(distinct) for _ in range(1 + number % 4)]
    (svm,) = classifiers(settings, train)
    names = sorted({gram for row in train for gram in grams(row.units)})

    def counts(rows: list[Row]) -> np.ndarray:
        table = [[grams(row.units).count(name) for name in names] for row in rows]
        return np.log1p(np.array(table, float))

    plain = LinearSVC(C=0.1, dual=True, random_state=1, max_iter=100_000, tol=1e-8)
    plain.fit(counts(train), [row.labels for row in train])
    new = rows_of(200, 4)
    units = [row.units for row in new]
    expected = plain.decision_function(counts(new))
    np.testing.assert_allclose(svm.decision_function(units), expected, atol=0.02)
    assert svm.predict(units).tolist() == plain.predict(counts(new)).tolist()


def grams(units: str) -> list[str]:
    unigrams = units.split()
    return unigrams + [" ".join(pair) for pair in pairwise(unigrams)]


def test_what_cannot_be_classified_is_refused(tmp_path, monkeypatch):
    def fails(message: str, *more: str) -> None:
        flags = ["--date", "d", "--workspace", str(tmp_path), *more]
        monkeypatch.setattr(sys, "argv", ["unit_ngrams", *flags])
        with pytest.raises(UserError, match=message):
            unit_ngrams.main()

    fails("no quantised data")
    fails("costs=.*: expected a positive number", "--set", "costs=[0.1,0]")
    fails("costs=.*: expected a positive number", "--set", "costs=[]")
    fails("counts", "--set", "counts=square")
    for split in SPLITS:
        write_rows(Workspace(tmp_path).rows("fluent_commands", "own8", split), [Row("a", "1", "1")])
    fails("one class only")
