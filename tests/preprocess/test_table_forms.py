"""What a table may look like, files instead of one, and how rows are shared out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.preprocessor import Utterance
from preprocess.table.preprocessor import Table
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor


def read(workspace: Path, files: dict[str, str], *overrides: str) -> tuple[Table, dict[str, list]]:
    """The task on these files, and its utterances by split."""
    for name, content in files.items():
        path = workspace / "corpora" / "table" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    task = preprocessor("table", workspace, *(f"datarc.{override}" for override in overrides))
    assert isinstance(task, Table)
    return task, {split: task.utterances(split) for split in SPLITS}


def test_tabs_in_a_csv_and_paths_of_another_machine(tmp_path):
    rows = "".join(f"/work/me/lt/ne/{n}.wav\tne\t{split}\n" for n, split in enumerate(SPLITS))
    files = {"t.csv": "filename\tlabel\tsplit\n" + rows}
    _, splits = read(tmp_path, files, "table=t.csv", "path=filename", r'separator="\t"',
                     "prefix=/work/me/lt/")  # fmt: skip
    assert splits["valid"] == [Utterance("ne/1.wav", ("ne",))]


def test_a_list_without_names_a_split_a_file(tmp_path):
    """As ASVspoof's protocols: spaces, no first line, the name without folder and suffix."""
    files = {f"{n}.txt": f"LA_1 {n}_1 - - spoof\nLA_2 {n}_2 - - bonafide\n" for n in "tde"}
    files |= {"d/flac/d_2.flac": ""}
    said = ("table={t.txt: train, d.txt: valid, e.txt: test}", "separator=' '", "labels=[label]",
            "columns=[who, path, environment, attack, label]", "speaker=who",
            "audio=['t/flac/{path}.flac', 'd/flac/{path}.flac']")  # fmt: skip
    _, splits = read(tmp_path, files, *said)
    assert splits["valid"] == [
        Utterance("d/flac/d_1.flac", ("spoof",)),
        Utterance("d/flac/d_2.flac", ("bonafide",)),
    ]
    with pytest.raises(UserError, match=r"d\.txt, line 1: 4 fields, the first line has 5"):
        read(tmp_path, {"d.txt": "LA_1 d_1 - spoof\n"}, *said)


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
    said = ("path=audio", "labels=[is]", "start=offset", "duration=duration",
            "names={'true': sarcasm, 'false': sincere}", "table={t.json: , u.json: test}",
            "rows={valid: 1}", "in_order=true")  # fmt: skip
    other = '{"audio": "c.wav", "is": true}'
    _, splits = read(tmp_path, {"t.json": text, "u.json": other}, *said)
    a = Utterance("a.wav", ("sarcasm",), 8000, 4000, "a.wav:0.500-0.750")
    assert splits["valid"] == [a, Utterance("b.wav", ("sincere",), 0, 4000, "b.wav:0.000-0.250")]
    assert splits["test"] == [Utterance("c.wav", ("sarcasm",))]
    with pytest.raises(UserError, match=r"u\.json, line 2: expected an object with 'audio', 'is'"):
        read(tmp_path, {"u.json": other + "\nc.wav\n"}, *said)


def test_files_whose_folders_are_columns(tmp_path, capsys):
    """Grabo's rule: of a speaker's takes of a command the first 2 train, then 4 valid."""
    names = [f"{who}/x/{word}/Voice_{n}.wav" for who in "ab" for word in ("go", "no")
             for n in range(1, 11)]  # fmt: skip
    files = {**dict.fromkeys(names, ""), "a/x/go/notes.txt": "", "more/b.wav": ""}
    said = ("table=", "files='{speaker}/x/{word}/*.wav'", "labels=[word]", "per=[speaker,word]",
            "rows={train: 2, valid: 4}", "in_order=true")  # fmt: skip
    task, splits = read(tmp_path, files, *said)
    assert [len(splits[split]) for split in SPLITS] == [8, 16, 16]
    assert splits["train"][:2] == [Utterance(f"a/x/go/Voice_{n}.wav", ("go",)) for n in (1, 2)]
    assert splits["test"][3] == Utterance("a/x/go/Voice_10.wav", ("go",))
    assert "40 rows, splits 40 rows shared out in 4 groups (train 2, valid 4 of each)" in (
        capsys.readouterr().out
    )
    assert task.listing.passed_over["of another kind"] == {task.root / "a/x/go/notes.txt"}
    with pytest.raises(
        UserError, match=r"no file matches datarc\.files=.*; the folder has a, b, m"
    ):
        read(tmp_path, {}, "table=", "files='{word}/y/*.wav'", "labels=[word]")
    with pytest.raises(UserError, match=r"no \{word\} in it"):
        read(tmp_path, {}, "table=", "files='{who}/x/*/*.wav'", "labels=[word]")


def test_shares_of_what_has_no_split(tmp_path, capsys):
    """ESC-50's folds: one is test, a fifth of each class of the others valid, by the seed."""
    rows = [f"{n}.wav,{'ab'[n % 2]},{n % 5}" for n in range(50)] + ["x.wav,c,1"]
    files = {"table.csv": "\n".join(["path,label,fold", *rows])}
    said = ("split=fold", "splits={'0': test, '1': , '2': , '3': , '4': }", "rows={valid: 0.2}",
            "names={a: owl, b: cat}")  # fmt: skip
    _, splits = read(tmp_path, files, *said)
    assert "1 rows left out, their labels are not in datarc.names ('c')" in capsys.readouterr().out
    counts = {split: Counter(row.labels[0] for row in splits[split]) for split in SPLITS}
    assert counts == {"train": {"owl": 16, "cat": 16}, "valid": {"owl": 4, "cat": 4},
                      "test": {"owl": 5, "cat": 5}}  # fmt: skip
    assert read(tmp_path, files, *said)[1] == splits
    assert read(tmp_path, files, *said, "rows={train: 1, valid: 2, test: 3}")[1] != splits
    assert "28 left out" in capsys.readouterr().out
    for wrong, message in (
        (said[:1], r"line 2: split '0'; expected train"),
        (said[:2], r"datarc\.rows={}: expected numbers .* rows without a split"),
        ((*said, "rows={dev: 2}"), r"datarc\.rows=.*: expected numbers above 0 for train"),
        ((*said, "rows={valid: -1}"), r"datarc\.rows="),
        ((*said, "audio='{folder}/{path}'"), r"line 2: datarc\.audio: no column 'folder'"),
        ((*said, "files='*.wav'"), r"name either the table, or the pattern"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, files, *wrong)


def test_another_size_than_expected_is_said(tmp_path, capsys):
    for n in range(6):
        write(tmp_path / f"corpora/table/{'ab'[n % 2]}/{n}.wav", tone(0.2, 300))
    said = ("table=", "files='{word}/*.wav'", "labels=[word]", "rows={train: 1, valid: 1}")
    task, _ = read(tmp_path, {}, *said, "expected={train: 1, valid: 2, test: 1500, classes: 3}")
    task.generate_manifest()
    printed = capsys.readouterr().out
    counts = "train 2 (expected 1), test 2 (expected 1,500), classes 2 (expected 3)"
    assert f"warning, not the corpus's known size: {counts}\n" in printed
    task, _ = read(tmp_path, {}, *said, "expected={dev: 2}")
    with pytest.raises(UserError, match=r"datarc\.expected: dev: expected one of train, valid"):
        task.generate_manifest()
