"""run.sh: it calls the stages, skips what is done, and stops at the first failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.ulm_prompt import tiny

TASK = ("--downstream", "speech_commands", "--unit_model", "tiny100")


def run(workspace: Path, *flags: str, code: int = 0) -> str:
    result = subprocess.run(
        [REPOSITORY / "run.sh", *TASK, "--workspace", workspace.name, *flags],
        cwd=workspace.parent,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_stages_are_called_once_and_again_when_their_input_is_newer(tmp_path: Path) -> None:
    tiny.write_corpus(tmp_path)
    space = Workspace(tmp_path)
    said = run(tmp_path, "--stop-stage", "2")
    assert "stage 1: done already" in said
    for script in ("make_data", "gen_labelspace", "verbalizer"):
        assert said.count(f"$ python ulm_prompt/{script}.py --prompt_task KS") == 1
    assert (
        Workspace(tmp_path).prompt_text("tiny100", "speech_commands", "data_freq", "test").exists()
    )
    said = run(tmp_path, "--stop-stage", "2")
    assert "stage 2: done already" in said and "$ python" not in said
    rows = space.rows("speech_commands", "tiny100", "test")
    os.utime(rows, (rows.stat().st_mtime + 60,) * 2)
    assert "verbalizer.py" in run(tmp_path, "--stage", "2", "--stop-stage", "2")


def test_the_first_failure_ends_it_with_its_message(tmp_path: Path) -> None:
    said = run(tmp_path, "--root_path", str(tmp_path / "nowhere"), code=2)
    assert "corpus folder of speech_commands not found" in said or "not in pretrained" in said
    assert said.count("$ python") == 1
    assert "expected 1 to 6" in run(tmp_path, "--stage", "7", code=2)
    assert "not after the last" in run(tmp_path, "--stage", "5", "--stop-stage", "2", code=2)
    assert "--color: unknown" in run(tmp_path, "--color", "red", code=2)


def test_another_corpus_is_not_taken_for_the_one_of_the_manifests(tmp_path: Path) -> None:
    """Its own may be named, by a link too."""
    corpora.speech_commands(tmp_path / "spoken")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("spoken")
    model = ("--unit_model", "logmel50", "--stop-stage", "1", "--root_path")
    preprocessor(
        "speech_commands", tmp_path, f"datarc.root_path={tmp_path}/spoken"
    ).generate_manifest()
    (tmp_path / "pretrained_models").mkdir()
    (tmp_path / "pretrained_models" / "logmel50_km.npz").write_bytes(b"no k-means")
    said = run(tmp_path, *model, str(tmp_path / "real"), code=2)
    assert f"--root_path {tmp_path}/real: the manifests in" in said and "$ python" not in said
    said = run(tmp_path, *model, str(tmp_path / "link"), code=2)
    assert "--action quantized" in said and "generate_manifest" not in said
