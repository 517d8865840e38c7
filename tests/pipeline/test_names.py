"""Every script checks the dates and names in flags that become part of a path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.workspace import name_part

UNIT_MODEL, TASK = ("--unit_model", "hubert100"), ("--prompt_task", "KS")
FLAGS = [
    ("ulm_prompt.train", "--date"),
    ("ulm_prompt.train_ulm", "--date", *UNIT_MODEL),
    ("ulm_prompt.train_ulm", "--unit_model", "--date", "d"),
    ("ulm_prompt.sample", "--model_date", "--sample_date", "d"),
    ("ulm_prompt.sample", "--sample_date", "--model_date", "d"),
    ("ulm_prompt.cal_acc", "--sample_date"),
    ("ulm_prompt.export", "--model_date", *UNIT_MODEL, *TASK, "--out", "out"),
    ("ulm_prompt.plot", "--date", "curves"),
    ("ulm_prompt.plot", "--sample_date", "cer_by_length"),
    ("ulm_prompt.predict", "--model_date", *TASK[1:]),
    ("ulm_prompt.predict", "--unit_model", *TASK[1:]),
    ("ulm_prompt.study", "--date", "prompt_length", *UNIT_MODEL, *TASK),
    ("baselines.unit_ngrams", "--date"),
    ("baselines.train_downstream", "--date"),
]


@pytest.mark.parametrize(("module", "flag", "others"), [(m, f, o) for m, f, *o in FLAGS])
def test_a_date_cannot_lead_to_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, flag: str, others: list[str]
) -> None:
    argv = [module, *others, "--workspace", str(tmp_path / "in"), f"{flag}=../../x"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UserError, match=r"^'\.\./\.\./x': becomes part of a file name; expected"):
        importlib.import_module(module).main()
    assert not list(tmp_path.iterdir())


def test_valid_and_invalid_names() -> None:
    for word in ("20221122", "2022-11-22", "a b", "v1.2", "ü", "x" * 100, "-1"):
        assert name_part(word) == word
    invalid = "", " ", ".", "..", ".a", "a/b", "/", "a\nb", "a\0", "caf\udce9", "x" * 101, "ü" * 51
    for word in invalid:
        with pytest.raises(UserError):
            name_part(word)
