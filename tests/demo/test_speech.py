"""The demo's speech: same seed, same bytes; voices and sentences apart; read by stage 1."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from demo.sequence_speech import FOLDERS, VOICES, iob_line
from demo.speaking.texts import VALUES, intent_commands, sentences, slot_commands
from demo.speaking.voices import LEFT_OUT, speakers, variants
from pipeline.rows import SPLITS
from tests.conftest import stage
from tests.preprocess.tasks import preprocessor
from tests.preprocess.test_sequence_tasks import read_back

SIZES = {
    "demo/speech.py": ["--commands", "124", "28", "38"],  # an utterance of every speaker
    "demo/sequence_speech.py": ["--sentences", "30", "3", "3", "--commands", "42", "4", "4"],
}


def speak(script: str, out: Path, *flags: object, code: int = 0) -> str:
    return stage(script, "--out", out, *SIZES[script], *flags, code=code)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A workspace for each script, with what it speaks in corpora/."""
    workspaces = {script: tmp_path_factory.mktemp(Path(script).stem) for script in SIZES}
    for script, workspace in workspaces.items():
        speak(script, workspace / "corpora", "--workers", 2)
    return workspaces


@pytest.mark.parametrize("script", SIZES)
def test_same_bytes_with_other_workers_and_memory(
    script: str, spoken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every variant: those that read unset memory are left out. Nothing is overwritten."""
    monkeypatch.setenv("MALLOC_PERTURB_", "170")  # glibc fills new memory with this byte
    speak(script, tmp_path, "--workers", 1)
    before = digests(spoken[script] / "corpora")
    assert digests(tmp_path) == before
    assert "is there already" in speak(script, spoken[script] / "corpora", code=2)
    assert digests(spoken[script] / "corpora") == before


def test_stage_1_reads_the_commands(spoken: dict[str, Path]) -> None:
    """They cover the label scheme."""
    workspace = spoken["demo/speech.py"]
    preprocessor("fluent_commands", workspace).generate_manifest()
    triples = {command[1:] for command in intent_commands()}
    assert len(triples) == 31
    assert [len({triple[slot] for triple in triples}) for slot in range(3)] == [6, 14, 4]
    table = workspace / "corpora/fluent_commands/data/train_data.csv"
    rows = list(csv.DictReader(table.open(newline="")))
    assert {(row["action"], row["object"], row["location"]) for row in rows} == triples


def test_stage_1_reads_the_sentences(spoken: dict[str, Path]) -> None:
    """Its texts are the transcripts; no sentence and no voice in two splits."""
    task = preprocessor("librispeech", spoken["demo/sequence_speech.py"])
    task.generate_manifest()
    texts = [{text.words for text in read_back(task, split).values()} for split in SPLITS]
    assert set.union(*texts) <= {text.upper() for text in sentences()}
    assert sum(map(len, texts)) == len(set.union(*texts))
    readers = [{path.name for path in (task.root / FOLDERS[split]).iterdir()} for split in SPLITS]
    assert sum(map(len, readers)) == len(set.union(*readers)) == 30 + 3 + 3


def test_stage_1_reads_the_slots(spoken: dict[str, Path]) -> None:
    task = preprocessor("audio_snips", spoken["demo/sequence_speech.py"])
    task.generate_manifest()
    for split, count in zip(SPLITS, (42, 4, 4)):
        texts = read_back(task, split)
        assert len(texts) == count
        assert {name.split("-")[0] for name in texts} <= VOICES[split].keys()
        for text in texts.values():
            for name, value in text.slots:
                assert value in {known.upper() for known in VALUES[name]}
    line = iob_line("Ivy-snips-train-0", slot_commands()[1][1])
    assert line == (
        "Ivy-snips-train-0 BOS listen to the Beatles EOS\tO O O B-artist I-artist PlayMusic\n"
    )


def test_every_variant_is_heard_in_one_split_only() -> None:
    by_split = speakers(seed=1)
    assert by_split != speakers(seed=2)
    heard = [{speaker.voice.split("+")[1] for speaker in by_split[split]} for split in SPLITS]
    assert sum(map(len, heard)) == len(variants()) and set.union(*heard) == set(variants())
    assert not LEFT_OUT & set(variants())
    snips = [variant for voices in VOICES.values() for variant in voices.values()]
    assert len(set(snips)) == len(snips) == 16 and set(snips) <= set(variants())
