"""Your own task from a table: what is read, how splits are drawn, and the stages on it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from preprocess.preprocessor import Utterance
from preprocess.table.preprocessor import Line, TableData, draw_splits, read_table
from tests.conftest import stage
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor

COLUMNS = {"root_path": ".", "table": "t.csv", "path": "path", "labels": ["label"],
           "split": "split", "speaker": "speaker", "valid": 0.1, "test": 0.2}  # fmt: skip


def columns(**changes: object) -> TableData:
    return TableData(**COLUMNS | changes)


def read(folder: Path, content: str, name: str = "t.csv", **changes: object) -> list[Line]:
    (folder / name).write_bytes(content.encode())
    return read_table(folder / name, columns(**changes), lambda text: text.upper())


def test_a_table_from_a_spreadsheet(tmp_path):
    """A byte order mark, Windows' line ends, tabs, more columns, quotes, unicode and | in names."""
    text = '\ufefflabel\tpath\tnote\r\nowl\t"a|b ö.wav"\tx\r\ncat \tsub/c.wav\t\r\n'
    lines = read(tmp_path, text, "t.tsv")
    assert [line.utterance for line in lines] == [
        Utterance("a|b ö.wav", ("owl",)),
        Utterance("sub/c.wav", ("cat",)),
    ]
    assert {(line.split, line.speaker) for line in lines} == {(None, None)}
    (line,) = read(tmp_path, "path,said,split\na.wav,hi you,test\n", labels=[], text="said")
    assert line == Line(Utterance("a.wav", "HI YOU"), "test", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path' .* which has nothing"),
        ("file,label\na,b\n", "no column 'path' .* file, label"),
        ("path,label\na.wav,\n", "line 2: nothing in the column 'label'"),
        ("path,label\n,x\n", "line 2: nothing in the column 'path'"),
        ("path,label\n../a.wav,x\n", "expected a path inside"),
        ("path,label\n/etc/passwd,x\n", "expected a path inside"),
        ("path,label\na,x\nb,y\na,y\n", "line 4: a is already in line 2"),
        ("path,label,split\na,x,dev\n", "split 'dev'; expected train, valid, test"),
        ("path,label,split\na,x,test\nb,y\n", "line 3: nothing in the column 'split'"),
        ("path,speaker,label\na,ann,x\nb, ,y\n", "line 3: nothing in the column 'speaker'"),
        ("path,label\n\udc80a,x\n", "not a table in UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.csv", columns(), str)


lines = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["ann", "bob", "cyd", "dan", "eve"])),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(lines, st.integers(0, 9), st.booleans())
def test_drawn_splits(labels, seed, with_speakers):
    """Speakers stay together; without them every class is learned, and tested when it has three."""
    table = [
        Line(Utterance(f"{i}.wav", (label,)), None, speaker if with_speakers else None)
        for i, (label, speaker) in enumerate(labels)
    ]
    found = draw_splits(table, columns(), seed)
    assert found == draw_splits(table, columns(), seed)
    groups: dict[str, list[str]] = {}
    for line, split in zip(table, found, strict=True):
        groups.setdefault(line.speaker or line.utterance.labels[0], []).append(split)
    for splits in groups.values():
        if with_speakers:
            assert len(set(splits)) == 1
        else:
            assert "train" in splits
            if len(splits) >= 3:
                assert set(splits) == {"train", "valid", "test"}
            assert splits.count("test") <= max(1, 0.2 * len(splits) + 0.5)


def test_characters_that_are_left_out_of_texts_are_told(tmp_path, capsys):
    """Once, though each split reads the table."""
    task = preprocessor("table", tmp_path, "datarc.text=said", "datarc.labels=[]")
    for split in SPLITS:
        write(task.root / f"{split}.wav", tone(0.3, 300))
    lines = (f"{split}.wav,room 42 für ß 2,{split}" for split in SPLITS)
    (task.root / "table.csv").write_text("\n".join(["path,said,split", *lines]))
    task.generate_manifest()
    (told,) = (line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert "table.csv: 9 characters left out ('2' 6 '4' 3)" in told


def test_a_folder_of_recordings_becomes_rows_without_python(tmp_path):
    root = tmp_path / "corpora" / "table"
    root.mkdir(parents=True)
    with open(root / "table.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["path", "label"])
        for number in range(24):
            name = f"clips/{'owl|2' if number % 2 else 'kite ö'}/{number}.wav"
            write(root / name, tone(0.3, 100 + 300 * (number % 2) + number))
            table.writerow([name, ("owl", "kite")[number % 2]])
    flags = ("--workspace", tmp_path, "--unit_model", "logmel100",
             "--set", "fairseqrc.km_clusters=8", "fairseqrc.km_starts=1")  # fmt: skip
    for action in ("generate_manifest", "learn_kmeans", "quantized", "postprocess"):
        stage("preprocess/runner.py", "--action", action, *flags)
    data = tmp_path / "preprocess" / "table" / "data" / "logmel100"
    rows = {split: list(read_rows(data / split)) for split in ("train", "valid", "test")}
    assert {split: len(found) for split, found in rows.items()} == {
        "train": 20,
        "valid": 2,
        "test": 2,
    }
    for found in rows.values():
        assert {row.labels for row in found} == {"0", "1"}
    stage("ulm_prompt/make_data.py", "--workspace", tmp_path)
