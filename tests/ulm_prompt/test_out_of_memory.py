"""A batch that does not fit is never left out in silence, as fairseq would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError, run
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.prompt_lm.model import PromptLanguageModel

FULL = "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 1 GiB in all"


@pytest.mark.parametrize("training", [True, False])
def test_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Of train or of valid; the longest batch alone."""
    prepare(tmp_path, "speech_commands")
    forward = PromptLanguageModel.forward

    def fits(model: PromptLanguageModel, tokens: torch.Tensor, read_at: torch.Tensor) -> object:
        if tokens.shape[1] > 14 and model.training == training:
            raise torch.OutOfMemoryError(FULL)
        return forward(model, tokens, read_at)

    monkeypatch.setattr(PromptLanguageModel, "forward", fits)
    with pytest.raises(UserError, match=r"GPU's memory \(CUDA out of .* MiB\.\); take a smaller"):
        call("train", tmp_path, "--date", "a", "--set", "max_epoch=1", "batch_size=8")


def test_elsewhere_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(SystemExit) as leaving:
        run(main)
    told = capsys.readouterr().err
    assert leaving.value.code == 1 and told.count("\n") == 1
    assert told.startswith("error: CUDA out of memory.") and "take smaller batches" in told

    def other() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(other)
