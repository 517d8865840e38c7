"""Your own task from a table: what is read, how splits are drawn, and the stages on it."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from preprocess.actions.manifest import read_manifest
from preprocess.preprocessor import Utterance
from preprocess.table.preprocessor import Table
from preprocess.table.splits import Line, draw_splits
from tests.conftest import stage
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor


def table(workspace: Path, content: str, *overrides: str, name: str = "table.csv") -> Table:
    """The task, with this table in its corpus folder."""
    root = workspace / "corpora" / "table"
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    task = preprocessor("table", workspace, f"datarc.table={name}", *overrides)
    assert isinstance(task, Table)
    return task


def read(task: Table) -> list[Utterance]:
    return [utterance for split in SPLITS for utterance in task.utterances(split)]


def test_a_table_from_a_spreadsheet(tmp_path):
    """A byte order mark, Windows' line ends, tabs, more columns, quotes, unicode and | in names."""
    text = '\ufefflabel\tpath \tnote\r\nowl\t"a|b ö.wav"\tx\r\n\r\ncat \tsub/c.wav\t\r\n'
    assert read(table(tmp_path, text, name="t.tsv")) == [
        Utterance("a|b ö.wav", ("owl",)),
        Utterance("sub/c.wav", ("cat",)),
    ]
    text = "path,said,split\na.wav,hi you,test\n"
    task = table(tmp_path, text, "datarc.labels=[]", "datarc.text=said")
    assert task.utterances("test") == [Utterance("a.wav", "HI YOU")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path', 'label' .* which has nothing"),
        ("file,label\na,b\n", "no column 'path' .* file, label; name yours in datarc"),
        ("path;label\na.wav;x,y\n", "is its separator ';', not ','"),
        ("path\tlabel\na.wav\tx\n", r"is its separator '\\t', not ','"),
        ("path,label,label\na,b,c\n", "two columns 'label' in its first line"),
        ("path,label\na.wav,\n", "line 2: nothing in the column 'label'"),
        ("path,label\n,x\n", "line 2: nothing in the column 'path'"),
        ("path,label\n../a.wav,x\n", "expected a path inside"),
        ("path,label\n/etc/passwd,x\n", "expected a path inside"),
        ("path,label\na\0b.wav,x\n", "line 2: a NUL character"),
        ("path,label\nclips\\a.wav,x\n", r"line 2: .*not found; write / between folders"),
        ("path,label\na,x\nb,y\n./a,y\n", r"line 4: a is already in .*table\.csv, line 2"),
        ("path,label,text\na,x,hello, world\n", "line 2: 4 fields, the first line has 3"),
        ("path,label,text\na,x\n", "line 2: 2 fields, the first line has 3"),
        ('path,label\na,x\nb,"y\nc,z"\n', "line 3: a quotation mark closes in another line"),
        ('path,label\na,x\nb,"y\n', "line 3: unexpected end"),
        ("path,label,split\na,x,dev\n", "split 'dev'; expected train, valid, test"),
        ("path,label,split\na,x,test\nb,y,\n", "line 3: nothing in the column 'split'"),
        ("path,speaker,label\na,ann,x\nb, ,y\n", "line 3: nothing in the column 'speaker'"),
        ("path,speaker,label\na,ann,x\nb,bob,y\n", "2 speakers, too few to draw train"),
        ("path,label,start\na,x,1:30\n", r"line 2: start '1:30', end ''; expected seconds"),
        ("path,label\n\udc80a,x\n", "not a table in UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(table(tmp_path, text))


@pytest.mark.parametrize("override", ["valid=nan", "test=0", "test=0.95", "table=[a.csv,b.csv]",
                                      "table=7", "text=label"])  # fmt: skip
def test_settings_that_cannot_be(tmp_path, override):
    with pytest.raises(UserError, match=r"datarc"):
        read(table(tmp_path, "path,label\na,x\n", f"datarc.{override}"))


def test_quotation_marks_swallow_no_row(tmp_path, capsys):
    """Common Voice quotes nothing: nine rows stay nine, each with its own label."""
    texts = ["hi", '"Hello', "so", "no", 'a "b" c', 'bye"', "u", "v", "w"]
    rows = [f"{n}.wav\t{text}\tlabel{n}\ttrain" for n, text in enumerate(texts)]
    text = "\n".join(["path\tsentence\tlabel\tsplit", *rows, ""])
    utterances = table(tmp_path, text, name="t.tsv").utterances("train")
    assert utterances == [Utterance(f"{n}.wav", (f"label{n}",)) for n in range(9)]
    said = capsys.readouterr().out
    assert "t.tsv: quotation marks are read as text" in said and "t.tsv, line 3" in said
    assert "t.tsv: 9 rows, splits as given" in said


def test_a_split_a_table(tmp_path):
    """As Common Voice ships: three tables beside clips/, whose names they hold."""
    clips = tmp_path / "corpora" / "table" / "clips"
    clips.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (clips.parent / f"{name}.tsv").write_text(f"client_id\tpath\tsentence\n1\t{name}.mp3\tHi\n")
    settings = ("datarc.table=[../train.tsv,../dev.tsv,../test.tsv]", "datarc.labels=[]",
                "datarc.text=sentence", f"datarc.root_path={clips}")  # fmt: skip
    task = preprocessor("table", tmp_path, *settings)
    assert [task.utterances(split)[0].path for split in SPLITS] == ["train.mp3", "dev.mp3",
                                                                     "test.mp3"]  # fmt: skip
    (clips.parent / "dev.tsv").write_text("path\tsentence\ntrain.mp3\tHi\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: train\.mp3 is already in .*train\.tsv"):
        task.utterances("train")


def test_rows_that_are_pieces_of_files(tmp_path):
    """Seconds to samples at the file's own rate; a name for each row; overlapping is no mistake."""
    write(tmp_path / "corpora/table/1.wav", tone(2.0, 300, 8_000), 8_000)
    write(tmp_path / "corpora/table/2.wav", tone(1.0, 300))
    rows = ["1.wav,a,0.5,1.25,train", "1.wav,b,1,,valid", "1.wav,c,,0.00125,test",
            "2.wav,a,,,train", "1.wav,a,1.5,2.004,train"]  # fmt: skip
    text = "path,label,start,end,split\n" + "\n".join(rows)
    task = table(tmp_path, text)
    assert read(task) == [
        Utterance("1.wav", ("a",), 4000, 6000, "1.wav:0.500-1.250"),
        Utterance("2.wav", ("a",)),
        Utterance("1.wav", ("a",), 12000, 4000, "1.wav:1.500-2.004"),
        Utterance("1.wav", ("b",), 8000, 8000, "1.wav:1.000-end"),
        Utterance("1.wav", ("c",), 0, 10, "1.wav:0.000-0.00125"),
    ]
    everywhere = "".join(f"1.wav,b,1.{n},,{split}\n" for n, split in enumerate(SPLITS))
    task = table(tmp_path, "path,label,from,to,split\n" + everywhere,
                 "datarc.start=from", "datarc.end=to")  # fmt: skip
    task.generate_manifest()
    _, (entry,) = read_manifest(task.manifest / "test.tsv")
    assert entry == ("1.wav", 6400, 9600, "1.wav:1.200-end", "0")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.5,2.1", r"line 3: 0\.5 to 2\.1 s; 1\.wav lasts 2\.000 s"),
        ("1,1", r"line 3: 1 to 1 s"),
        ("-1,1", r"line 3: -1 to 1 s"),
        ("nan,1", r"line 3: nan to 1 s"),
        ("0,inf", r"line 3: 0 to inf s"),
        ("0.250,1.0", r"line 3: 1\.wav:0\.250-1\.000 is already in .*line 2"),
    ],
)
def test_pieces_that_cannot_be(tmp_path, row, message):
    write(tmp_path / "corpora/table/1.wav", tone(2.0, 300))
    text = f"path,start,end,label,split\n1.wav,0.25,1,x,train\n1.wav,{row},x,train\n"
    with pytest.raises(UserError, match=message):
        read(table(tmp_path, text))


