"""A task from a table: the accepted forms, the refused forms, and the stages on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from preprocess.actions.manifest import read_manifest
from preprocess.preprocessor import Utterance
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import all_actions, read_tables


def read(workspace: Path, text: str, *overrides: str, name: str = "table.csv") -> list[Utterance]:
    """Return the utterances of this table, split by split."""
    _, splits = read_tables(workspace, {name: text}, f"table={name}", *overrides)
    return [utterance for split in SPLITS for utterance in splits[split]]


def test_a_table_from_a_spreadsheet(tmp_path):
    """Byte order mark, Windows' line ends, tabs, more columns, quotes, Unicode and | in names."""
    text = '\ufefflabel\tpath \tnote\r\nowl\t"a|b ö.wav"\tx\r\n\r\ncat \tsub/c.wav\t\r\n'
    assert read(tmp_path, text, name="t.tsv") == [
        Utterance("a|b ö.wav", ("owl",)),
        Utterance("sub/c.wav", ("cat",)),
    ]
    text = "path,said,split\na.wav,hi you,test\n"
    assert read(tmp_path, text, "labels=[]", "text=said") == [Utterance("a.wav", "HI YOU")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path', 'label' .* which has nothing"),
        ("file,label\na,b\n", "no column 'path' .* file, label; name your columns in datarc"),
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
        (
            "path,label,split\na,x,test\nb,y,\n",
            "line 3: the field 'split' is empty; exp",
        ),
        ("path,speaker,label\na,ann,x\nb, ,y\n", "line 3: nothing in the column 'speaker'"),
        ("path,speaker,label\na,ann,x\nb,bob,y\n", "2 speakers, too few to draw train"),
        ("path,label,start\na,x,1:30\n", r"line 2: start '1:30', end ''; expected seconds"),
        ("path,label\n\udc80a,x\n", "not UTF-8 text"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("override", ["valid=nan", "test=0", "test=0.95", "table=[a.csv,b.csv]",
                                      "table=7", "text=label", "files='*.wav'"])  # fmt: skip
def test_invalid_settings(tmp_path, override):
    with pytest.raises(UserError, match=r"datarc"):
        read(tmp_path, "path,label\na,x\n", override)


def test_a_table_has_labels_or_a_text(tmp_path):
    for override, message in (
        ("text=label", r"both are set; empty one, for example datarc\.labels=\[\]"),
        ("labels=[]", r"datarc\.labels, datarc\.text: set one"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, "path,label\na,x\n", override)


def test_quotation_marks_swallow_no_row(tmp_path, capsys):
    """Common Voice quotes nothing: nine rows stay nine rows, each with the right label."""
    texts = ["hi", '"Hello', "so", "no", 'a "b" c', 'bye"', "u", "v", "w"]
    rows = [f"{n}.wav\t{text}\tlabel{n}\ttrain" for n, text in enumerate(texts)]
    utterances = read(
        tmp_path, "\n".join(["path\tsentence\tlabel\tsplit", *rows, ""]), name="t.tsv"
    )
    assert utterances == [Utterance(f"{n}.wav", (f"label{n}",)) for n in range(9)]
    printed = capsys.readouterr().out
    assert "t.tsv: quotation marks are read as text" in printed and "t.tsv, line 3" in printed
    assert "t.tsv: 9 rows, splits as given" in printed


def test_one_table_per_split(tmp_path):
    """Common Voice's layout: three tables next to clips/, with the names of the clips."""
    clips = tmp_path / "corpora" / "table" / "clips"
    clips.mkdir(parents=True)
    names = ("train", "dev", "test")
    tables = {f"{n}.tsv": f"client_id\tpath\tsentence\n1\t{n}.mp3\tHi\n" for n in names}
    keys = ("table=[../train.tsv,../dev.tsv,../test.tsv]", "labels=[]", "text=sentence",
            f"root_path={clips}")  # fmt: skip
    _, splits = read_tables(tmp_path, tables, *keys)
    assert [[row.path for row in splits[split]] for split in SPLITS] == [
        [f"{n}.mp3"] for n in names
    ]
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: train\.mp3 is already in .*train\.tsv"):
        read_tables(tmp_path, {"dev.tsv": "path\tsentence\ntrain.mp3\tHi\n"}, *keys)


def test_tabs_in_a_csv_and_paths_of_another_machine(tmp_path):
    rows = "".join(f"/work/me/lt/ne/{n}.wav\tne\t{split}\n" for n, split in enumerate(SPLITS))
    settings = "path=filename", r'separator="\t"', "prefix=/work/me/lt/"
    utterances = read(tmp_path, "filename\tlabel\tsplit\n" + rows, *settings)
    assert utterances == [Utterance(f"ne/{n}.wav", ("ne",)) for n in range(3)]


def test_one_list_per_split_without_column_names(tmp_path):
    """ASVspoof's protocols: spaces, no line of column names, paths without folder and suffix."""
    files = {f"{n}.txt": f"LA_1 {n}_1 - - spoof\nLA_2 {n}_2 - - bonafide\n" for n in "tde"}
    files |= {"d/flac/d_2.flac": ""}
    keys = ("table={t.txt: train, d.txt: valid, e.txt: test}", "separator=' '", "labels=[label]",
            "columns=[who, path, environment, attack, label]", "speaker=who",
            "audio=['t/flac/{path}.flac', 'd/flac/{path}.flac']")  # fmt: skip
    _, splits = read_tables(tmp_path, files, *keys)
    assert splits["valid"] == [
        Utterance("d/flac/d_1.flac", ("spoof",)),
        Utterance("d/flac/d_2.flac", ("bonafide",)),
    ]
    with pytest.raises(UserError, match=r"d\.txt, line 1: 4 fields, the first line has 5"):
        read_tables(tmp_path, {"d.txt": "LA_1 d_1 - spoof\n"}, *keys)


JSON = {
    "lines": '{"audio": "a.wav", "is": true, "offset": 0.5, "duration": 0.25}\n\n{"audio": "b.wav",'
    ' "is": false, "offset": 0.0, "duration": 0.25}\n',
    "list": '[{"audio": "a.wav", "is": true, "offset": 0.5, "duration": 0.25},\n'
    '{"audio": "b.wav", "is": false, "offset": null, "duration": 0.25}]',
    "named": '{"a": {"audio": "a.wav", "is": true, "offset": 0.5, "duration": 0.25},\n'
    '"b": {"audio": "b.wav", "is": false, "duration": 0.25}}',
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json(tmp_path, text):
    for name in "ab":
        write(tmp_path / "corpora" / "table" / f"{name}.wav", tone(1.0, 300))
    keys = ("path=audio", "labels=[is]", "start=offset", "duration=duration",
            "names={'true': sarcasm, 'false': sincere}", "table={t.json: , u.json: test}",
            "rows={valid: 1}", "in_order=true")  # fmt: skip
    other = '{"audio": "c.wav", "is": true}'
    _, splits = read_tables(tmp_path, {"t.json": text, "u.json": other}, *keys)
    a = Utterance("a.wav", ("sarcasm",), 8000, 4000, "a.wav:0.500-0.750")
    assert splits["valid"] == [a, Utterance("b.wav", ("sincere",), 0, 4000, "b.wav:0.000-0.250")]
    assert splits["test"] == [Utterance("c.wav", ("sarcasm",))]
    with pytest.raises(UserError, match=r"u\.json, line 2: expected an object with 'audio', 'is'"):
        read_tables(tmp_path, {"u.json": other + "\nc.wav\n"}, *keys)


def test_rows_that_are_pieces_of_files(tmp_path):
    """Seconds become samples at the file's own rate. Every row has a name. Rows may overlap."""
    write(tmp_path / "corpora/table/1.wav", tone(2.0, 300, 8_000), 8_000)
    write(tmp_path / "corpora/table/2.wav", tone(1.0, 300))
    rows = ["1.wav,a,0.5,1.25,train", "1.wav,b,1,,valid", "1.wav,c,,0.00125,test",
            "2.wav,a,,,train", "1.wav,a,1.5,2.004,train"]  # fmt: skip
    assert read(tmp_path, "\n".join(["path,label,start,end,split", *rows])) == [
        Utterance("1.wav", ("a",), 4000, 6000, "1.wav:0.500-1.250"),
        Utterance("2.wav", ("a",)),
        Utterance("1.wav", ("a",), 12000, 4000, "1.wav:1.500-2.004"),
        Utterance("1.wav", ("b",), 8000, 8000, "1.wav:1.000-end"),
        Utterance("1.wav", ("c",), 0, 10, "1.wav:0.000-0.00125"),
    ]
    rows = [f"1.wav,b,1.{n},,{split}" for n, split in enumerate(SPLITS)]
    files = {"table.csv": "\n".join(["path,label,from,to,split", *rows])}
    task, _ = read_tables(tmp_path, files, "start=from", "end=to")
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
def test_invalid_pieces(tmp_path, row, message):
    write(tmp_path / "corpora/table/1.wav", tone(2.0, 300))
    with pytest.raises(UserError, match=message):
        read(tmp_path, f"path,start,end,label,split\n1.wav,0.25,1,x,train\n1.wav,{row},x,train\n")


def test_a_line_counts_the_characters_that_texts_lose(tmp_path, capsys):
    """The line is printed once, although each split reads the table."""
    lines = (f"{split}.wav,room 42 für ß 2,{split}" for split in SPLITS)
    table = {"table.csv": "\n".join(["path,said,split", *lines])}
    read_tables(tmp_path, table, "text=said", "labels=[]")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert "table.csv: 9 characters left out ('2' 6 '4' 3)" in line


def test_a_folder_of_recordings_becomes_rows_without_python(tmp_path):
    names = [f"clips/{('kite ö', 'owl|2')[n % 2]}/{n}.wav" for n in range(24)]
    for n, name in enumerate(names):
        write(tmp_path / "corpora" / "table" / name, tone(0.3, 100 + 300 * (n % 2) + n))
    lines = [f"{name},{('owl', 'kite')[n % 2]}" for n, name in enumerate(names)]
    task, _ = read_tables(tmp_path, {"table.csv": "\n".join(["path,label", *lines])})
    all_actions(task)
    rows = [list(read_rows(task.units / split)) for split in SPLITS]
    assert [len(split) for split in rows] == [20, 2, 2]
    assert all({row.labels for row in split} == {"0", "1"} for split in rows)
