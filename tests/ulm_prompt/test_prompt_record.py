"""prompt.json is written and read back, a stranger's file is checked, and old forms are read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.workspace import Workspace
from tests.ulm_prompt import spoken
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_data.prompt_record import (
    RECORD,
    TENSORS,
    PromptRecord,
    TrainingRun,
    UnitSettings,
    read_record,
    write_record,
)
from ulm_prompt.using.predictor import Predictor
from ulm_prompt.using.share import page


def a_record(**changes: Any) -> PromptRecord:
    """Return the record of a shared prompt with two slots, five labels and four sequences."""
    names = {"0": "start", "1": "stop", "2": "lamp", "3": "heat", "4": "none"}
    record = PromptRecord(
        task="IC",
        unit_model="logmel100",
        prefix_prompt_length=4,
        verbalizer="freq",
        verbal={"0": "17", "1": "3", "2": "61", "3": "8", "4": "40"},
        lm_fingerprint="00112233aabbccdd",
        lm_parameters=1000,
        labels={
            label: {"slot": "action" if int(label) < 2 else "object", "name": name}
            for label, name in names.items()
        },
        labels_per_utterance=2,
        recipe="fast",
        training={"seed": 1, "lr": 0.01},
        trained_parameters=100,
        valid={"accuracy": 91.2},
        made_by={"git_revision": "unknown"},
        units=UnitSettings("logmel", None, None, True, "0123456789abcdef"),
        dict_fingerprint="fedcba9876543210",
        most_labels=2,
        label_sequences=[["0", "2"], ["0", "3"], ["1", "3"], ["1", "4"]],
    )
    return dataclasses.replace(record, **changes)


def as_json(record: PromptRecord) -> dict[str, Any]:
    return {"format": 2, **dataclasses.asdict(record)}


def test_round_trip(tmp_path: Path) -> None:
    for changes in (
        {},
        {"labels_per_utterance": 0, "most_labels": 9, "label_sequences": None, "license": "MIT"},
        {"test": {"utterances": 3, "accuracy": 33.3}, "valid": {}, "recipe": None},
        {"units": None, "dict_fingerprint": "", "run": TrainingRun({"train": "0"}, 5, 7, 1e-6)},
    ):
        record = a_record(**changes)
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
        if record.units:
            shared = dataclasses.replace(record, files={TENSORS: "0" * 64})
            assert page(shared, "shared").startswith("# IC: a prompt for logmel100\n")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unit_model": "../../etc"}, "unit_model: expected a name"),
        ({"task": "KS\n"}, "task: expected a name"),
        ({"units": {"feature_type": "logmel"}}, "units missing .* 'kmeans'"),
        ({"labels": {"0": {"slot": "a", "name": "\x1b[2J"}}}, "labels: expected"),
        ({"verbal": {"0": "17"}}, "verbal: expected a different unit for every label"),
        ({"label_sequences": [["0", "77"]]}, "label_sequences: expected"),
        ({"label_sequences": [["0", "2", "2"]]}, "label_sequences: expected"),
        ({"prefix_prompt_length": True}, "prefix_prompt_length: expected int"),
        ({"verbal": {"0": 17}}, "verbal: expected str, found 17"),
        ({"units": 3}, "units: expected UnitSettings, found 3"),
        ({"format": 3}, "format 3; this version reads up to 2; update this repository"),
        ({"ckpt_path": "/etc/passwd"}, "the record got an unexpected .* 'ckpt_path'"),
        (None, "not valid JSON"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict | None, expected: str) -> None:
    text = "{" if changes is None else json.dumps(as_json(a_record()) | changes)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        read_record(tmp_path)
    assert "\n" not in str(error.value)


def test_a_record_that_would_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels"):
        write_record(tmp_path, a_record(labels={}))
    assert list(tmp_path.iterdir()) == []


OLD = read_json(Path(__file__).with_name("old_records.json"), "")  # as version 1540d3859d45 wrote


def write_old_record(kind: str, folder: Path) -> None:
    """Write an old version's record into ``folder``, with the fingerprints of this machine."""
    now = read_json(folder / RECORD, "")
    old = {**OLD[kind], "lm_fingerprint": now["lm_fingerprint"], "verbal": now["verbal"]}
    old |= {"data": now["run"]["data"]} if kind == "card" else {"units": now["units"]}
    write_json(folder / RECORD, old)


def test_an_earlier_versions_run_and_export(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """Old records resume, decode, score, export and answer like new records."""
    root = tmp_path / "w"
    shutil.copytree(spoken_workspace.root, root, ignore=shutil.ignore_patterns("samples"))
    ic = ("--unit_model", spoken.UNIT_MODEL, "--prompt_task", "IC")
    train = (*ic, "--date", "old", "--set", "dtype=float32", "warmup_updates=1")
    call("fairseq_preprocess", root, *ic)
    call("train", root, *train, "max_update=2", "max_epoch=1")
    folder = Workspace(root).checkpoints("IC", spoken.UNIT_MODEL, "old")
    write_old_record("card", folder)
    assert "Loaded checkpoint" in call("train", root, *train, "max_update=2")
    assert read_json(folder / RECORD, "")["run"]["total_updates"] == 2
    write_old_record("card", folder)
    with pytest.raises(UserError, match="another lr"):
        call("train", root, *train, "max_update=2", "lr=1")
    call("sample", root, *ic, "--model_date", "old", "--sample_date", "s", "--dtype", "float32")
    assert "IC" in call("cal_acc", root, "--sample_date", "s")
    shared = tmp_path / "shared"
    call("export", root, *ic, "--model_date", "old", "--out", shared)
    assert read_record(shared).run is None and read_record(shared).test["utterances"] == 2
    clip = spoken.clip(spoken_workspace, "fluent_commands")
    (answers,) = Predictor.load([folder], root, dtype="float32")([clip])
    for change in (lambda: None, lambda: write_old_record("export", shared)):
        change()
        assert Predictor.load([shared], root, dtype="float32")([clip]) == [answers]
    flags = ("--model_date", "old", "--checkpoint", shared / "prompt.safetensors")
    call("sample", root, *ic, *flags, "--sample_date", "shared", "--dtype", "float32")
