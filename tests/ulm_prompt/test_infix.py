"""``train.py --infix_prompt_length``: vectors that stand where ``<s>`` is, through the stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.ulm_prompt.in_process import call, prepare

SHORT = ("--set", "max_update=6", "warmup_updates=2")


def test_an_infix_prompt_is_trained_resumed_and_sampled(tmp_path: Path) -> None:
    prepare(tmp_path, "fluent_commands")
    train = ("train", tmp_path, "--date", "a", "--recipe", "fast", "--infix_prompt_length")
    assert f"(num. trained: {4 * 32 * 7 + 32:,})" in call(*train, 4, *SHORT)
    assert "has finished" in call(*train, 4, *SHORT)
    with pytest.raises(UserError, match="another infix_prompt_length"):
        call(*train, 5, *SHORT)
    folder = Workspace(tmp_path).checkpoints("IC", "tiny100", "a")
    record = json.loads((folder / "prompt.json").read_text())
    assert (record["prefix_prompt_length"], record["infix_prompt_length"]) == (0, 4)
    state = torch.load(folder / "checkpoint_best.pt", weights_only=True)["model"]
    assert state["decoder.infix_embed_prompts.weight"].shape == (4, 32)
    assert state["decoder.prefix_embed_prompts.weight"].shape == (0, 32)
    call("sample", tmp_path, "--model_date", "a", "--sample_date", "s")
    assert "utterances              29" in call("cal_acc", tmp_path, "--sample_date", "s")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--infix_prompt_length", -1), "expected 0 or more"),
        (("--infix_prompt_length", 2, "--prefix_prompt_length", 3), "input vectors only"),
        (("--infix_prompt_length", 2, "--fine_tune"), "says how a prompt is trained"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, flags: tuple, message: str) -> None:
    prepare(tmp_path, "speech_commands")
    with pytest.raises(UserError, match=message):
        call("train", tmp_path, "--date", "a", *flags)
