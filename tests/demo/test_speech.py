"""The demo's commands: same seed, same bytes; voices apart; read by stage 1 as they are."""

import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.speaking.texts import intent_commands
from demo.speaking.voices import LEFT_OUT, speakers, variants
from pipeline.rows import SPLITS
from pipeline.workspace import REPOSITORY


def speak(out: Path, *arguments: str, fresh_memory: int = 0) -> subprocess.CompletedProcess[str]:
    """Speak a small corpus. ``fresh_memory``: the byte that glibc fills new memory with, or 0."""
    command = [sys.executable, str(REPOSITORY / "demo" / "speech.py"), "--out", str(out)]
    sizes = ["--commands", "124", "28", "38"]  # an utterance of every speaker
    environment = os.environ | {"MALLOC_PERTURB_": str(fresh_memory)}
    return subprocess.run(
        [*command, *sizes, *arguments], capture_output=True, text=True, env=environment
    )


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("spoken")
    result = speak(out, "--workers", "2")
    assert result.returncode == 0, result.stderr
    return out


def test_same_bytes_with_other_workers_and_memory(spoken, tmp_path):
    """Of every variant: those that read unset memory are left out."""
    assert speak(tmp_path, "--workers", "1", fresh_memory=170).returncode == 0
    assert digests(tmp_path) == digests(spoken)


def test_another_seed_speaks_otherwise(spoken, tmp_path):
    assert speak(tmp_path, "--seed", "2").returncode == 0
    assert digests(tmp_path).keys() != digests(spoken).keys()


def test_what_is_there_is_not_overwritten(spoken):
    before = digests(spoken)
    result = speak(spoken)
    assert result.returncode == 2 and "is there already" in result.stderr
    assert digests(spoken) == before


def test_stage_1_reads_it_with_its_defaults(spoken, tmp_path):
    (tmp_path / "corpora").symlink_to(spoken)
    runner = [sys.executable, str(REPOSITORY / "preprocess" / "runner.py")]
    arguments = ["--downstream", "fluent_commands", "--action", "generate_manifest"]
    result = subprocess.run(
        [*runner, *arguments, "--workspace", str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_every_variant_is_heard_in_one_split_only():
    by_split = speakers(seed=1)
    heard = [{speaker.voice.split("+")[1] for speaker in by_split[split]} for split in SPLITS]
    assert sum(map(len, heard)) == len(variants()) and set.union(*heard) == set(variants())
    assert len(variants()) == 104 - len(LEFT_OUT) and not LEFT_OUT & set(variants())


def test_commands_cover_the_label_scheme(spoken):
    triples = {command[1:] for command in intent_commands()}
    assert len(triples) == 31
    assert [len({triple[slot] for triple in triples}) for slot in range(3)] == [6, 14, 4]
    with open(spoken / "fluent_commands" / "data" / "train_data.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {(row["action"], row["object"], row["location"]) for row in rows} == triples
