"""Splits of a table: drawn, given in the table, or by numbers and shares in the config."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.preprocessor import Utterance
from preprocess.table.splits import draw_splits
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import read_tables


def drawn(
    answers: list[tuple[str, ...]],
    speakers: list[str] | None = None,
    test: float = 0.1,
    seed: int = 0,
) -> tuple[list[str], str]:
    rows = [Utterance(f"{number}.wav", labels) for number, labels in enumerate(answers)]
    return draw_splits(rows, speakers or [None] * len(rows), 0.1, test, seed)


rows = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["ann", "bob", "cyd", "dan", "eve"])),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 9), st.booleans())
def test_drawn_splits(rows, seed, with_speakers):
    """A speaker is in one split. Without speakers, every split has each class of three rows."""
    answers = [(label,) for label, _ in rows]
    speakers = [speaker for _, speaker in rows] if with_speakers else None
    if with_speakers and len(set(speakers)) < 3:
        with pytest.raises(UserError, match="speakers, too few"):
            drawn(answers, speakers, 0.2, seed)
        return
    drawn_splits, how = drawn(answers, speakers, 0.2, seed)
    assert (drawn_splits, how) == drawn(answers, speakers, 0.2, seed)
    groups: dict[str, list[str]] = {}
    for (label, speaker), split in zip(rows, drawn_splits, strict=True):
        groups.setdefault(speaker if with_speakers else label, []).append(split)
    for splits in groups.values():
        if with_speakers:
            assert len(set(splits)) == 1
        else:
            assert "train" in splits and splits.count("test") <= max(1, 0.2 * len(splits) + 0.5)
            assert len(splits) < 3 or set(splits) == set(SPLITS)


@pytest.mark.parametrize("seed", range(3))
def test_splits_of_many_labels_have_their_shares(seed):
    """Six label columns and few equal rows: valid and test get a tenth each, train every label."""
    rng = random.Random(seed)
    answers = [tuple(f"{rng.randrange(4 + 8 * c)}" for c in range(6)) for _ in range(619)]
    splits, how = drawn(answers, seed=seed)
    assert (splits.count("valid"), splits.count("test")) == (62, 62)
    assert how == "drawn so that train has every label"
    counts = Counter((c, name, split) for answer, split in zip(answers, splits)
                     for c, name in enumerate(answer))  # fmt: skip
    for c, name, _ in list(counts):
        assert counts[c, name, "train"]
        total = sum(counts[c, name, split] for split in SPLITS)
        assert counts[c, name, "test"] <= max(2, 0.3 * total)


def test_pieces_of_one_recording_stay_in_one_split():
    pieces = [Utterance(f"{n % 10}.wav", ("a",), n, 9, f"{n}") for n in range(40)]
    splits, how = draw_splits(pieces, [None] * 40, 0.1, 0.1, 0)
    assert splits[:10] * 4 == splits and set(splits) == set(SPLITS)
    assert how == "drawn by recording (train 8, valid 1, test 1)"


def test_files_whose_folders_are_columns(tmp_path, capsys):
    """Grabo's rule: per speaker and command, the first 2 takes are train, and the next 4 valid."""
    names = [f"{who}/x/{word}/Voice_{n}.wav" for who in "ab" for word in ("go", "no")
             for n in range(1, 11)]  # fmt: skip
    files = {**dict.fromkeys(names, ""), "a/x/go/notes.txt": "", "more/b.wav": ""}
    keys = ("table=", "files='{speaker}/x/{word}/*.wav'", "labels=[word]", "per=[speaker,word]",
            "rows={train: 2, valid: 4}", "in_order=true")  # fmt: skip
    task, splits = read_tables(tmp_path, files, *keys)
    assert [len(splits[split]) for split in SPLITS] == [8, 16, 16]
    assert splits["train"][:2] == [Utterance(f"a/x/go/Voice_{n}.wav", ("go",)) for n in (1, 2)]
    assert splits["test"][3] == Utterance("a/x/go/Voice_10.wav", ("go",))
    shares = "40 rows, splits 40 rows shared out in 4 groups (train 2, valid 4 of each)"
    assert shares in capsys.readouterr().out
    assert task.listing.notes() == ["skipped files of other types: 1 (notes.txt)"]
    for files, message in (
        ("{word}/y/*.wav", r"no file matches datarc\.files=.*; the folder has a, b, m"),
        ("{who}/x/*/*.wav", r"no \{word\} in it"),
    ):
        with pytest.raises(UserError, match=message):
            read_tables(tmp_path, {}, "table=", f"files='{files}'", "labels=[word]")


def test_shares_of_rows_without_a_split(tmp_path, capsys):
    """ESC-50's folds: one fold is test. In the other folds, the seed draws a fifth per class."""
    rows = [f"{n}.wav,{'ab'[n % 2]},{n % 5}" for n in range(50)] + ["x.wav,c,1"]
    files = {"table.csv": "\n".join(["path,label,fold", *rows])}
    keys = ("split=fold", "splits={'0': test, '1': , '2': , '3': , '4': }", "rows={valid: 0.2}",
            "names={a: owl, b: cat}")  # fmt: skip
    _, splits = read_tables(tmp_path, files, *keys)
    assert "1 rows left out, their labels are not in datarc.names ('c')" in capsys.readouterr().out
    counts = {split: Counter(row.labels[0] for row in splits[split]) for split in SPLITS}
    assert counts == {"train": {"owl": 16, "cat": 16}, "valid": {"owl": 4, "cat": 4},
                      "test": {"owl": 5, "cat": 5}}  # fmt: skip
    assert read_tables(tmp_path, files, *keys)[1] == splits
    assert read_tables(tmp_path, files, *keys, "rows={train: 1, valid: 2, test: 3}")[1] != splits
    assert "28 left out" in capsys.readouterr().out
    for wrong_keys, message in (
        (keys[:1], r"line 2: split '0'; expected train"),
        (keys[:2], r"datarc\.rows={}: expected numbers .* rows without a split"),
        ((*keys, "rows={dev: 2}"), r"datarc\.rows=.*: expected numbers above 0 for train"),
        ((*keys, "rows={valid: -1}"), r"datarc\.rows="),
        ((*keys, "audio='{folder}/{path}'"), r"line 2: datarc\.audio: no column 'folder'"),
    ):
        with pytest.raises(UserError, match=message):
            read_tables(tmp_path, files, *wrong_keys)


def test_a_warning_names_an_unexpected_size(tmp_path, capsys):
    for n in range(6):
        write(tmp_path / f"corpora/table/{'ab'[n % 2]}/{n}.wav", tone(0.2, 300))
    keys = ("table=", "files='{word}/*.wav'", "labels=[word]", "rows={train: 1, valid: 1}")
    expected = "expected={train: 1, valid: 2, test: 1500, classes: 3}"
    read_tables(tmp_path, {}, *keys, expected)[0].generate_manifest()
    counts = "train 2 (expected 1), test 2 (expected 1,500), classes 2 (expected 3)"
    assert f"warning, not the corpus's known size: {counts}\n" in capsys.readouterr().out
    task, _ = read_tables(tmp_path, {}, *keys, "expected={dev: 2}")
    with pytest.raises(UserError, match=r"datarc\.expected: dev: expected one of train, valid"):
        task.generate_manifest()
