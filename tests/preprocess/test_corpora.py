"""What people's corpora hold beside audio, how they spell it, and Speech Commands v0.02."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.actions.manifest import read_manifest
from preprocess.preprocessor import Preprocessor
from preprocess.speech_commands.preprocessor import TEST_FOLDER, TRAIN_FOLDER, WORDS
from tests.preprocess import corpora
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor

MAKERS = {
    "speech_commands": corpora.speech_commands,
    "librispeech": corpora.librispeech,
    "audio_snips": corpora.audio_snips,
}


def files(task: Preprocessor) -> list[list[str]]:
    """The path of each row, by split."""
    return [
        [entry.path for entry in read_manifest(task.manifest / f"{split}.tsv")[1]]
        for split in SPLITS
    ]


@pytest.mark.parametrize("downstream", MAKERS)
def test_what_systems_leave_is_passed_over(tmp_path, capsys, downstream):
    """The same rows as without, and a line that counts it."""
    root = MAKERS[downstream](tmp_path / "corpora" / downstream)
    task = preprocessor(downstream, tmp_path)
    task.generate_manifest()
    expected = files(task)
    assert "passed over" not in capsys.readouterr().out
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
    said = capsys.readouterr().out
    assert "passed over, that systems leave: " in said and ".DS_Store, " in said


def test_capital_suffixes_are_read(tmp_path, capsys):
    """All 22 keyword clips of test, a transcript's audio, a voice's wav."""
    for name, maker in MAKERS.items():
        root = maker(tmp_path / "corpora" / name)
        for number, path in enumerate(sorted(root.rglob("*.*"))):
            if path.suffix in (".wav", ".flac") and number % 2:
                path.rename(path.with_suffix(path.suffix.upper()))
        task = preprocessor(name, tmp_path)
        task.generate_manifest()
        suffixes = {Path(path).suffix for paths in files(task) for path in paths}
        assert len(suffixes) == 2, name
        if name == "speech_commands":
            assert len(files(task)[2]) == 23
            (task.root / TEST_FOLDER / "yes" / "notes.txt").touch()
            preprocessor(name, tmp_path).generate_manifest()
            assert "passed over, of another kind: 1 (notes.txt)" in capsys.readouterr().out


def test_folders_that_are_no_words_are_told(tmp_path, capsys):
    root = corpora.speech_commands(tmp_path / "corpora" / "speech_commands")
    shutil.copytree(root / TRAIN_FOLDER / "yes", root / TRAIN_FOLDER / "my recordings")
    preprocessor("speech_commands", tmp_path).generate_manifest()
    assert "read as _unknown_: my recordings" in capsys.readouterr().out
    shutil.rmtree(root / TEST_FOLDER / "go")
    preprocessor("speech_commands", tmp_path).generate_manifest()
    assert "warning, test has no folder of go" in capsys.readouterr().out


@pytest.fixture
def v002(tmp_path: Path) -> Path:
    """Speech Commands v0.02 as it unpacks: every word twice for train, once for the lists."""
    root = tmp_path / "corpora" / "speech_commands"
    for number, word in enumerate(WORDS):
        for take in range(4):
            write(root / word / f"a_nohash_{take}.wav", tone(1.0, 100 + 9 * number + take))
    write(root / "_background_noise_" / "rain.wav", tone(3.0, 50))
    for take, name in enumerate(("validation_list.txt", "testing_list.txt")):
        (root / name).write_text("".join(f"{word}/a_nohash_{take}.wav\n" for word in WORDS))
    (root / "README.md").touch()
    return tmp_path


def test_speech_commands_v002_by_its_lists(v002, capsys):
    task = preprocessor("speech_commands", v002, "datarc.train=each_once")
    task.generate_manifest()
    train, valid, test = files(task)
    assert {Path(path).name for path in train} == {"a_nohash_2.wav", "a_nohash_3.wav", "rain.wav"}
    assert {Path(path).name for path in valid} <= {"a_nohash_0.wav", "rain.wav"}
    assert {Path(path).name for path in test} == {"a_nohash_1.wav", "rain.wav"}
    _, entries = read_manifest(task.manifest / "test.tsv")
    labels = Counter(int(entry.labels) for entry in entries)
    assert labels == {**dict.fromkeys(range(10), 1), 10: 25, 11: 1}
    said = capsys.readouterr().out
    assert "test: 1 rows of _silence_ drawn from background noise; 25 files are _unknown_" in said
    preprocessor("speech_commands", v002, "datarc.train=each_once").generate_manifest()
    assert files(task) == [train, valid, test]


def test_speech_commands_v002_in_35_classes(v002):
    task = preprocessor("speech_commands", v002, "datarc.classes=35")
    task.generate_manifest()
    assert len(files(task)[0]) == 70 and len(files(task)[2]) == 35
    names = json.loads((task.manifest / "labels.json").read_text())
    assert [entry["name"] for entry in names.values()] == sorted(WORDS)
    assert not any("noise" in path for paths in files(task) for path in paths)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("testing_list.txt", "yes/gone.wav", r"1 audio file.*yes/gone\.wav \(does not exist\)"),
        ("sheep/a_nohash_0.wav", "", "sheep: not one of the 35 words"),
        ("validation_list.txt", None, r"validation_list\.txt: not found"),
        (None, None, r"datarc\.classes=36: expected 12, or 35"),
    ],
)
def test_speech_commands_v002_that_cannot_be(v002, file, line, message):
    root = v002 / "corpora" / "speech_commands"
    settings = [f"datarc.classes={35 if file else 36}"]
    if file and line is None:
        (root / file).unlink()
    elif file:
        (root / file).parent.mkdir(exist_ok=True)
        with open(root / file, "a") as handle:
            handle.write(f"{line}\n")
    with pytest.raises(UserError, match=message):
        preprocessor("speech_commands", v002, *settings).generate_manifest()


def test_librispeech_of_several_folders(tmp_path, capsys):
    """In the order of the list; a recording that no transcript has is told."""
    texts = {"train-a": ["THE CAT"], "train-b": ["A HAT", "THE BAT"], "dev": ["A CAT"],
             "test": ["A BAT"]}  # fmt: skip
    root = corpora.librispeech(tmp_path / "corpora" / "librispeech", texts)
    write(root / "train-b" / "20" / "198" / "20-198-0009.flac", tone(0.5, 90))
    settings = ("datarc.train=[train-b,train-a]", "datarc.valid=dev", "datarc.test=[test]")
    task = preprocessor("librispeech", tmp_path, *settings)
    task.generate_manifest()
    assert [path.split("/")[0] for path in files(task)[0]] == ["train-b", "train-b", "train-a"]
    said = capsys.readouterr().out
    assert "train-b: 1 recordings left out, without a text (20-198-0009.flac)" in said
    for wrong in ("[]", "[a,a]", "7"):
        task = preprocessor("librispeech", tmp_path, f"datarc.train={wrong}")
        with pytest.raises(UserError, match=r"datarc\.train=.*: expected a name or a list"):
            task.generate_manifest()


def test_audio_snips_counts_what_has_no_partner(tmp_path, capsys):
    more = "Ivy-snips-train-9 BOS play EOS\tO O PlayMusic\n"
    stray = ("Emma-snips-train-7", "play", "O", "PlayMusic")
    lines = (*corpora.AUDIO_SNIPS, stray)
    corpora.audio_snips(tmp_path / "corpora" / "audio_snips", lines, more)
    preprocessor("audio_snips", tmp_path).generate_manifest()
    said = capsys.readouterr().out
    assert "train: 1 recordings of other voices left out" in said
    assert "train: 1 lines of all.iob.snips.txt without a recording (Ivy-snips-train-9)" in said
    again = "Ivy-snips-train-9 BOS stop EOS\tO O PlayMusic\n"
    (tmp_path / "corpora/audio_snips/all.iob.snips.txt").open("a").write(again)
    with pytest.raises(UserError, match=r"line 7: Ivy-snips-train-9 has another text further up"):
        preprocessor("audio_snips", tmp_path).generate_manifest()
