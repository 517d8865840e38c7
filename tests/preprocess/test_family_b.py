"""SpeechPrompt v2's corpora, second half: small ones in the real layouts, from manifest to rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.devices import ranks
from pipeline.errors import UserError
from pipeline.rows import SPLITS
from pipeline.workspace import Workspace
from preprocess.actions.downstreams import load_downstream
from preprocess.actions.manifest import read_manifest
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import runner_flags
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from ulm_prompt.prompt_data.prompt_record import read_record

NEMO = {"train": "training", "valid": "validation", "test": "testing"}


def freesound(root: Path) -> None:
    """A file of each class, pieces of 0.63 s in it."""
    for number, label in enumerate(("speech", "background")):
        write(root / label / "long.wav", tone(3.0, 100 + 200 * number))
        for split, starts in {"train": (0.2, 0.6, 1.0), "valid": (1.4,), "test": (1.8,)}.items():
            common = {"audio_filepath": f"{label}/long.wav", "label": label, "text": "_"}
            pieces = [{**common, "duration": 0.63, "offset": start} for start in starts]
            path = root / f"balanced_{label}_{NEMO[split]}_manifest.json"
            path.write_text("".join(json.dumps(piece) + "\n" for piece in pieces))


def easycall(root: Path) -> None:
    for number, speaker in enumerate(("fc01", "f01", "f11", "m01", "m05", "m11")):
        for take in range(4):
            path = root / speaker / f"session_{take % 2}" / f"{speaker}_{take}_Sali.wav"
            write(path, tone(0.3, 90 + 60 * number + take))
    write(root / "zz09" / "unknown.wav", tone(0.3, 80))


def mustard(root: Path) -> None:
    table = {}
    for number in range(12):
        key = f"1_{number}"
        table[key] = {"utterance": "Oh,\nsure.", "speaker": "A", "sarcasm": number % 2 == 0}
        write(root / "utterances_final" / f"{key}.wav", tone(0.3, 90 + 30 * number))
    (root / "sarcasm_data.json").write_text(json.dumps(table, indent=2))


def mustard_pp(root: Path) -> None:
    lines = ["SCENE,KEY,SENTENCE,SPEAKER,Sarcasm,Valence"]
    for number in range(12):
        key = f"1_{number}"
        lines.append(f'{key},{key}_c_00,"Well,\nI am sure",A,,')
        lines.append(f'{key},{key}_u,"Oh, ""sure""",B,{float(number % 2)},5.0')
        write(root / "final_utterance_videos" / f"{key}_u.wav", tone(0.3, 90 + 30 * number))
    (root / "mustard++_text.csv").write_text("\n".join(lines) + "\n")


def iemocap(root: Path) -> None:
    for session in (1, 2, 5):
        dialogue = f"Ses0{session}F_script01_1"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, emotion in enumerate(("neu", "hap", "exc", "sad", "ang", "fru", "neu", "xxx")):
            name = f"{dialogue}_F{number:03}"
            lines += [f"[{number}.29 - {number}.98]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]",
                      "C-E2:\tNeutral;\t()"]  # fmt: skip
            folder = root / f"Session{session}" / "sentences" / "wav" / dialogue
            write(folder / f"{name}.wav", tone(0.3, 90 + 20 * number + session))
        path = root / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines))


def voxceleb1(root: Path) -> None:
    """Four speakers with five videos each, the last two of them in the archives' folders."""
    lines, meta = [], ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
    for number in range(4):
        speaker = f"id1000{number}"
        meta.append(f"{speaker}\tName\t{'mf'[number % 2]}\tIreland\tdev")
        for video, split in enumerate((1, 1, 1, 2, 3)):
            path = f"{speaker}/v{video}/00001.wav"
            folder = "wav" if number < 2 else "dev/wav" if number == 2 else "test/wav"
            write(root / folder / path, tone(0.3, 90 + 80 * number + video))
            lines.append(f"{split} {path}")
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n")
    (root / "vox1_meta.csv").write_text("\n".join(meta) + "\n")


CORPORA = {  # the corpus's writer, its splits' rows, its classes in train
    "freesound": (freesound, (6, 2, 2), {"speech": 3, "background": 3}),
    "easycall": (easycall, (12, 6, 6), {"0": 2, "1": 2, "2": 2, "3": 2, "4": 2, "5": 2}),
    "mustard": (mustard, (8, 2, 2), {"sarcastic": 4, "sincere": 4}),
    "mustard_pp": (mustard_pp, (8, 2, 2), {"sarcastic": 4, "sincere": 4}),
    "iemocap": (iemocap, (11, 1, 6), {"neutral": 3, "happy": 4, "sad": 2, "angry": 2}),
    "voxceleb1": (voxceleb1, (12, 4, 4), {f"id1000{n}": 3 for n in range(4)}),
    "voxceleb1_gender": (voxceleb1, (12, 4, 4), {"m": 6, "f": 6}),
}


def task(name: str, workspace: Path, *overrides: str) -> Preprocessor:
    """The downstream with its own config, mfcc units and 8 clusters."""
    small = ("fairseqrc.km_clusters=8", "fairseqrc.km_starts=1", *overrides)
    flags = "--unit_model", "mfcc100", "--workspace", workspace, "--set", *small
    return load_downstream(name, runner_flags(*flags))