lines = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["ann", "bob", "cyd", "dan", "eve"])),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(lines, st.integers(0, 9), st.booleans())
def test_drawn_splits(labels, seed, with_speakers):
    """Speakers stay together; without them every class is learned, and tested when it has three."""
    lines = [
        Line(Utterance(f"{i}.wav", (label,)), None, speaker if with_speakers else None)
        for i, (label, speaker) in enumerate(labels)
    ]
    if with_speakers and len({line.speaker for line in lines}) < 3:
        with pytest.raises(UserError, match="speakers, too few"):
            draw_splits(lines, 0.1, 0.2, seed)
        return
    found, how = draw_splits(lines, 0.1, 0.2, seed)
    assert (found, how) == draw_splits(lines, 0.1, 0.2, seed)
    groups: dict[str, list[str]] = {}
    for line, split in zip(lines, found, strict=True):
        groups.setdefault(line.speaker or line.utterance.labels[0], []).append(split)
    for splits in groups.values():
        if with_speakers:
            assert len(set(splits)) == 1
        else:
            assert "train" in splits
            if len(splits) >= 3:
                assert set(splits) == {"train", "valid", "test"}
            assert splits.count("test") <= max(1, 0.2 * len(splits) + 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_splits_of_many_labels_have_their_shares(seed):
    """Six columns, hardly a line like another: a tenth each, and train has every label."""
    rng = random.Random(seed)
    lines = [
        Line(
            Utterance(f"{n}.wav", tuple(f"{rng.randrange(4 + 8 * c)}" for c in range(6))),
            None,
            None,
        )
        for n in range(619)
    ]
    splits, how = draw_splits(lines, 0.1, 0.1, seed)
    assert (splits.count("valid"), splits.count("test")) == (62, 62)
    assert how == "drawn so that train has every label"
    counts = Counter((c, name, split) for line, split in zip(lines, splits)
                     for c, name in enumerate(line.utterance.labels))  # fmt: skip
    for c, name, _ in list(counts):
        assert counts[c, name, "train"]
        total = sum(counts[c, name, split] for split in SPLITS)
        assert counts[c, name, "test"] <= max(2, 0.3 * total)


def test_a_label_of_one_line_stays_in_train():
    answers = [("a", f"only {n}" if n < 30 else "b") for n in range(40)]
    lines = [Line(Utterance(f"{n}.wav", labels), None, None) for n, labels in enumerate(answers)]
    splits, _ = draw_splits(lines, 0.1, 0.1, 0)
    assert set(splits[:30]) == {"train"}
    assert (splits.count("valid"), splits.count("test")) == (4, 4)


def test_classes_of_two_lines_are_drawn_from():
    """None can be divided into three; train has each."""
    lines = [Line(Utterance(f"{n}.wav", (f"{n // 2}",)), None, None) for n in range(60)]
    splits, _ = draw_splits(lines, 0.1, 0.1, 0)
    assert (splits.count("valid"), splits.count("test")) == (6, 6)
    assert all("train" in splits[n : n + 2] for n in range(0, 60, 2))


def test_pieces_of_one_recording_stay_in_one_split():
    lines = [Line(Utterance(f"{n % 10}.wav", ("a",), n, 9, f"{n}"), None, None) for n in range(40)]
    splits, how = draw_splits(lines, 0.1, 0.1, 0)
    assert splits[:10] * 4 == splits and set(splits) == set(SPLITS)
    assert how == "drawn by recording (train 8, valid 1, test 1)"


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
