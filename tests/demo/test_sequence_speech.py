"""The sequence tasks' corpora: same seed, same bytes; voices and sentences apart; stage 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo.sequence_speech import FOLDERS, VOICES, iob_line
from demo.speaking.texts import PATTERNS, VALUES, sentences, slot_commands
from demo.speaking.voices import variants
from pipeline.rows import SPLITS
from pipeline.workspace import REPOSITORY
from tests.demo.test_speech import digests
from tests.preprocess.tasks import preprocessor
from tests.preprocess.test_sequence_tasks import read_back


def speak(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "demo" / "sequence_speech.py")
    sizes = ["--sentences", "30", "3", "3", "--commands", "42", "4", "4"]
    command = [sys.executable, script, "--out", str(out), *sizes, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("spoken")
    result = speak(workspace / "corpora", "--workers", "2")
    assert result.returncode == 0, result.stderr
    return workspace


def test_same_bytes_with_another_number_of_workers(spoken: Path, tmp_path: Path) -> None:
    assert speak(tmp_path, "--workers", "1").returncode == 0
    assert digests(tmp_path) == digests(spoken / "corpora")
    result = speak(tmp_path)
    assert result.returncode == 2 and "is there already" in result.stderr


def test_stage_1_reads_what_was_said(spoken: Path) -> None:
    """Its texts are the transcripts; no sentence and no voice in two splits."""
    task = preprocessor("librispeech", spoken)
    task.generate_manifest()
    found = [{text.words for text in read_back(task, split).values()} for split in SPLITS]
    assert set.union(*found) <= {text.upper() for text in sentences()}
    assert sum(map(len, found)) == len(set.union(*found))
    readers = [{path.name for path in (task.root / FOLDERS[split]).iterdir()} for split in SPLITS]
    assert sum(map(len, readers)) == len(set.union(*readers)) == 30 + 3 + 3

    task = preprocessor("audio_snips", spoken)
    task.generate_manifest()
    counts = dict(zip(SPLITS, (42, 4, 4)))
    for split, count in counts.items():
        texts = read_back(task, split)
        assert len(texts) == count
        assert {name.split("-")[0] for name in texts} <= VOICES[split].keys()
        for text in texts.values():
            for name, value in text.slots:
                assert value in {own.upper() for own in VALUES[name]}


def test_every_snips_voice_is_a_variant_of_its_own() -> None:
    heard = [variant for voices in VOICES.values() for variant in voices.values()]
    assert len(set(heard)) == len(heard) == 16 and set(heard) <= set(variants())


def test_commands_and_their_tags() -> None:
    everything = [command for pattern in slot_commands() for command in pattern]
    assert len(slot_commands()) == sum(map(len, PATTERNS.values()))
    assert all(len(command.words) == len(command.tags) for command in everything)
    line = iob_line("Ivy-snips-train-0", slot_commands()[1][1])
    assert line == (
        "Ivy-snips-train-0 BOS listen to the Beatles EOS\tO O O B-artist I-artist PlayMusic\n"
    )
    assert len(set(sentences())) == 6**4
