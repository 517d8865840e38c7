"""Quantising a corpus: killed and resumed, by several ranks, by shards, with bad audio."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import holding
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import REPOSITORY
from preprocess.actions.audio_run import Shard
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.reliability.hostile import refused

SMALL_BLOCKS = ("fairseqrc.batch_seconds=0.2", "fairseqrc.km_clusters=8", "fairseqrc.km_starts=1")
COUNTS = {"train": 40, "valid": 9, "test": 7}


def intents(workspace: Path) -> Preprocessor:
    """fluent_commands in this process, in many small blocks."""
    return preprocessor("fluent_commands", workspace, *SMALL_BLOCKS)


def command(workspace: Path) -> list[str]:
    """The same quantising as a command line, less the interpreter."""
    runner = str(REPOSITORY / "preprocess" / "runner.py")
    options = ["--downstream", "fluent_commands", "--workspace", str(workspace)]
    options += ["--unit_model", "logmel100"]
    return [runner, *options, "--action", "quantized", "--set", *SMALL_BLOCKS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A workspace with a corpus of ragged tones, its manifests and k-means."""
    workspace = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    labels = [("start", "lamp", "none"), ("stop", "heat", "kitchen")]
    splits = {split: [rng.choice(labels) for _ in range(n)] for split, n in COUNTS.items()}
    splits["train"][:2] = labels
    root = corpora.fluent_commands(workspace / "corpora" / "fluent_commands", splits)
    for number, path in enumerate(sorted(root.rglob("*.wav"))):
        corpora.write(path, corpora.tone(rng.uniform(0.1, 0.6), 90 + 7 * number))
    task = intents(workspace)
    task.generate_manifest()
    learn_kmeans([task])
    return workspace


@pytest.fixture
def workspace(prepared, tmp_path) -> Path:
    """A copy of ``prepared`` to write in; the audio is read where it lies."""
    shutil.copytree(intents(prepared).manifest, intents(tmp_path).manifest)
    shutil.copytree(prepared / "pretrained_models", tmp_path / "pretrained_models")
    return tmp_path


def run(task: Preprocessor, skip_bad: bool = False) -> None:
    Quantizing(task).run(Ranks(), skip_bad)


def quantized(workspace: Path) -> dict[str, bytes]:
    return {split: (intents(workspace).quantized / split).read_bytes() for split in SPLITS}


@pytest.fixture(scope="module")
def expected(prepared) -> dict[str, bytes]:
    run(intents(prepared))
    return quantized(prepared)


def blocks(workspace: Path) -> Path:
    return intents(workspace).quantized / "blocks"


# what a call of runner.py becomes that kills itself when it has stored so many blocks
DYING = """
import os, runpy, signal, sys
from preprocess.actions.audio_run import AudioRun
left, store = int(sys.argv.pop(1)), AudioRun.store
def store_and_die(run, encoded):
    global left
    store(run, encoded)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
AudioRun.store = store_and_die
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_it_goes_on_to_the_same_bytes(workspace, expected, capsys):
    """Random moments, of every stage: tests/reliability/faults.py."""
    rng = random.Random(1)
    stored = 0
    for _ in range(3):
        more = rng.randint(1, 4)
        process = subprocess.run(
            [sys.executable, "-c", DYING, str(more), *command(workspace)],
            cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert process.returncode == -signal.SIGKILL
        stored += more
        assert len(list(blocks(workspace).glob("*.jsonl"))) == stored, "none is computed twice"
    run(intents(workspace))
    assert "resumes an earlier run" in capsys.readouterr().out
    assert quantized(workspace) == expected
    assert not blocks(workspace).exists()
    run(intents(workspace))
    assert "already exists" in capsys.readouterr().out


def test_torchrun_gives_the_same_bytes(workspace, expected):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3"]
    torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    result = subprocess.run(
        [*torchrun, *command(workspace)], capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr
    assert quantized(workspace) == expected
    assert result.stdout.count("train: 40 files") == 1  # said once, not by every rank


def test_shards_and_their_merge(workspace, expected, capsys):
    task = Quantizing(intents(workspace))
    merge = lambda: task.merge_shards(skip_bad=False)  # noqa: E731
    assert "blocks are missing, the first is train-000000" in refused(merge)
    task.run_shard(Shard(2, 3))
    task.run_shard(Shard(0, 3))
    assert "blocks are missing, the first is train-000001; run the shards" in refused(merge)
    task.run_shard(Shard(0, 3))
    assert "shard 0 of 3 is done already" in capsys.readouterr().out
    task.run_shard(Shard(1, 3))
    other = blocks(workspace) / "valid-000001.jsonl"
    content = other.read_bytes()
    other.write_bytes((blocks(workspace) / "valid-000000.jsonl").read_bytes())
    assert "valid-000001.jsonl: not what" in refused(merge)
    other.write_bytes(content)
    merge()
    assert quantized(workspace) == expected


def test_a_second_run_at_the_same_time_is_refused(workspace):
    task = intents(workspace)
    with holding(task.quantized):
        for again in (
            lambda: run(task),
            lambda: Quantizing(task).run_shard(Shard(0, 2)),
            lambda: Quantizing(task).merge_shards(skip_bad=False),
        ):
            assert "another process is writing there" in refused(again)


def test_bad_audio_loses_nothing_good(tmp_path, capsys):
    root = corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands") / "wavs/speakers"
    task = intents(tmp_path)
    task.generate_manifest()
    learn_kmeans([task])
    bad, other = root / "train/1.wav", root / "test/0.wav"
    kept = bad.read_bytes()
    soundfile.write(bad, np.full(9_600, np.nan), 16_000, subtype="FLOAT")
    other.write_bytes(other.read_bytes()[:100])
    with pytest.raises(UserError, match=r"2 audio file\(s\).*NaN"):
        run(task)
    report = task.quantized / "bad_audio.txt"
    assert len(report.read_text().splitlines()) == 2
    assert not (task.quantized / "train").exists()

    run(task, skip_bad=True)
    task.postprocess()
    assert "1 rows left out" in capsys.readouterr().out
    assert [len(list(read_rows(task.units / split))) for split in SPLITS] == [2, 1, 1]

    bad.write_bytes(kept)  # repaired: only what was bad is computed again
    stored = {path: path.stat().st_mtime_ns for path in blocks(tmp_path).glob("*.jsonl")}
    with pytest.raises(UserError, match=r"1 audio file\(s\).*test/0\.wav"):
        run(task)
    assert sum(path.stat().st_mtime_ns != stored[path] for path in stored) == 2
    run(task, skip_bad=True)
    task.postprocess()
    assert [len(list(read_rows(task.units / split))) for split in SPLITS] == [3, 1, 1]
