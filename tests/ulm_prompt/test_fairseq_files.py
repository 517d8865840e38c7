"""fairseq with our changes: what it writes on a full disk; it leaves out no batch in silence."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils

from pipeline.errors import UserError
from pipeline.torch_files import load_torch
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.training.fairseq_run import CurveWriter, LogFile, patched

LINE = "a line of the log"
FULL = "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 1 GiB in all"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file grows beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("way", ["save", "copy"])
def test_a_checkpoint_is_whole_or_the_old_one(tmp_path: Path, request, way: str) -> None:
    best, last = tmp_path / "checkpoint_best.pt", tmp_path / "checkpoint_last.pt"
    with patched():
        checkpoint_utils.torch_persistent_save({"model": torch.zeros(1000)}, str(best))
        assert checkpoint_utils.PathManager.copy(str(best), str(last), overwrite=True)
        checkpoint_utils.torch_persistent_save({"model": torch.ones(1000)}, str(best))
        request.getfixturevalue("full_disk")
        with pytest.raises(OSError) as error:
            if way == "save":
                checkpoint_utils.torch_persistent_save({"model": torch.ones(1000)}, str(last))
            else:
                checkpoint_utils.PathManager.copy(str(best), str(last), overwrite=True)
    assert error.value.filename == str(last)
    assert load_torch(last)["model"].sum() == 0 and sorted(tmp_path.iterdir()) == [best, last]


@pytest.mark.parametrize("kind", ["curves", "log"])
def test_a_log_that_cannot_be_written_is_an_error(
    tmp_path: Path, full_disk: None, kind: str
) -> None:
    """And does not wait for a thread that has died."""
    path = tmp_path / kind
    log = LogFile(path) if kind == "log" else CurveWriter(str(path))
    with pytest.raises(OSError) as error:
        for step in range(200):
            if kind == "log":
                log.handle(logging.makeLogRecord({"msg": LINE}))
            else:
                log.add_text("sys.argv", "train.py"), log.add_scalar("loss", 0.5, step), log.flush()
    assert error.value.filename == str(path)


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(f"{LINE}\nvalid on 'valid' subset | loss 3.1")
    log = LogFile(path)
    log.handle(logging.makeLogRecord({"msg": LINE}))
    log.close()
    assert path.read_text() == f"{LINE}\n{LINE}\n"


@pytest.mark.parametrize("training", [True, False])
def test_training_ends_with_a_batch_that_does_not_fit(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """Of train or of valid; the longest batch alone."""
    forward = PromptLanguageModel.forward

    def fits(model: PromptLanguageModel, tokens: torch.Tensor, read_at: torch.Tensor) -> object:
        if tokens.shape[1] > 14 and model.training == training:
            raise torch.OutOfMemoryError(FULL)
        return forward(model, tokens, read_at)

    monkeypatch.setattr(PromptLanguageModel, "forward", fits)
    with pytest.raises(UserError, match=r"GPU's memory \(CUDA out of .* MiB\.\); take a smaller"):
        flags = ("--prompt_task", "KS", "--date", f"full{training}")
        call("train", prepared, *flags, "--set", "max_epoch=1", "batch_size=8")


def test_a_name_that_numpy_2_removed_is_there_for_fairseq_alone() -> None:
    """fairseq's own datasets ask for it; ours do not."""
    before = hasattr(np, "compat")
    with patched():
        assert np.zeros(2, dtype=np.compat.long).dtype == np.int64
    assert hasattr(np, "compat") == before
