"""LibriSpeech and Audio SNIPS: texts become labels that can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from preprocess.actions.manifest import read_manifest
from preprocess.audio_snips.preprocessor import labels_of
from preprocess.librispeech.preprocessor import CHARACTERS
from preprocess.preprocessor import Preprocessor
from tests.preprocess import corpora
from tests.preprocess.tasks import all_actions, preprocessor
from ulm_prompt.scoring.sequence_scores import Label, Text, read_text


def made(name: str, workspace: Path, **corpus: object) -> Preprocessor:
    """Return the task, and write its corpus into the folder that its config names."""
    getattr(corpora, name)(workspace / "corpora" / name, **corpus)
    return preprocessor(name, workspace)


def read_back(task: Preprocessor, split: str) -> dict[str, Text]:
    """Return utterance -> text, from the labels in the manifest and labels.json."""
    names = json.loads((task.manifest / "labels.json").read_text())
    _, entries = read_manifest(task.manifest / f"{split}.tsv")
    return {
        Path(entry.path).stem: read_text(
            Label(names[label]["slot"], names[label]["name"]) for label in entry.labels.split()
        )
        for entry in entries
    }


def test_librispeech_end_to_end(tmp_path: Path) -> None:
    """After every action, the labels of the rows spell the transcripts."""
    task = made("librispeech", tmp_path)
    all_actions(task)
    names = json.loads((task.units / "labels.json").read_text())
    assert [entry["name"] for entry in names.values()] == sorted(set("THE CAT'S HAT A BAD CHEST"
                                                                     "HE HAD IT"))  # fmt: skip
    assert {entry["slot"] for entry in names.values()} == {"character"}
    for split, folder in zip(SPLITS, corpora.LIBRISPEECH):
        rows = list(read_rows(task.units / split))
        spelled = ["".join(names[label]["name"] for label in row.labels.split()) for row in rows]
        assert spelled == corpora.LIBRISPEECH[folder]
        assert all((task.root / row.file).suffix == ".flac" for row in rows)
    assert [row.file for row in read_rows(task.units / "train")] == [
        "train-clean-100/19/198/19-198-0000.flac",
        "train-clean-100/19/198/19-198-0001.flac",
        "train-clean-100/19/199/19-199-0000.flac",
    ]


def test_audio_snips_end_to_end(tmp_path: Path) -> None:
    """Characters are numbered first, then slot types. A slot type is on both sides of a value."""
    task = made("audio_snips", tmp_path)
    all_actions(task)
    names = json.loads((task.units / "labels.json").read_text())
    labels = [(entry["slot"], entry["name"]) for entry in names.values()]
    characters = sorted(set("PLAY DRAKE RATE THE NEW BOOK"))
    types = [("slot_type", "artist"), ("slot_type", "object_name")]
    assert labels == [("character", character) for character in characters] + types
    (row,) = read_rows(task.units / "test")
    spelled = [names[label]["name"] for label in row.labels.split()]
    assert spelled == [*"RATE A ", "object_name", *"BOOK", "object_name"]
    assert read_back(task, "train") == {
        "Ivy-snips-train-0": Text("PLAY DRAKE", (("artist", "DRAKE"),)),
        "Joey-snips-train-1": Text("RATE THE NEW BOOK", (("object_name", "NEW BOOK"),)),
    }


def test_audio_snips_takes_only_a_splits_speakers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts recordings of other speakers, and lines without a recording."""
    stray = (("Emma-snips-train-7", "play", "O", "PlayMusic"),
             ("Nobody-snips-test-3", "play", "O", "PlayMusic"))  # fmt: skip
    more = "Ivy-snips-train-9 BOS {} EOS\tO O PlayMusic\n"
    lines = (*corpora.AUDIO_SNIPS, *stray)
    task = made("audio_snips", tmp_path, lines=lines, more=more.format("play"))
    task.generate_manifest()
    assert list(read_back(task, "train")) == ["Ivy-snips-train-0", "Joey-snips-train-1"]
    assert list(read_back(task, "test")) == ["Emma-snips-test-0"]
    printed = capsys.readouterr().out
    assert "train: 1 recordings of other voices left out" in printed
    assert "train: 1 lines of all.iob.snips.txt without a recording (Ivy-snips-train-9)" in printed
    (task.root / "all.iob.snips.txt").open("a").write(more.format("stop"))
    with pytest.raises(UserError, match=r"line 8: Ivy-snips-train-9 has another text in an earl"):
        preprocessor("audio_snips", tmp_path).generate_manifest()


