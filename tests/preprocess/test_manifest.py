"""The manifest: under which names and labels rows are written, and units of an earlier one."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.rows import SPLITS, read_rows
from preprocess.actions.manifest import read_manifest
from preprocess.actions.quantize import Quantizing
from preprocess.preprocessor import Preprocessor
from tests.preprocess import corpora
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor
from tests.preprocess.test_runner import all_actions

HEADER = "path,action,object,location"
ROWS = [
    "wavs/speakers/train/0.wav,start,lamp,none",
    "wavs/speakers/train/1.wav,stop,heat,kitchen",
    "wavs/speakers/train/2.wav,start,heat,none",
]


def fluent(workspace: Path, *rows: str) -> Preprocessor:
    """Fluent Speech Commands whose train has ``rows``."""
    root = workspace / "corpora" / "fluent_commands"
    if not root.exists():
        corpora.fluent_commands(root)
    (root / "data" / "train_data.csv").write_text("\n".join([HEADER, *rows, ""]), "utf-8")
    return preprocessor("fluent_commands", workspace)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('wavs/speakers/train/0.wav,"start,lamp,none', "line 2: unexpected end of data"),
        ("wavs/speakers/train/0.wav,start, lamp,none,x", "line 2: 5 fields, the first line has 4"),
        ("wavs/speakers/train/0.wav,start,lamp", "line 2: 3 fields, the first line has 4"),
        ("wavs/speakers/train/0.wav,start,,none", "line 2: nothing in the column 'object'"),
        ("wavs\\speakers\\train\\0.wav,start,lamp,none", "line 2: .*write / between folders"),
        (
            "./wavs/speakers/train/2.wav,start,lamp,none",
            r"train/2\.wav: is start, lamp, none in train, start, heat, none in train; one",
        ),
    ],
)
def test_fluent_commands_reads_rows_as_a_table_does(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        fluent(tmp_path, row, *ROWS[1:]).generate_manifest()


def test_a_path_as_the_disk_spells_it(tmp_path, capsys):
    """Absolute ones inside the corpus, ./, and the other Unicode form than the disk's."""
    composed, decomposed = (unicodedata.normalize(form, "é/ö.wav") for form in ("NFC", "NFD"))
    root = tmp_path / "corpora" / "fluent_commands"
    task = fluent(tmp_path, ROWS[0].replace("wavs", f"{root}/wavs"), "./" + ROWS[1],
                  f"{composed},start,heat,none")  # fmt: skip
    write(root / decomposed, tone(0.5, 90))
    task.generate_manifest()
    _, entries = read_manifest(task.manifest / "train.tsv")
    names = ["wavs/speakers/train/0.wav", "wavs/speakers/train/1.wav", decomposed]
    assert [entry.file for entry in entries] == [entry.path for entry in entries] == names
    with pytest.raises(UserError, match="expected a path inside"):
        fluent(tmp_path, f"{tmp_path}/0.wav,start,lamp,none").generate_manifest()


def test_labels_that_look_alike_are_told(tmp_path, capsys):
    """Unicode forms and spaces around are one label in a table; elsewhere forms are refused."""
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    task = fluent(tmp_path, *ROWS, f"{ROWS[0][:-6]},{forms[0]},none", f"{ROWS[1][:-14]},Start,b,c")
    rows = [f"wavs/speakers/train/{n}.wav,{labels}" for n, labels in
            enumerate(["start,lamp,none", "stop,heat,kitchen", "Start ,heat,none"])]  # fmt: skip
    for n, form in enumerate(forms, start=3):
        write(task.root / f"{n}.wav", tone(0.5, 90))
        rows.append(f"{n}.wav,stop,{form},none")
    task = fluent(tmp_path, *rows)
    task.generate_manifest()
    names = json.loads((task.manifest / "labels.json").read_text())
    assert [entry["name"] for entry in names.values()].count(forms[0]) == 1
    said = capsys.readouterr().out
    assert "warning, actions that look alike: 1 ('start' and 'Start')" in said
    task.label_names = lambda train: [["start", "stop"], forms, ["none"]]
    with pytest.raises(UserError, match=r"object 'caf\\xe9' and 'cafe\\u0301': one label"):
        task.generate_manifest()


def test_recordings_in_two_splits_are_told(tmp_path, capsys):
    task = fluent(tmp_path, *ROWS, "wavs/speakers/test/0.wav,start,lamp,kitchen")
    task.generate_manifest()
    said = capsys.readouterr().out
    assert "warning, recordings that are in two splits: 1 (wavs/speakers/test/0.wav)" in said


def test_a_quotation_mark_in_a_manifest_swallows_no_row(tmp_path):
    path = tmp_path / "train.tsv"
    rows = [f"{n}.wav\t9\t0\t{n}.wav\t{n}" for n in range(6)]
    path.write_text("\n".join(["/data", *rows, ""]))
    assert len(read_manifest(path)[1]) == 6
    rows[1], rows[4] = '"' + rows[1], rows[4].replace("\t", '"\t', 1)
    path.write_text("\n".join(["/data", *rows, ""]))
    with pytest.raises(UserError, match=r"train\.tsv, line .: expected path, frames"):
        read_manifest(path)


def test_units_of_an_earlier_manifest(tmp_path, capsys):
    """Other labels are joined with the units that there are; other audio under a name is refused.
    The rows remember their manifest.
    """
    root = tmp_path / "corpora" / "table"
    write(root / "1.wav", tone(3.0, 300))

    def task(label: str) -> Preprocessor:
        rows = ["1.wav,owl,0,1,train", "1.wav,cat,1,2,train", "1.wav,owl,0.5,1.1,valid",
                f"1.wav,{label},1,,test"]  # fmt: skip
        (root / "table.csv").write_text("\n".join(["path,label,start,end,split", *rows, ""]))
        made = preprocessor("table", tmp_path)
        made.generate_manifest()
        return made

    all_actions(task("owl"))
    again = task("cat")
    again.postprocess()
    hashes = {split: sha256(again.manifest / f"{split}.tsv") for split in SPLITS}
    assert json.loads((again.units / "provenance.json").read_text())["manifest"] == hashes
    assert [row.labels for row in read_rows(again.units / "test")] == ["1"]
    manifest = again.manifest / "valid.tsv"
    manifest.write_text(manifest.read_text().replace("\t9600\t", "\t9601\t"))
    with pytest.raises(UserError, match=r"units of other audio than .*quantized again"):
        again.postprocess()
    Quantizing(again).run(Ranks(), skip_bad=False)
    again.postprocess()
    assert len(list(read_rows(again.units / "valid"))) == 1
    with pytest.raises(UserError, match="no such user"):
        preprocessor("table", tmp_path, "datarc.root_path=~nosuchuser/x").generate_manifest()