def made(name: str, workspace: Path, *overrides: str) -> Preprocessor:
    """The same, its corpus written where the config looks."""
    downstream = task(name, workspace, *overrides)
    CORPORA[name][0](downstream.root)
    return downstream


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_in_its_layout_becomes_rows(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    downstream = made(name, tmp_path)
    downstream.generate_manifest()
    sizes = tuple(len(read_manifest(downstream.manifest / f"{s}.tsv")[1]) for s in SPLITS)
    assert sizes == CORPORA[name][1]
    assert Counter(u.labels[0] for u in downstream.utterances("train")) == CORPORA[name][2]
    if "train" in downstream.config.datarc.expected:
        assert f"train {sizes[0]} (expected {downstream.config.datarc.expected['train']:,})" in (
            capsys.readouterr().out
        )
    quantise(downstream)
    for split, size in zip(SPLITS, sizes):
        assert len((downstream.units / split).read_text().splitlines()) == size


def quantise(downstream: Preprocessor) -> None:
    learn_kmeans([downstream])
    Quantizing(downstream).run(ranks(), False)
    downstream.postprocess()


def test_speakers_go_from_their_layout_to_an_accuracy(tmp_path: Path) -> None:
    """By the task's own recipe, v2: a row of the map for each speaker."""
    downstream = made("voxceleb1", tmp_path)
    downstream.generate_manifest()
    quantise(downstream)
    tiny.write_lm(Workspace(tmp_path).lm("mfcc100"))
    data_stages(tmp_path)
    said = call("train", tmp_path, "--date", "a", "--set", "max_update=2", "max_epoch=1")
    call("sample", tmp_path, "--model_date", "a", "--sample_date", "a")
    card = read_record(tmp_path / "checkpoints" / "SPEAKER_mfcc100_checkpoints_a")
    assert card.recipe == "v2" and card.prefix_prompt_length == 5 and len(card.labels) == 4
    assert card.trained_parameters == 5 * 32 * (1 + 2 * 3) + 32 + 4 * 104, said
    assert re.search(
        r"utterances +4\n +accuracy +", call("cal_acc", tmp_path, "--sample_date", "a")
    )


def test_pieces_sessions_and_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    piece = made("freesound", tmp_path).utterances("test")[0]
    assert (piece.path, piece.start, piece.frames) == ("speech/long.wav", 28_800, 10_080)
    made("easycall", tmp_path).utterances("train")
    assert (
        "1 rows left out, their labels are not in datarc.names ('zz09')" in capsys.readouterr().out
    )
    for number in (5, 2):
        where = ["datarc.splits={Session1: , Session2: , Session5: }".replace(
            f"Session{number}: ", f"Session{number}: test")]  # fmt: skip
        test = (made if number == 5 else task)("iemocap", tmp_path, *where)
        sessions = {u.path.partition("/")[0] for u in test.utterances("test")}
        assert sessions == {f"Session{number}"}
    said = capsys.readouterr().out
    assert "6 rows left out, their labels are not in datarc.names ('fru', 'xxx')" in said
    made("mustard_pp", tmp_path).utterances("train")
    assert "12 rows of the context left out" in capsys.readouterr().out


def _rewritten(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        (root / name).write_text(change((root / name).read_text()))

    return rewrite


WRONG = [
    ("freesound", _rewritten("balanced_speech_testing_manifest.json", lambda t: t.replace(
        "audio_filepath", "file")), r"testing_manifest\.json, line 1: .*'audio_filepath'"),
    ("freesound", _rewritten("balanced_speech_testing_manifest.json", lambda t: t.replace(
        "0.63", "63")), r"line 1: .* lasts 3\.000 s"),
    ("easycall", lambda root: (root / "fc01").rename(root.parent / "fc01"), None),
    ("mustard", _rewritten("sarcasm_data.json", lambda t: t.replace("sarcasm", "irony")),
     r"sarcasm_data\.json, entry 1: expected an object with .*'sarcasm'"),
    ("mustard_pp", _rewritten("mustard++_text.csv", lambda t: t.replace("Sarcasm", "Irony")),
     r"expected the columns KEY, Sarcasm, found SCENE, KEY"),
    ("mustard_pp", lambda root: (root / "mustard++_text.csv").unlink(), r"No such file"),
    ("iemocap", lambda root: [p.unlink() for p in root.glob("*/dialog/*/*.txt")],
     r"no utterance in Session\*/dialog.* expected IEMOCAP's lines"),
    ("voxceleb1", _rewritten("iden_split.txt", lambda t: t.replace("1 id", "9 id")),
     r"iden_split\.txt, line 1: split '9'; expected 1, 2, 3"),
    ("voxceleb1", _rewritten("iden_split.txt", lambda t: t.replace(" ", "\t")),
     r"iden_split\.txt, line 1: 1 fields"),
    ("voxceleb1_gender", _rewritten("vox1_meta.csv", lambda t: t.replace("\t", ",")),
     r"vox1_meta\.csv: expected tabs and the columns 'VoxCeleb1 ID', 'Gender'"),
    ("voxceleb1_gender", _rewritten("vox1_meta.csv", lambda t: t.replace("id10003", "id7")),
     r"vox1_meta\.csv has no speaker id10003"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_the_wrong_layout_is_named(
    name: str, change: Callable[[Path], object], message: str | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    downstream = made(name, tmp_path)
    change(downstream.root)
    if message is None:  # a smaller corpus is said, and no error
        downstream.generate_manifest()
        assert "classes 5 (expected 6)" in capsys.readouterr().out
        return
    with pytest.raises(UserError) as error:
        downstream.generate_manifest()
    assert re.search(message, str(error.value)), error.value
