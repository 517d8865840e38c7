"""Audio from generate_manifest to units: what is counted, replaced audio, other rates."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import read_json
from preprocess.actions.audio_run import AudioRun, Shard
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor

SETTINGS = ("fairseqrc.batch_seconds=0.1", "fairseqrc.km_starts=1")
WAVS = "corpora/fluent_commands/wavs/speakers"


def task_of(workspace: Path, *settings: str) -> Preprocessor:
    """A block holds one file."""
    return preprocessor("fluent_commands", workspace, *SETTINGS, *settings)


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A corpus of six tones, with manifests and a k-means."""
    corpora.fluent_commands(tmp_path / "corpora/fluent_commands")
    task = task_of(tmp_path)
    task.generate_manifest()
    learn_kmeans([task])
    return tmp_path


def replace(path: Path, hertz: float = 333) -> None:
    """Another tone of the same length, under the same name."""
    corpora.write(path, corpora.tone(soundfile.info(path).duration, hertz))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # even on a coarse clock


def units(workspace: Path) -> list[str]:
    return (task_of(workspace).quantized / "train").read_text().splitlines()


def test_replaced_audio_is_quantised_again(workspace, monkeypatch, capsys):
    """Under the same name, after a kill and after the end: no row is of the old audio."""

    def quantise() -> str:
        Quantizing(task_of(workspace)).run(Ranks(), skip_bad=False)
        return capsys.readouterr().out

    with monkeypatch.context() as patch:
        patch.setattr(AudioRun, "_write", lambda *_: None)
        quantise()
    replace(workspace / WAVS / "train/1.wav")
    said = quantise()
    assert "1 audio files have changed since they were read: their 1 blocks are computed" in said
    assert "resumes an earlier run: 5 of 6 blocks done" in said
    resumed = units(workspace)
    (task_of(workspace).quantized / "provenance.json").unlink()
    quantise()
    assert units(workspace) == resumed
    assert "already exists, made from these manifests and models, audio" in quantise()
    replace(workspace / WAVS / "train/1.wav", 555)
    assert "audio files have changed since, it is made again" in quantise()
    changed = [old != new for old, new in zip(resumed, units(workspace), strict=True)]
    assert changed == [False, True, False]
    (workspace / WAVS / "train/1.wav").unlink()  # a corpus may be gone
    assert "1 of its audio files do not exist now, none was" in quantise()


def test_shards_of_replaced_audio_are_not_merged(workspace):
    for shard in (0, 1):
        Quantizing(task_of(workspace)).run_shard(Shard(shard, 2))
    replace(workspace / WAVS / "train/1.wav")
    with pytest.raises(UserError, match="1 audio files have changed since they were read; run"):
        Quantizing(task_of(workspace)).merge_shards(skip_bad=False)
    Quantizing(task_of(workspace)).run_shard(Shard(1, 2))
    Quantizing(task_of(workspace)).merge_shards(skip_bad=False)


def test_every_stage_counts_its_audio(workspace, capsys):
    """Across a resumed run and shards the counts are the same."""
    root = workspace / WAVS
    tone = corpora.tone(0.5, 300)
    corpora.write(root / "train/0.wav", np.stack([tone, -tone], axis=1))
    corpora.write(root / "train/1.wav", corpora.tone(0.5, 300, 8000), 8000)
    corpora.write(root / "train/2.wav", np.zeros(8000))
    corpora.write(root / "valid/0.wav", np.clip(20 * tone, -1, 1))
    (root / "test/0.wav").write_bytes((root / "test/0.wav").read_bytes()[:9_000])
    task = task_of(workspace)
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

    for shard in (0, 1):
        Quantizing(task_of(workspace)).run_shard(Shard(shard, 2))
    capsys.readouterr()
    expected = f"audio: 4 recordings read ({counts}; clipped (over a tenth at full scale): 1); "
    expected += "1 left out (ends early: 1)"
    for _ in range(2):  # the merge, then a run that finds its blocks
        Quantizing(task).merge_shards(skip_bad=True)
        assert expected in capsys.readouterr().out
    record = read_json(task.quantized / "provenance.json", "")["audio"]
    assert record["left_out"] == {"ends early": 1} and record["notes"]["silent (all zeros)"] == 1


def test_a_file_that_has_grown_is_noted(workspace, capsys):
    corpora.write(workspace / WAVS / "train/0.wav", corpora.tone(2.0, 300))
    Quantizing(task_of(workspace)).run(Ranks(), skip_bad=False)
    assert "(longer than the manifest says, cut there: 1)\n" in capsys.readouterr().out


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_frames_are_counted_at_16_khz(tmp_path, rate, capsys):
    """k-means learns from as many frames, and blocks last as long, whatever the files' rate."""
    row = ("start", "lamp", "none")
    splits = {"train": 8 * [row], "valid": [row], "test": [row]}
    corpora.fluent_commands(tmp_path / "corpora/fluent_commands", splits)
    for number, path in enumerate(sorted((tmp_path / WAVS).rglob("*.wav"))):
        corpora.write(path, corpora.tone(0.5, 200 + 20 * number, rate), rate)
    task = task_of(tmp_path, "fairseqrc.km_frames=140", "fairseqrc.batch_seconds=0.4")
    task.generate_manifest()
    learn_kmeans([task])
    assert "8 clusters of 140 frames" in capsys.readouterr().out
    assert [len(blocks) for blocks in Quantizing(task)._splits.values()] == [2, 1, 1]
