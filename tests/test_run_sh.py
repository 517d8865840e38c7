"""run.sh calls the stages, skips finished ones, and stops at the first failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.ulm_prompt.in_process import call, prepare

TASK = ("--downstream", "speech_commands", "--unit_model", "tiny100")


def run(workspace: Path, *flags: str, code: int = 0, **environment: str) -> str:
    result = subprocess.run(
        [REPOSITORY / "run.sh", *TASK, "--workspace", workspace.name, *flags],
        cwd=workspace.parent,
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_finished_stages_are_recognised_by_their_inputs(tmp_path: Path) -> None:
    """A second call does not import torch. It notices changed rows, even older ones (``cp -p``)."""
    root, fake = tmp_path / "w", tmp_path / "fake"
    prepare(root, "speech_commands")
    call("train", root, "--date", "run", "--set", "max_update=1")
    call("sample", root, "--model_date", "run", "--sample_date", "run")
    (fake / "torch").mkdir(parents=True)
    (fake / "torch" / "__init__.py").write_text("raise ImportError('torch is loaded')")
    again = ("--set", "max_update=1")
    printed = run(root, *again, PYTHONPATH=str(fake))
    assert "stage 1: done already" in printed and "utterances              29" in printed
    for script in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess", "train"):
        assert printed.count(f"$ python ulm_prompt/{script}.py --prompt_task KS") == 1
    for done in ("and dict: kept", "has finished", "nothing to decode"):
        assert done in printed
    rows = Workspace(root).rows("speech_commands", "tiny100", "test")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[::-1]))
    os.utime(rows, (1, 1))
    printed = run(root, *again, code=2)  # the trained run has a record of its rows
    assert "labels renamed by freq" in printed and "holds a run with another data" in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_stage_too(tmp_path: Path, number: signal.Signals) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/stage\nexec sleep 60\n")
    python.chmod(0o755)
    process = subprocess.Popen(
        [REPOSITORY / "run.sh", *TASK, "--workspace", tmp_path, "--stage", "2"],
        env=os.environ | {"PYTHON": str(python)},
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "stage").exists() or not (tmp_path / "stage").read_text():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "stage").read_text()), 0)


def test_it_stops_at_the_first_failure_and_prints_the_error(tmp_path: Path) -> None:
    printed = run(tmp_path, "--root_path", str(tmp_path / "nowhere"), code=2)
    expected = ("corpus folder of speech_commands not found", "not in the registry")
    assert any(message in printed for message in expected) and printed.count("$ python") == 1
    assert "expected 1 to 6" in run(tmp_path, "--stage", "7", code=2)
    assert "not after the last" in run(tmp_path, "--stage", "5", "--stop-stage", "2", code=2)
    assert "--color: unknown" in run(tmp_path, "--color", "red", code=2)


def test_another_corpus_than_that_of_the_manifests_is_refused(tmp_path: Path) -> None:
    """The corpus of the manifests is accepted, also through a link."""
    corpora.speech_commands(tmp_path / "spoken")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("spoken")
    flags = ("--unit_model", "logmel50", "--stop-stage", "1", "--root_path")
    preprocessor(
        "speech_commands", tmp_path, f"datarc.root_path={tmp_path}/spoken"
    ).generate_manifest()
    (tmp_path / "pretrained_models").mkdir()
    (tmp_path / "pretrained_models" / "logmel50_km.npz").write_bytes(b"no k-means")
    printed = run(tmp_path, *flags, str(tmp_path / "real"), code=2)
    assert f"--root_path {tmp_path}/real: the manifests in" in printed and "$ python" not in printed
    printed = run(tmp_path, *flags, str(tmp_path / "link"), code=2)
    assert "--action quantized" in printed and "generate_manifest" not in printed
