"""Audio to units: resumed runs, several ranks, shards; counts; bad and replaced audio. Killed runs
are tested in tests/reliability/test_trials.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import holding, read_json
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import REPOSITORY
from preprocess.actions.audio_run import Shard
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.reliability.hostile import refused

SETTINGS = ("fairseqrc.batch_seconds=0.1", "fairseqrc.km_clusters=8", "fairseqrc.km_starts=1")
WAVS = "corpora/fluent_commands/wavs/speakers"


def task_of(workspace: Path, *settings: str) -> Preprocessor:
    """Return the task with blocks of one file."""
    return preprocessor("fluent_commands", workspace, *SETTINGS, *settings)


@pytest.fixture
def workspace(tmp_path) -> Path:
    """Return a workspace with a corpus of six tones, manifests and a k-means."""
    corpora.fluent_commands(tmp_path / "corpora/fluent_commands")
    task = task_of(tmp_path)
    task.generate_manifest()
    learn_kmeans([task])
    return tmp_path


def run(workspace: Path, skip_bad: bool = False) -> None:
    Quantizing(task_of(workspace)).run(Ranks(), skip_bad)


def run_shards(workspace: Path, *numbers: int, count: int = 2) -> None:
    for number in numbers:
        Quantizing(task_of(workspace)).run_shard(Shard(number, count))


def merge(workspace: Path, skip_bad: bool = False) -> None:
    Quantizing(task_of(workspace)).merge_shards(skip_bad)


def replace(path: Path, hertz: float = 333) -> None:
    """Write another tone of the same length, under the same name."""
    corpora.write(path, corpora.tone(soundfile.info(path).duration, hertz))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # even on a coarse clock


def units(workspace: Path) -> list[str]:
    folder = task_of(workspace).quantized
    return [line for split in SPLITS for line in (folder / split).read_text().splitlines()]


def test_torchrun_and_shards_give_the_same_units(workspace, capsys):
    run(workspace)
    expected, folder = units(workspace), task_of(workspace).quantized
    (folder / "provenance.json").unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3",
               "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
               REPOSITORY / "preprocess/runner.py", "--downstream", "fluent_commands",
               "--workspace", workspace, "--unit_model", "logmel100", "--action", "quantized",
               "--set", *SETTINGS]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert result.returncode == 0, result.stderr
    assert units(workspace) == expected
    assert result.stdout.count("train: 3 files") == 1  # printed by one rank only

    (folder / "provenance.json").unlink()
    with pytest.raises(UserError, match="blocks are missing, the first is train-000000"):
        merge(workspace)
    run_shards(workspace, 2, 0, count=3)
    with pytest.raises(UserError, match="blocks are missing, the first is train-000001; run the"):
        merge(workspace)
    capsys.readouterr()
    run_shards(workspace, 0, 1, count=3)
    assert "shard 0 of 3 is done already" in capsys.readouterr().out
    other = folder / "blocks" / "test-000001.jsonl"
    content = other.read_bytes()
    other.write_bytes((folder / "blocks" / "test-000000.jsonl").read_bytes())
    assert "test-000001.jsonl: not a block of" in refused(lambda: merge(workspace))
    other.write_bytes(content)
    merge(workspace)
    assert units(workspace) == expected and not (folder / "blocks").exists()


def test_a_second_run_at_the_same_time_is_refused(workspace):
    with holding(task_of(workspace).quantized):
        for again in (run, merge, lambda workspace: run_shards(workspace, 0)):
            assert "another process is writing there" in refused(lambda a=again: a(workspace))


def test_replaced_audio_is_quantised_again(workspace, capsys):
    """A file is replaced during and after a run: no row has units of the old audio."""

    def quantise() -> str:
        capsys.readouterr()
        run(workspace)
        return capsys.readouterr().out

    run_shards(workspace, 0, 1)
    replace(workspace / WAVS / "train/1.wav")
    with pytest.raises(UserError, match="1 audio files have changed since they were read; run"):
        merge(workspace)
    printed = quantise()
    changes = "1 audio files have changed since they were read: their 1 blocks are computed"
    assert changes in printed and "resumes an earlier run: 5 of 6 blocks done" in printed
    resumed = units(workspace)
    (task_of(workspace).quantized / "provenance.json").unlink()
    quantise()
    assert units(workspace) == resumed
    assert "already exists, made from these manifests and models, audio" in quantise()
    replace(workspace / WAVS / "train/1.wav", 555)
    assert "audio files have changed; it is made again" in quantise()
    changed = [old != new for old, new in zip(resumed, units(workspace), strict=True)]
    assert changed == [False, True, False, False, False, False]
    (workspace / WAVS / "train/1.wav").unlink()  # a user may delete the corpus
    assert "audio files were not compared, 1 of them no longer exist" in quantise()


def test_bad_audio_loses_nothing_good(workspace, capsys):
    bad, other = workspace / WAVS / "train/1.wav", workspace / WAVS / "test/0.wav"
    kept, task = bad.read_bytes(), task_of(workspace)
    soundfile.write(bad, np.full(9_600, np.nan), 16_000, subtype="FLOAT")
    other.write_bytes(other.read_bytes()[:100])
    run_shards(workspace, 0, 1)
    with pytest.raises(UserError, match=r"2 audio file\(s\).*NaN"):
        merge(workspace)
    report = task.quantized / "bad_audio.txt"
    assert len(report.read_text().splitlines()) == 2
    assert not (task.quantized / "train").exists()

    run(workspace, skip_bad=True)
    task.postprocess()
    assert "1 rows left out" in capsys.readouterr().out
    assert [len(list(read_rows(task.units / split))) for split in SPLITS] == [2, 1, 1]

    bad.write_bytes(kept)  # repaired: only what was bad is computed again
    blocks = list((task.quantized / "blocks").glob("*.jsonl"))
    stored = {path: path.stat().st_mtime_ns for path in blocks}
    with pytest.raises(UserError, match=r"1 audio file\(s\).*test/0\.wav"):
        run(workspace)
    assert sum(path.stat().st_mtime_ns != stored[path] for path in stored) == 2
    run(workspace, skip_bad=True)
    task.postprocess()
    assert [len(list(read_rows(task.units / split))) for split in SPLITS] == [3, 1, 1]


def test_every_stage_counts_its_audio(workspace, capsys):
    """A resumed run and a merge of shards print the same counts."""
    root = workspace / WAVS
    tone = corpora.tone(0.5, 300)
    corpora.write(root / "train/0.wav", np.stack([tone, -tone], axis=1))
    corpora.write(root / "train/1.wav", corpora.tone(0.5, 300, 8000), 8000)
    corpora.write(root / "train/2.wav", np.zeros(8000))
    corpora.write(root / "valid/0.wav", np.clip(20 * tone, -1, 1))
    (root / "test/0.wav").write_bytes((root / "test/0.wav").read_bytes()[:9_000])
    task = task_of(workspace)
    with pytest.raises(UserError, match=r"1 audio file.*test/0\.wav \(is cut short"):
        task.generate_manifest()
    assert (task.manifest / "bad_audio.txt").exists()
    task.skip_bad = True
    capsys.readouterr()
    task.generate_manifest()
    line = "audio: 5 recordings read (2 channels: 1; 8000 Hz resampled to 16000 Hz: 1); "
    assert f"{line}1 left out (is cut short: 1)" in capsys.readouterr().out
    corpora.write(root / "test/1.wav", np.zeros(4000))

    task.km_path.unlink()
    learn_kmeans([task])
    counts = "the loudest of 2 channels taken, which cancel each other: 1; "
    counts += "8000 Hz resampled to 16000 Hz: 1; silent (all zeros): 1"
    assert f"audio: 3 recordings read ({counts})\n" in capsys.readouterr().out
    assert read_json(task.km_path.with_suffix(".json"), "")["audio"]["read"] == 3

    run_shards(workspace, 0, 1)
    capsys.readouterr()
    expected = f"audio: 4 recordings read ({counts}; clipped (over a tenth at full scale): 1); "
    expected += "1 left out (ends early: 1)"
    for _ in range(2):  # a first merge, then a merge of the kept blocks
        merge(workspace, skip_bad=True)
        assert expected in capsys.readouterr().out
    record = read_json(task.quantized / "provenance.json", "")["audio"]
    assert record["left_out"] == {"ends early": 1} and record["notes"]["silent (all zeros)"] == 1


def test_a_file_that_has_grown_is_noted(workspace, capsys):
    corpora.write(workspace / WAVS / "train/0.wav", corpora.tone(2.0, 300))
    run(workspace)
    assert "(longer than the manifest says, cut there: 1)\n" in capsys.readouterr().out


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_frames_are_counted_at_16_khz(tmp_path, rate, capsys):
    """The number of k-means frames and the length of blocks do not depend on the files' rate."""
    row = ("start", "lamp", "none")
    splits = {"train": 8 * [row], "valid": [row], "test": [row]}
    corpora.fluent_commands(tmp_path / "corpora/fluent_commands", splits)
    for number, path in enumerate(sorted((tmp_path / WAVS).rglob("*.wav"))):
        corpora.write(path, corpora.tone(0.5, 200 + 20 * number, rate), rate)
    task = task_of(tmp_path, "fairseqrc.km_frames=140", "fairseqrc.batch_seconds=0.4")
    task.generate_manifest()
    learn_kmeans([task])
    assert "8 clusters of 140 frames" in capsys.readouterr().out
    Quantizing(task).run_shard(Shard(0, 1))
    assert len(list((task.quantized / "blocks").glob("*.jsonl"))) == 2 + 1 + 1
