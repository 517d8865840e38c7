"""The demo's speech: a seed gives the same bytes, splits share no voice, and stage 1 reads it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from demo.speaking import LEFT_OUT, speakers, variants
from demo.speech import (
    CORPORA,
    FOLDERS,
    SLOT_VALUES,
    SLOT_VOICES,
    intent_commands,
    sentences,
    slot_commands,
)
from pipeline.rows import SPLITS
from preprocess.preprocessor import Preprocessor
from tests.conftest import stage
from tests.preprocess.tasks import preprocessor
from tests.preprocess.test_sequence_tasks import read_back

# one utterance per speaker, and three corpora in one call
SIZES = ["--corpora", *CORPORA, "--commands", "124", "28", "38", "--sentences", "30", "3", "3"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("spoken")
    stage("demo/speech.py", "--out", workspace / "corpora", *SIZES, "--workers", 2)
    return workspace


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def manifest(downstream: str, workspace: Path) -> Preprocessor:
    task = preprocessor(downstream, workspace)
    task.generate_manifest()
    return task


def test_same_bytes_with_other_workers_and_memory(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants that read uninitialised memory are not used. Nothing is overwritten."""
    monkeypatch.setenv("MALLOC_PERTURB_", "170")  # glibc fills new memory with this byte
    stage("demo/speech.py", "--out", tmp_path, *SIZES, "--workers", 1)
    before = digests(workspace / "corpora")
    assert digests(tmp_path) == before
    assert "already exists" in stage("demo/speech.py", "--out", tmp_path, code=2)
    assert digests(tmp_path) == before


def test_stage_1_reads_the_commands(workspace: Path) -> None:
    """The commands cover the label scheme."""
    task = manifest("fluent_commands", workspace)
    triples = {command[1:] for command in intent_commands()}
    assert len(triples) == 31
    assert [len({triple[slot] for triple in triples}) for slot in range(3)] == [6, 14, 4]
    rows = list(csv.DictReader((task.root / "data/train_data.csv").open(newline="")))
    assert {(row["action"], row["object"], row["location"]) for row in rows} == triples


def test_stage_1_reads_the_sentences(workspace: Path) -> None:
    """The texts are the transcripts. No sentence and no voice is in two splits."""
    task = manifest("librispeech", workspace)
    texts = [{text.words for text in read_back(task, split).values()} for split in SPLITS]
    assert set.union(*texts) <= {text.upper() for text in sentences()}
    assert sum(map(len, texts)) == len(set.union(*texts))
    readers = [{path.name for path in (task.root / FOLDERS[split]).iterdir()} for split in SPLITS]
    assert sum(map(len, readers)) == len(set.union(*readers)) == 30 + 3 + 3


def test_stage_1_reads_the_slots(workspace: Path) -> None:
    task = manifest("audio_snips", workspace)
    for split, count in zip(SPLITS, (124, 28, 38)):
        texts = read_back(task, split)
        assert len(texts) == count
        assert {name.split("-")[0] for name in texts} <= SLOT_VOICES[split].keys()
        for text in texts.values():
            for name, value in text.slots:
                assert value in {known.upper() for known in SLOT_VALUES[name]}
    command = slot_commands("PlayMusic", "listen to {artist}")[1]
    assert command == ("listen to the Beatles", "O O B-artist I-artist PlayMusic")
    table = (task.root / "all.iob.snips.txt").read_text().splitlines()
    assert any(
        line.endswith(" BOS listen to the Beatles EOS\tO O O B-artist I-artist PlayMusic")
        for line in table
    )


def test_every_variant_is_heard_in_one_split_only() -> None:
    by_split = speakers(seed=1)
    assert by_split != speakers(seed=2)
    heard = [{speaker.voice.split("+")[1] for speaker in by_split[split]} for split in SPLITS]
    assert sum(map(len, heard)) == len(variants()) and set.union(*heard) == set(variants())
    assert not LEFT_OUT & set(variants())
    snips = [variant for voices in SLOT_VOICES.values() for variant in voices.values()]
    assert len(set(snips)) == len(snips) == 16 and set(snips) <= set(variants())