def test_audio_snips_text_is_normalised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neighbouring slots, an I without a B, accents, apostrophes. Other characters are dropped, and
    a line counts them.
    """
    words = "play Beyoncé’s c'est ! la vie 50 Drake the rest"
    tags = "O B-artist B-object_name O I-object_name I-object_name B-artist B-artist I-artist O"
    line = ("Ivy-snips-train-9", words, tags, "PlayMusic")
    task = made("audio_snips", tmp_path, lines=(*corpora.AUDIO_SNIPS, line))
    task.generate_manifest()
    text = read_back(task, "train")["Ivy-snips-train-9"]
    assert text.words == "PLAY BEYONCE'S C'EST LA VIE DRAKE THE REST"
    slots = (("artist", "BEYONCE'S"), ("object_name", "C'EST"), ("object_name", "LA VIE"),
             ("artist", "DRAKE THE"))  # fmt: skip
    assert text.slots == slots
    assert "3 characters left out ('!' 1 '5' 1 '0' 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        ("train-clean-100", "ROOM 5", r"19-198\.trans\.txt, line 1: '5' in 'ROOM 5'"),
        ("train-clean-100", "small", r"'s' in 'small'; expected capital letters"),
        ("train-clean-100", "", r"line 1: no text"),
        ("test-clean", "A ZEBRA", r"21-198-0000\.flac: character 'Z' never occurs in the train"),
        (None, "x BOS a b EOS\tO O PlayMusic\n", r"line 5: expected '<utterance> BOS words EOS'"),
        (None, "x a EOS\tO O PlayMusic\n", r"line 5: expected"),
        (None, "x BOS a EOS O O PlayMusic\n", r"line 5: expected"),
        (None, "x BOS a EOS\tO B-album PlayMusic\n", r"line 5: slot type album is not in slots"),
        (None, "x BOS 7 EOS\tO O PlayMusic\n", r"line 5: no text"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path, folder, text, message) -> None:
    """A text in a folder of LibriSpeech, or a line of Audio SNIPS."""
    if folder:
        splits = {**corpora.LIBRISPEECH, folder: [text]}
        task = made("librispeech", tmp_path, splits=splits)
    else:
        task = made("audio_snips", tmp_path, more=text)
    with pytest.raises(UserError, match=message):
        task.generate_manifest()
    assert not task.manifest.exists()


def test_missing_audio_snips_files(tmp_path: Path) -> None:
    task = made("audio_snips", tmp_path)
    wav = task.root / "test" / "Emma" / "Emma-snips-test-0.wav"
    wav.rename(wav.with_name("Emma-snips-test-1.wav"))
    with pytest.raises(UserError, match=r"no line for Emma-snips-test-1"):
        task.generate_manifest()
    wav.with_name("Emma-snips-test-1.wav").unlink()
    again = preprocessor("audio_snips", tmp_path)
    with pytest.raises(UserError, match=r"test: no \.wav of Brian, Emma, Raveena, Russell"):
        again.generate_manifest()
    (task.root / "slots.txt").unlink()
    with pytest.raises(UserError, match=r"slots\.txt: not found; datarc\.root_path"):
        preprocessor("audio_snips", tmp_path).generate_manifest()


words = st.lists(
    st.text(CHARACTERS.replace(" ", ""), min_size=1, max_size=5), min_size=1, max_size=3
)
pieces = st.lists(
    st.tuples(st.sampled_from(["", "artist", "city"]), words.map(" ".join)), min_size=1
)


@given(pieces)
def test_texts_come_back_from_their_labels(text_pieces: list[tuple[str, str]]) -> None:
    """Any words and slots, also several slots of one type in a row."""
    labels = labels_of(text_pieces)
    text = read_text(Label("slot_type" if len(name) > 1 else "character", name) for name in labels)
    assert text.words == " ".join(value for _, value in text_pieces)
    assert text.slots == tuple(piece for piece in text_pieces if piece[0])
