"""Corpora with other files than audio, in other spellings; the two layouts of Speech Commands."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import REPOSITORY
from preprocess.actions.manifest import read_manifest
from preprocess.preprocessor import Preprocessor
from preprocess.speech_commands.preprocessor import TEST_FOLDER, TRAIN_FOLDER, WORDS, which_split
from tests.preprocess import corpora
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor

PUBLISHED = REPOSITORY.parent / "shared" / "data" / "units" / "hubert100" / "speech_commands"
MAKERS = {
    "speech_commands": corpora.speech_commands,
    "librispeech": corpora.librispeech,
    "audio_snips": corpora.audio_snips,
}


def files(task: Preprocessor) -> list[list[str]]:
    """Return the path of each row, by split."""
    manifests = (read_manifest(task.manifest / f"{split}.tsv")[1] for split in SPLITS)
    return [[entry.path for entry in entries] for entries in manifests]


@pytest.fixture
def keywords(tmp_path: Path) -> Path:
    return corpora.speech_commands(tmp_path / "corpora" / "speech_commands")


@pytest.fixture
def v002(tmp_path: Path) -> Path:
    return corpora.speech_commands_v002(tmp_path / "corpora" / "speech_commands")


@pytest.mark.parametrize("downstream", MAKERS)
def test_system_files_and_capital_suffixes(tmp_path, capsys, downstream):
    """System files do not change the rows; a line counts them. ``.WAV`` is audio."""
    root = MAKERS[downstream](tmp_path / "corpora" / downstream)
    task = preprocessor(downstream, tmp_path)
    task.generate_manifest()
    expected = files(task)
    assert "skipped" not in capsys.readouterr().out
    folders = {path.parent for path in root.rglob("*.*") if path.suffix in (".wav", ".flac")}
    for folder in (*folders, *{folder.parent for folder in folders}):
        clip = next(root.rglob("*.[wf][al]*"))
        for name in (".DS_Store", "Thumbs.db"):
            (folder / name).write_text("x")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (folder / name).mkdir()
            shutil.copy(clip, folder / name / f"Ivy-snips-train-0{clip.suffix}")
        (folder / f"._{clip.name}").write_bytes(b"x")
    preprocessor(downstream, tmp_path).generate_manifest()
    assert files(task) == expected
    printed = capsys.readouterr().out
    assert "skipped hidden or system files: " in printed and ".DS_Store, " in printed
    for path in {root / path for paths in expected for path in paths}:
        path.rename(path.with_suffix(path.suffix.upper()))
    preprocessor(downstream, tmp_path).generate_manifest()
    capitals = {Path(path).suffix for paths in files(task) for path in paths}
    assert {len(paths) for paths in expected} == {len(paths) for paths in files(task)}
    assert capitals in ({".WAV"}, {".FLAC"})


def test_speech_commands_with_other_folders(keywords, tmp_path, capsys):
    shutil.copytree(keywords / TRAIN_FOLDER / "yes", keywords / TRAIN_FOLDER / "my recordings")
    shutil.rmtree(keywords / TEST_FOLDER / "go")
    (keywords / TEST_FOLDER / "yes" / "notes.txt").touch()
    preprocessor("speech_commands", tmp_path).generate_manifest()
    printed = capsys.readouterr().out
    assert "read as _unknown_: my recordings" in printed
    assert "warning, test has no folder of go" in printed
    assert "skipped files of other types: 1 (notes.txt)" in printed
    for folder in ("yes", "_background_noise_"):
        for path in (keywords / TRAIN_FOLDER / folder).iterdir():
            path.unlink()
        with pytest.raises(UserError, match=folder):
            preprocessor("speech_commands", tmp_path).generate_manifest()


def test_speech_commands_each_file_once(keywords, tmp_path):
    task = preprocessor("speech_commands", tmp_path, "datarc.train=each_once")
    task.generate_manifest()
    _, entries = read_manifest(task.manifest / "train.tsv")
    assert Counter(entry.labels for entry in entries) == dict.fromkeys(map(str, range(12)), 2)
    for entry in (entry for entry in entries if entry.labels == "11"):
        assert entry.path.endswith("_background_noise_/rain.wav")
        assert entry.file == f"temp/_background_noise_/rain-{entry.start}.wav"
        assert entry.frames == 16_000 and 0 <= entry.start <= 32_000


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published units in ../shared/data")
def test_published_validation_rows_are_validation_files():
    names = {row.file for row in read_rows(PUBLISHED / "valid")}
    spoken = [name for name in names if not name.startswith("temp/")]
    assert len(names) == 3370 and len(spoken) > 2500
    assert {which_split(Path(name).name) for name in spoken} == {"valid"}


def test_speech_commands_v002_by_its_lists(v002, tmp_path, capsys):
    task = preprocessor("speech_commands", tmp_path, "datarc.train=each_once")
    task.generate_manifest()
    train, valid, test = files(task)
    assert {Path(path).name for path in train} == {"a_nohash_2.wav", "a_nohash_3.wav", "rain.wav"}
    assert {Path(path).name for path in valid} <= {"a_nohash_0.wav", "rain.wav"}
    assert {Path(path).name for path in test} == {"a_nohash_1.wav", "rain.wav"}
    _, entries = read_manifest(task.manifest / "test.tsv")
    labels = Counter(int(entry.labels) for entry in entries)
    assert labels == {**dict.fromkeys(range(10), 1), 10: 25, 11: 1}
    printed = capsys.readouterr().out
    assert "1 rows of _silence_ drawn from background noise; 25 files are _unknown_" in printed
    preprocessor("speech_commands", tmp_path, "datarc.train=each_once").generate_manifest()
    assert files(task) == [train, valid, test]


def test_speech_commands_v002_in_35_classes(v002, tmp_path):
    task = preprocessor("speech_commands", tmp_path, "datarc.classes=35")
    task.generate_manifest()
    assert len(files(task)[0]) == 70 and len(files(task)[2]) == 35
    names = json.loads((task.manifest / "labels.json").read_text())
    assert [entry["name"] for entry in names.values()] == sorted(WORDS)
    assert not any("noise" in path for paths in files(task) for path in paths)


@pytest.mark.parametrize(
    ("file", "line", "classes", "message"),
    [
        ("testing_list.txt", "yes/gone.wav", 35, r"1 audio file.*yes/gone\.wav \(does not exist\)"),
        ("sheep/a_nohash_0.wav", "", 35, "sheep: not one of the 35 words"),
        ("validation_list.txt", None, 35, r"validation_list\.txt: not found"),
        ("README.md", "", 36, r"datarc\.classes=36: expected 12, or 35"),
    ],
)
def test_unusable_speech_commands_v002(v002, tmp_path, file, line, classes, message):
    if line is None:
        (v002 / file).unlink()
    else:
        (v002 / file).parent.mkdir(exist_ok=True)
        with open(v002 / file, "a") as handle:
            handle.write(f"{line}\n")
    with pytest.raises(UserError, match=message):
        preprocessor("speech_commands", tmp_path, f"datarc.classes={classes}").generate_manifest()


def test_librispeech_of_several_folders(tmp_path, capsys):
    """Rows follow the order of the list. A line counts recordings without a transcript."""
    texts = {"train-a": ["THE CAT"], "train-b": ["A HAT", "THE BAT"], "dev": ["A CAT"],
             "test": ["A BAT"]}  # fmt: skip
    root = corpora.librispeech(tmp_path / "corpora" / "librispeech", texts)
    write(root / "train-b" / "20" / "198" / "20-198-0009.flac", tone(0.5, 90))
    settings = ("datarc.train=[train-b,train-a]", "datarc.valid=dev", "datarc.test=[test]")
    task = preprocessor("librispeech", tmp_path, *settings)
    task.generate_manifest()
    assert [path.split("/")[0] for path in files(task)[0]] == ["train-b", "train-b", "train-a"]
    printed = capsys.readouterr().out
    assert "train-b: 1 recordings left out, without a text (20-198-0009.flac)" in printed
    for value in ("[]", "[a,a]", "7"):
        task = preprocessor("librispeech", tmp_path, f"datarc.train={value}")
        with pytest.raises(UserError, match=r"datarc\.train=.*: expected a name or a list"):
            task.generate_manifest()
