"""A shared prompt's prompt.json: what is written is read back, what a stranger wrote is checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from ulm_prompt.using.prompt_record import (
    RECORD,
    PromptRecord,
    UnitSettings,
    read_record,
    write_record,
)
from ulm_prompt.using.share import page


def a_record(**changes: Any) -> PromptRecord:
    """Two slots, five labels, four sequences."""
    names = {"0": "start", "1": "stop", "2": "lamp", "3": "heat", "4": "none"}
    values = {
        "task": "IC",
        "unit_model": "logmel100",
        "units": UnitSettings("logmel", None, None, True, "0123456789abcdef"),
        "labels": {
            label: {"slot": "action" if int(label) < 2 else "object", "name": name}
            for label, name in names.items()
        },
        "labels_per_utterance": 2,
        "most_labels": 2,
        "label_sequences": [["0", "2"], ["0", "3"], ["1", "3"], ["1", "4"]],
        "verbalizer": "freq",
        "verbal": {"0": "17", "1": "3", "2": "61", "3": "8", "4": "40"},
        "prefix_prompt_length": 4,
        "lm_fingerprint": "00112233aabbccdd",
        "lm_parameters": 1000,
        "dict_fingerprint": "fedcba9876543210",
        "recipe": "fast",
        "training": {"seed": 1, "lr": 0.01},
        "trained_parameters": 100,
        "valid": {"accuracy": 91.2},
        "test": {},
        "license": None,
        "made_by": {"git_revision": "unknown"},
    }
    return PromptRecord(**{**values, **changes})


printable = st.characters(codec="utf-8", categories=["L", "N", "P", "S"]) | st.just(" ")
lines = st.text(printable, min_size=1, max_size=20)
labels = st.dictionaries(
    st.integers(0, 999).map(str), st.tuples(lines, lines), min_size=1, max_size=9
)


@st.composite
def records(draw: st.DrawFn) -> PromptRecord:
    names = draw(labels)
    units = draw(st.permutations(range(100)))
    sequences = draw(
        st.none() | st.lists(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=5),
                             min_size=1, max_size=5)
    )  # fmt: skip
    return a_record(
        labels={label: {"slot": slot, "name": name} for label, (slot, name) in names.items()},
        verbal={label: str(unit) for label, unit in zip(names, units)},
        label_sequences=sequences,
        labels_per_utterance=draw(st.integers(0, 5)),
        most_labels=5,
        license=draw(st.none() | lines),
        test=draw(st.dictionaries(st.sampled_from(["accuracy", "invalid"]), st.floats(0, 100))),
    )


@given(records())
@settings(max_examples=30, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, record: PromptRecord) -> None:
    folder = tmp_path_factory.mktemp("record", numbered=True)
    write_record(folder, record)
    assert read_record(folder) == record
    assert page(record, "shared", "0" * 64).startswith("# IC: a prompt for logmel100\n")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def refused(folder: Path, text: str) -> str:
    """The error that reading ``text`` as prompt.json gives."""
    (folder / RECORD).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_record(folder)
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and RECORD in message
    return message


@given(st.sampled_from(sorted(vars(a_record()))), anything)
@settings(max_examples=100, deadline=None)
def test_any_value_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    values = {"format": 1, **dataclasses.asdict(a_record()), name: value}
    (folder / RECORD).write_text(json.dumps(values))
    try:
        record = read_record(folder)
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable()
    else:
        assert getattr(record, name) == value or name == "units"
        write_record(folder, record)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unit_model": "../../etc"}, "unit_model: expected a name"),
        ({"task": "/tmp/x"}, "task: expected a name"),
        ({"task": "KS\n"}, "task: expected a name"),
        ({"units": {"feature_type": "logmel"}}, '"units.kmeans" is missing'),
        ({"labels": {"0": {"slot": "a", "name": "\x1b[2J"}}}, "labels: expected"),
        ({"verbal": {"0": "17"}}, "verbal: expected a unit of its own"),
        ({"label_sequences": [["0", "77"]]}, "label_sequences: expected"),
        ({"label_sequences": [["0", "2", "2"]]}, "label_sequences: expected"),
        ({"labels_per_utterance": 10**18}, "labels_per_utterance"),
        ({"most_labels": 10**18}, "most_labels"),
        ({"prefix_prompt_length": True}, "prefix_prompt_length: expected"),
        ({"lm_fingerprint": ""}, "lm_fingerprint: expected 16"),
        ({"valid": {"accuracy": float("nan")}}, "valid: expected"),
        ({"format": 2}, "format 1"),
        ({"ckpt_path": "/etc/passwd"}, '"ckpt_path" is not known here'),
    ],
)
def test_what_a_stranger_may_not_say(tmp_path: Path, changes: dict, expected: str) -> None:
    values = {"format": 1, **dataclasses.asdict(a_record()), **changes}
    assert expected in refused(tmp_path, json.dumps(values))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "[" * 100_000, '{"format": 1}', '{"format": ' + "9" * 9999 + "}"],
)
def test_what_is_no_record_at_all(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


def test_a_record_that_would_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lm_fingerprint"):
        write_record(tmp_path, a_record(lm_fingerprint=""))
    assert list(tmp_path.iterdir()) == []
