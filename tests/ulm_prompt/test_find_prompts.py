"""Which prompt is meant by a word, and which prompts go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from tests.ulm_prompt import spoken
from ulm_prompt.using.find_prompts import find_prompt, task_and_unit_model
from ulm_prompt.using.predictor import Predictor


def test_which_prompt_is_meant(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """A name that stands for two asks; an unfinished run does not count."""
    workspace = Workspace(tmp_path)
    source = spoken_workspace.checkpoints("IC", spoken.UNIT_MODEL, "d")
    first, second, running = (
        shutil.copytree(source, workspace.checkpoints("IC", spoken.UNIT_MODEL, date))
        for date in ("a", "b", "c")
    )
    card = read_json(running / "prompt.json", "")
    (running / "prompt.json").write_text(json.dumps({**card, "trained_parameters": 0}))
    with pytest.raises(UserError, match="2 prompts: .*_a, .*_b; choose one") as error:
        find_prompt("IC", workspace)
    assert "checkpoints_c" not in str(error.value).split("choose")[0]
    found = {find_prompt(str(word), workspace) for word in (second, second / "checkpoint_best.pt")}
    assert found == {second / "checkpoint_best.pt"}
    assert found == {find_prompt("IC", workspace, model_date="b")}
    with pytest.raises(UserError, match="no trained prompt at .*_c; .*_c is not finished"):
        find_prompt("IC", workspace, model_date="c")
    shutil.rmtree(second)
    assert find_prompt("IC", workspace) == first / "checkpoint_best.pt"
    published = tmp_path / "KS_my_units100_checkpoints_2022" / "x.pt"
    assert task_and_unit_model(published) == ("KS", "my_units100")
    with pytest.raises(UserError, match="nothing says which task"):
        task_and_unit_model(tmp_path / "elsewhere" / "x.pt")


def test_prompts_that_do_not_go_together(spoken_workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(spoken_workspace.checkpoints("IC", spoken.UNIT_MODEL, "d"), folder)
    card = read_json(folder / "prompt.json", "")
    for change, prompts, expected in (
        ({"lm_fingerprint": "0" * 16}, ["IC", folder], "was trained on 0000000000000000; put that"),
        ({"lm_fingerprint": "0" * 16}, [folder], "was trained on 0000000000000000; put that LM"),
        ({"fine_tune": True}, [folder], "a whole fine-tuned LM"),
    ):
        (folder / "prompt.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(UserError, match=expected):
            Predictor.load(prompts, spoken_workspace.root)
