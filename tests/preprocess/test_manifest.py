"""The manifest: names and labels of its rows, and units that were made from an earlier manifest."""

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
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import all_actions, preprocessor, read_tables


def made(workspace: Path, *rows: str) -> Preprocessor:
    """Return the table task for rows ``path,label,split``, and write missing audio."""
    for row in rows:
        path = workspace / "corpora" / "table" / row.split(",")[0]
        if not path.exists():
            write(path, tone(0.5, 90))
    return read_tables(workspace, {"table.csv": "\n".join(["path,label,split", *rows])})[0]


SPLIT = ["1.wav,owl,train", "2.wav,cat,valid", "3.wav,owl,test"]


def test_a_path_as_the_disk_spells_it(tmp_path):
    """Absolute paths inside the corpus, ./, and another Unicode form than on the disk."""
    composed, decomposed = (unicodedata.normalize(form, "é/ö.wav") for form in ("NFC", "NFD"))
    root = tmp_path / "corpora" / "table"
    for name in ("4.wav", "5.wav", decomposed):
        write(root / name, tone(0.5, 90))
    rows = [f"{root}/4.wav,owl,train", "./5.wav,cat,train", f"{composed},owl,train"]
    table = "\n".join(["path,label,split", *rows, *SPLIT])
    made(tmp_path, *SPLIT)
    task, _ = read_tables(tmp_path, {"table.csv": table})
    task.generate_manifest()
    _, entries = read_manifest(task.manifest / "train.tsv")
    names = ["4.wav", "5.wav", decomposed, "1.wav"]
    assert [entry.file for entry in entries] == [entry.path for entry in entries] == names


def test_a_warning_names_labels_that_look_alike(tmp_path, capsys):
    """In a table, labels that differ in Unicode form or outer spaces are one label."""
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    labels = enumerate(["cat", "owl", "Owl ", *forms], start=4)
    task = made(tmp_path, *SPLIT, *(f"{n}.wav,{label},train" for n, label in labels))
    task.generate_manifest()
    names = json.loads((task.manifest / "labels.json").read_text())
    assert [entry["name"] for entry in names.values()] == ["owl", "cat", "Owl", forms[0]]
    printed = capsys.readouterr().out
    assert "warning, labels that look alike: 1 ('owl' and 'Owl')" in printed
    task.label_names = lambda train: [["owl", "cat", "Owl", *forms]]
    task.generate_manifest()
    pairs = f"'owl' and 'Owl', '{forms[0]}' and '{forms[1]}'"
    assert f"warning, labels that look alike: 2 ({pairs})" in capsys.readouterr().out


def test_recordings_in_two_splits(tmp_path, capsys):
    """A user's task may list them. A warning names them; two different answers are an error."""
    task = made(tmp_path, *(row.replace("cat", "owl") for row in SPLIT))
    first = {split: task.utterances(split)[0] for split in SPLITS}
    task.utterances = lambda split: [*{first[split], first["train"]}]
    task.generate_manifest()
    printed = capsys.readouterr().out
    assert "warning, recordings that are in two splits: 2 (1.wav)" in printed
    first["test"] = first["train"]._replace(labels=("cat",))
    with pytest.raises(UserError, match=r"1\.wav: is owl in train, cat in test; one recording"):
        task.generate_manifest()


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
    """New labels are joined with existing units; new audio under an old name is refused. The rows
    record the hashes of their manifest.
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
    with pytest.raises(UserError, match=r"units are not of the audio that .*quantized again"):
        again.postprocess()
    Quantizing(again).run(Ranks(), skip_bad=False)
    again.postprocess()
    assert len(list(read_rows(again.units / "valid"))) == 1
    manifest.unlink()
    with pytest.raises(UserError, match=r"valid\.tsv: manifest not found; run"):
        again.postprocess()
