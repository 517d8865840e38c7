"""The demo's real clips: separate speakers per split, the index, packing and unpacking."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo.clips import INDEX, PACKED, pack, unpack
from pipeline.errors import UserError
from preprocess.speech_commands.preprocessor import CLASSES, TEST_FOLDER, which_split
from tests.preprocess.tasks import preprocessor


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("clips")
    unpack(PACKED, workspace / "corpora" / "speech_commands")
    return workspace


def names() -> list[tuple[str, str]]:
    with open(PACKED / INDEX, encoding="utf-8", newline="") as handle:
        return [(row["folder"], row["name"]) for row in csv.DictReader(handle)]


def test_what_is_packed() -> None:
    """No speaker is in two splits. The size and the licence are as expected."""
    assert sum(path.stat().st_size for path in PACKED.rglob("*.opus")) <= 5_000_000
    licence = (PACKED / "LICENSE").read_text()
    assert "CC BY 4.0" in licence and "Pete Warden" in licence and "Changes:" in licence
    speakers: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
    for folder, name in names():
        if "_nohash_" in name:
            split = "test" if folder.startswith(TEST_FOLDER) else which_split(name)
            speakers[split].add(name.split("_nohash_")[0].split("_")[-1])
    assert [len(names) for names in speakers.values()] == [99, 9, 31]
    assert len(set.union(*speakers.values())) == 99 + 9 + 31


def test_stage_1_reads_every_class(unpacked: Path) -> None:
    task = preprocessor("speech_commands", unpacked)
    task.generate_manifest()
    for split in ("train", "valid", "test"):
        labels = {label for utterance in task.utterances(split) for label in utterance.labels}
        assert labels == set(CLASSES)
    assert len(list(task.root.rglob("*.wav"))) == len(names()) == 2_689


def test_packed_and_unpacked_again(unpacked: Path, tmp_path: Path) -> None:
    """Every clip is restored under its name, except clips that the split rule drops."""
    source = unpacked / "corpora" / "speech_commands"
    corpus = tmp_path / "corpus"
    kept = [
        "speech_commands_v0.01/yes/a6d586b7_nohash_4.wav",
        "speech_commands_v0.01/yes/024d32b9_nohash_1.wav",
        "speech_commands_v0.01/_background_noise_/noise_0.wav",
        "speech_commands_test_set_v0.01/yes/37fc5d97_nohash_1.wav",
    ]
    dropped = "speech_commands_v0.01/yes/37fc5d97_nohash_1.wav"
    clips = sorted((source / "speech_commands_v0.01" / "yes").iterdir())
    for number, name in enumerate([*kept, dropped]):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_bytes(clips[number].read_bytes())
    pack(corpus, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    again = {str(path.relative_to(tmp_path / "again")) for path in tmp_path.glob("again/*/*/*.wav")}
    assert again == set(kept)
    for name in kept:
        before, after = (
            soundfile.read(folder / name)[0] for folder in (corpus, tmp_path / "again")
        )
        assert len(before) == len(after) == 16_000
        assert np.corrcoef(before, after)[0, 1] > 0.8, name  # the same clip, not shifted


def test_what_it_refuses(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        unpack(PACKED, unpacked / "corpora" / "speech_commands")
    with pytest.raises(UserError, match="found no wav file"):
        pack(tmp_path, tmp_path / "packed")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / INDEX).write_text("folder,name,samples\nshort,a.wav,16000\n")
    soundfile.write(
        tmp_path / "cut" / "short.opus", np.zeros(8_000), 16_000, format="OGG", subtype="OPUS"
    )
    with pytest.raises(UserError, match=r"short\.opus: ends before a\.wav"):
        unpack(tmp_path / "cut", tmp_path / "out")
    assert not (tmp_path / "out").exists()
