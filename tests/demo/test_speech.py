"""The demo's corpora: same seed, same bytes; voices apart; read by stage 1 as they lie."""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from demo.texts import commands
from demo.voices import speakers
from pipeline.rows import SPLITS
from pipeline.workspace import REPOSITORY
from preprocess.speech_commands.corpus import which_split


def speak(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "demo" / "speech.py"), "--out", str(out)]
    sizes = ["--keywords", "24", "240", "12", "--commands", "62", "8", "8"]
    return subprocess.run([*command, *sizes, *arguments], capture_output=True, text=True)


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


def test_same_bytes_with_another_number_of_workers(spoken, tmp_path):
    assert speak(tmp_path, "--workers", "1").returncode == 0
    assert digests(tmp_path) == digests(spoken)


def test_another_seed_speaks_otherwise(spoken, tmp_path):
    assert speak(tmp_path, "--seed", "2").returncode == 0
    assert digests(tmp_path).keys() != digests(spoken).keys()


def test_what_is_there_is_not_overwritten(spoken):
    before = digests(spoken)
    result = speak(spoken)
    assert result.returncode == 2 and "is there already" in result.stderr
    assert digests(spoken) == before


@pytest.mark.parametrize("downstream", ["speech_commands", "fluent_commands"])
def test_stage_1_reads_it_with_its_defaults(spoken, tmp_path, downstream):
    (tmp_path / "corpora").symlink_to(spoken)
    runner = [sys.executable, str(REPOSITORY / "preprocess" / "runner.py")]
    arguments = ["--downstream", downstream, "--action", "generate_manifest"]
    result = subprocess.run(
        [*runner, *arguments, "--workspace", str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_every_voice_is_heard_in_one_split_only():
    by_split = speakers(seed=1)
    variants = [{voice.voice.split("+")[1] for voice in by_split[split]} for split in SPLITS]
    assert all(variants) and sum(map(len, variants)) == len(set.union(*variants))
    for split, wanted in zip(SPLITS, ("train", "valid", None), strict=True):
        for voice in by_split[split]:
            assert which_split(f"{voice.keyword_id}_nohash_0.wav") == wanted


def test_commands_cover_the_label_scheme(spoken):
    triples = {command[1:] for command in commands()}
    assert len(triples) == 31
    assert [len({triple[slot] for triple in triples}) for slot in range(3)] == [6, 14, 4]
    with open(spoken / "fluent_commands" / "data" / "train_data.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {(row["action"], row["object"], row["location"]) for row in rows} == triples
