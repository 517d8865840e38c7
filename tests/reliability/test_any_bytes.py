"""Given any bytes, every reader returns a result, or raises a one-line error with the file name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.rows import read_rows
from pipeline.unit_models import Registry
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.actions.corpus import read_table
from preprocess.actions.manifest import read_manifest
from preprocess.table.preprocessor import TableConfig
from tests.reliability.hostile import damaged
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.test_prompt_record import a_record, as_json
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.prompt_data.tasks import Pair, TaskConfig, load_task
from ulm_prompt.prompt_data.ulm_text import read_unit_text
from ulm_prompt.prompt_data.verbal import (
    check_data_bin,
    label_names,
    load_verbal,
    read_prompt_text,
)
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.scoring.sample_file import read_samples
from ulm_prompt.verbalizer import read_labelspace

SAMPLES = {
    str(row): {"file_name": "a", "src": "7", "label": "3", "predict": str(3 + row), "score": -1.5}
    for row in range(2)
}


class Reader(NamedTuple):
    """``good``: the bytes of a file that ``read`` accepts."""

    name: str
    good: bytes
    read: Callable[[Path], object]


TEXTS = [
    Reader("rows", b"a.wav|1 2|3\nb|c.wav|4|5 6\n", lambda path: list(read_rows(path))),
    Reader("manifest", b'/data\na.wav\t160\t0\ta.wav\t1 2\n"b\t.wav"\t9\t7\tb\t3\n', read_manifest),
    Reader("prompt", b"1 2 <s> 3\n4 5 6 <s> 7 8\n", lambda path: list(read_prompt_text(path))),
    Reader("units", b"1 2 3\n4 5\n", lambda path: list(read_unit_text([path]))),
    Reader("table.csv", b'path,label\na.wav,x\n"b,c.wav",y\n',
           lambda path: list(read_table(path, ["path", "label"], str))),
    Reader("table.tsv", b"path\tlabel\tsplit\na.wav\tx\ttrain\n",
           lambda path: list(read_table(path, ["path", "label"], str))),
    Reader("dict.txt", b"0 1\n1 7\n2 3\n", lambda path: load_dictionary(path.parent)),
    Reader("task.yaml", (REPOSITORY / "ulm_prompt" / "config" / "KS.yaml").read_bytes(),
           lambda path: load_config(TaskConfig, path)),
    Reader("downstream.yaml", (REPOSITORY / "preprocess" / "table" / "config.yaml").read_bytes(),
           lambda path: load_config(TableConfig, path)),
    Reader("registry.yaml", b"checkpoints: {m: {path: a.pt}}\nunit_models: {}\n",
           lambda path: load_config(Registry, path)),
]  # fmt: skip
JSONS = [
    Reader("labelspace.json", b'{"KS": ["0", "1"]}', lambda path: read_labelspace(path, "KS")),
    Reader("prompt.json", json.dumps(as_json(a_record())).encode(),
           lambda path: read_record(path.parent)),
    Reader("samples.json", json.dumps(SAMPLES).encode(), lambda path: list(read_samples(path))),
]  # fmt: skip


def check(read: Callable[[Path], object], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read(path)
    except UserError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1, error
        assert str(error).isprintable(), error


@pytest.mark.parametrize("reader", [*TEXTS, *JSONS], ids=lambda reader: reader.name)
def test_damaged_files(tmp_path: Path, reader: Reader) -> None:
    for content in damaged(reader.good, is_json=reader in JSONS):
        check(reader.read, tmp_path / reader.name, content)


@pytest.mark.parametrize("reader", TEXTS, ids=lambda reader: reader.name)
def test_files_saved_on_windows(tmp_path: Path, reader: Reader) -> None:
    """CRLF, a byte order mark and a missing last line end do not change the result."""
    path = tmp_path / reader.name

    def read(content: bytes) -> object:
        path.write_bytes(content)
        result = reader.read(path)
        return getattr(result, "symbols", result)

    expected = read(reader.good)
    windows = reader.good.replace(b"\n", b"\r\n")
    for content in (windows, b"\xef\xbb\xbf" + windows, reader.good.removesuffix(b"\n")):
        assert read(content) == expected


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Make the files of KS up to the verbalizer, with label names."""
    root = tmp_path_factory.mktemp("workspace")
    tiny.write_corpus(root)
    for name in ("make_data", "gen_labelspace", "verbalizer"):
        call(name, root)
    data = Workspace(root).downstream_data("speech_commands") / "tiny100"
    names = {str(label): {"slot": "keyword", "name": f"w{label}"} for label in range(4)}
    (data / "labels.json").write_text(json.dumps(names))
    bins = Workspace(root).data_bin("tiny100", "KS")
    bins.mkdir(parents=True)
    (bins / "sources.json").write_text("{}")
    return Workspace(root)


PAIR = Pair("KS", "tiny100", load_task("KS"))
RECORDS = {
    "ulm_prompt/datasets/tiny100/verbal.json": load_verbal,
    "ulm_prompt/datasets/tiny100/speech_commands/data_prompt/sources.json": load_verbal,
    "ulm_prompt/data-bins/tiny100/KS-data-bin/sources.json": check_data_bin,
    "preprocess/speech_commands/data/tiny100/labels.json": label_names,
}


@pytest.mark.parametrize("name", RECORDS)
def test_records(workspace: Workspace, name: str) -> None:
    path = workspace.root / name
    good = path.read_bytes()

    def read(_: Path) -> None:
        try:
            RECORDS[name](workspace, PAIR)
        except UserError as error:  # if two files do not match, it may name either
            raise UserError(f"{path}: {error}") from None

    for content in damaged(good, is_json=True):
        check(read, path, content)
    path.write_bytes(good)
