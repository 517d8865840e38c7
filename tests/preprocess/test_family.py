"""The corpora of SpeechPrompt v2: a small corpus in each layout, from audio to accuracy.
tests/preprocess/test_table.py tests the rules that all layouts share.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import Workspace
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from preprocess.speech_commands.preprocessor import KEYWORDS, WORDS
from tests.preprocess.corpora import speech_commands_v002, tone, write
from tests.preprocess.tasks import preprocessor
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.prompt_data.tasks import load_task, task_names


def record(root: Path, names: Iterable[str]) -> list[str]:
    """Write a file of three short tones per name, so that units change within a file."""
    names = list(names)
    for number, name in enumerate(names):
        hertz = (100 + 50 * (number * step % 11) for step in (1, 3, 7))
        write(root / name, np.concatenate([tone(0.06, pitch) for pitch in hertz]))
    return names


def table(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def labelled(path: Path, machine: str, files: Iterable[str], labels: Iterable[str]) -> None:
    """Write a table as SpeechAdvReprogram publishes them: paths start with the author's folder."""
    lines = (f"/work/dodohow1011/{machine}/{file}\t{label}" for file, label in zip(files, labels))
    table(path, "filename\tlabel", *lines)


def grabo(root: Path) -> None:
    record(root, (f"speakers/pp{who}/spchdatadir/recording{command}/Voice_{take}.wav"
                  for who in (2, 10) for command in (1, 36) for take in range(1, 9)))  # fmt: skip


def lithuanian(root: Path) -> None:
    words = {"ne": "ne", "į_viršų": "į_viršų", "du": "unknown"}
    for number, name in enumerate(("train_limit20", "dev_full", "test_full")):
        files = record(root, (f"dataset/{word}/0{number}_nohash_0.wav" for word in words))
        labelled(root / f"{name}.csv", "lt_speech_commands", files, words.values())
    noise = record(root, (f"dataset/_background_noise_/{n}.wav" for n in range(22)))
    labelled(root / "noise_full.csv", "lt_speech_commands", noise, 22 * ["silence"])


def arabic(root: Path) -> None:
    for number, name in enumerate(("train", "dev", "test")):
        files = record(root, (f"commands/D_Delete{number}.wav", f"numbers/7_{number}.wav"))
        labelled(root / f"{name}_full.csv", "AR_SpeechCommands", files, "D7")


def mandarin(root: Path) -> None:
    for name, takes in (("train", range(5)), ("test", range(5, 7))):
        files = record(root, (f"D_SPK{who}/{word}/D_SPK{who}_c ({take}).wav" for who in (1, 3)
                              for word in ("01", "19") for take in takes))  # fmt: skip
        words = (file.split("/")[1] for file in files)
        labelled(root / f"{name}_full.csv", "dysarthria_zh_command", files, words)


def voxforge(root: Path) -> None:
    record(root, (f"{language}/Trunk/Audio/Main/16kHz_16bit/{who}-2010/wav/{language}{n}.wav"
                  for language in ("de", "ru") for who in "ab" for n in range(5)))  # fmt: skip


def asvspoof(root: Path) -> None:
    for name, ending in (("train", "trn"), ("dev", "trl"), ("eval", "trl")):
        names = [f"LA_{name[0].upper()}_{n}" for n in range(6)]
        record(root, (f"ASVspoof2019_LA_{name}/flac/{file}.flac" for file in names))
        lines = (f"LA_0001 {file} - {('-', 'A01')[n % 2]} {('bonafide', 'spoof')[n % 2]}"
                 for n, file in enumerate(names))  # fmt: skip
        folder = root / "ASVspoof2019_LA_cm_protocols"
        table(folder / f"ASVspoof2019.LA.cm.{name}.{ending}.txt", *lines)


def accentdb(root: Path) -> None:
    record(root, (f"{accent}/speaker_0{who}/{accent}_s0{who}_{n:03}.wav"
                  for accent in ("bangla", "welsh") for who in (1, 2)
                  for n in range(10)))  # fmt: skip


def esc50(root: Path) -> None:
    names = [f"{fold}-{n}-A-{target}.wav" for fold in range(1, 6) for target in (0, 49)
             for n in range(2)]  # fmt: skip
    record(root, (f"audio/{name}" for name in names))
    lines = (f"{name},{name[0]},{name.split('-')[3][:-4]},{('dog', 'hand_saw')['49' in name]},"
             f"False,{number},A" for number, name in enumerate(names))  # fmt: skip
    table(root / "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", *lines)


def freesound(root: Path) -> None:
    """Write one file per class, and tables of pieces of 0.63 s."""
    starts = {"training": (0.2, 0.6, 1.0), "validation": (1.4,), "testing": (1.8,)}
    for number, label in enumerate(("speech", "background")):
        write(root / label / "long.wav", tone(3.0, 100 + 200 * number))
        common = {"audio_filepath": f"{label}/long.wav", "label": label, "text": "_"}
        for split in starts:
            pieces = ({**common, "duration": 0.63, "offset": start} for start in starts[split])
            path = root / f"balanced_{label}_{split}_manifest.json"
            table(path, *map(json.dumps, pieces))


def easycall(root: Path) -> None:
    speakers = "fc01", "f01", "f11", "m01", "m05", "m11"
    record(root, (f"{who}/session_{take % 2}/{who}_{take}_Sali.wav" for who in speakers
                  for take in range(4)))  # fmt: skip
    record(root, ["zz09/unknown.wav"])


def mustard(root: Path) -> None:
    common = {"utterance": "Oh,\nsure.", "speaker": "A"}
    rows = {f"1_{n}": {**common, "sarcasm": n % 2 == 0} for n in range(12)}
    record(root, (f"utterances_final/{key}.wav" for key in rows))
    table(root / "sarcasm_data.json", json.dumps(rows, indent=2))


def mustard_pp(root: Path) -> None:
    """Texts have several lines. Rows of the context have no label."""
    lines = ["SCENE,KEY,SENTENCE,SPEAKER,Sarcasm,Valence"]
    for key in (f"1_{n}" for n in range(12)):
        lines.append(f'{key},{key}_c_00,"Well,\nI am sure",A,,')
        lines.append(f'{key},{key}_u,"Oh, ""sure""",B,{float(int(key[2:]) % 2)},5.0')
    record(root, (f"final_utterance_videos/1_{n}_u.wav" for n in range(12)))
    table(root / "mustard++_text.csv", *lines)


def iemocap(root: Path) -> None:
    for session in (1, 2, 5):
        dialogue = f"Ses0{session}F_script01_1"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for n, emotion in enumerate(("neu", "hap", "exc", "sad", "ang", "fru", "neu", "xxx")):
            line = f"[{n}.29 - {n}.98]\t{dialogue}_F{n:03}\t{emotion}\t[2.5, 2.5, 2.5]"
            lines += [line, "C-E2:\tNeutral;\t()"]
        folder = root / f"Session{session}"
        record(folder / "sentences/wav", (f"{dialogue}/{dialogue}_F{n:03}.wav" for n in range(8)))
        table(folder / "dialog/EmoEvaluation" / f"{dialogue}.txt", *lines)


def voxceleb1(root: Path) -> None:
    """Write four speakers with five videos each; the last two are in the archives' folders."""
    lines, meta = [], ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
    for number, folder in enumerate(("wav", "wav", "dev/wav", "test/wav")):
        speaker = f"id1000{number}"
        meta.append(f"{speaker}\tName\t{'mf'[number % 2]}\tIreland\tdev")
        paths = [f"{speaker}/v{video}/00001.wav" for video in range(5)]
        record(root / folder, paths)
        lines += [f"{split} {path}" for split, path in zip((1, 1, 1, 2, 3), paths)]
    table(root / "iden_split.txt", *lines)
    table(root / "vox1_meta.csv", *meta)


FILES, TABLE = "no file matches datarc.files=", "table not found"
FOLDER = "datarc.root_path is the|has testing_list"
# function that writes the corpus, rows per split, names of classes, error for another layout
CORPORA: dict[str, tuple[Callable[[Path], object], list[int], list[str], str]] = {
    "GRABO": (grabo, [8, 16, 8], ["recording1", "recording36"], FILES),
    "LT_SC": (lithuanian, [5, 13, 13], ["ne", "į_viršų", "unknown", "silence"], TABLE),
    "AR_SC": (arabic, [2, 2, 2], ["delete", "seven"], TABLE),
    "DM_SC": (mandarin, [16, 4, 8], ["one", "home"], TABLE),
    "LANGUAGE_ID": (voxforge, [10, 6, 4], ["de", "ru"], FILES),
    "FAKE_SPEECH": (asvspoof, [6, 6, 6], ["bonafide", "spoof"], TABLE),
    "ACCENT": (accentdb, [26, 6, 8], ["bangla", "welsh"], FILES),
    "ESC50": (esc50, [12, 4, 4], ["dog", "hand_saw"], TABLE),
    "SC_V2_12": (speech_commands_v002, [71, 36, 36],
                 [*KEYWORDS, "_unknown_", "_silence_"], FOLDER),
    "SC_V2_35": (speech_commands_v002, [70, 35, 35], sorted(WORDS), FOLDER),
    "VOICE_ACTIVITY": (freesound, [6, 2, 2], ["speech", "background"], TABLE),
    "DYSARTHRIA": (easycall, [12, 6, 6], ["1", "2", "0", "3", "4", "5"], "no utterance for"),
    "SARCASM": (mustard, [8, 2, 2], ["sarcastic", "sincere"], TABLE),
    "SARCASM_PP": (mustard_pp, [8, 2, 2], ["sincere", "sarcastic"], TABLE),
    "EMOTION": (iemocap, [11, 1, 6], ["neutral", "happy", "sad", "angry"],
                r"no utterance in Session\*/dialog.* expected IEMOCAP's lines"),
    "SPEAKER": (voxceleb1, [12, 4, 4], [f"id1000{n}" for n in range(4)], TABLE),
    "GENDER": (voxceleb1, [12, 4, 4], ["m", "f"], TABLE),
}  # fmt: skip
SETTINGS = {"LANGUAGE_ID": ["datarc.rows={train: 5, valid: 3, test: 2}"]}  # fewer than 1,200


def reader_of(task: str, root: Path, *settings: str) -> Preprocessor:
    return preprocessor(load_task(task).downstream, root, *SETTINGS.get(task, []), *settings)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make all corpora and their units."""
    root = tmp_path_factory.mktemp("family")
    readers = {task: reader_of(task, root) for task in CORPORA}
    for task, reader in readers.items():
        if not reader.root.exists():
            CORPORA[task][0](reader.root)
        with open(root / f"{task}.txt", "w") as handle, contextlib.redirect_stdout(handle):
            reader.generate_manifest()
    learn_kmeans(list(readers.values()))
    for reader in readers.values():
        Quantizing(reader).run(Ranks(), skip_bad=False)
        reader.postprocess()
    return root


@pytest.mark.parametrize("task", CORPORA)
def test_a_corpus_in_its_layout(workspace, task):
    """Check rows per split, names of classes, and the warning about the size of the corpus."""
    _, counts, names, _ = CORPORA[task]
    reader = reader_of(task, workspace)
    rows = [list(read_rows(reader.units / split)) for split in SPLITS]
    assert [len(split) for split in rows] == counts
    labels = read_json(reader.units / "labels.json", "").values()
    assert [label["name"] for label in labels] == names
    assert {row.labels for row in rows[0]} == set(map(str, range(len(names))))
    printed = (workspace / f"{task}.txt").read_text()
    has_known_size = task not in ("SC_V2_12", "DYSARTHRIA", "SARCASM_PP", "VOICE_ACTIVITY")
    assert ("not the corpus's known size" in printed) is has_known_size
    assert "two splits" not in printed


@pytest.mark.parametrize("task", CORPORA)
def test_another_layout(tmp_path, task):
    reader = reader_of(task, tmp_path)
    write(reader.root / "other" / "a.wav", tone(0.1, 200))
    with pytest.raises(UserError, match=CORPORA[task][3]):
        reader.generate_manifest()


def test_from_audio_to_accuracy(workspace):
    """SPEAKER uses its own recipe, v2: the map has one row per speaker."""
    tiny.write_lm(Workspace(workspace).lm("logmel100"))
    data_stages(workspace)
    knobs = ("max_update=2", "max_epoch=0", "batch_size=8")
    call("train", workspace, "--date", "d", "--set", *knobs)
    call("sample", workspace, "--model_date", "d", "--sample_date", "d")
    scores = call("cal_acc", workspace, "--sample_date", "d")
    assert all(task in scores for task in CORPORA)
    card = read_record(workspace / "checkpoints" / "SPEAKER_logmel100_checkpoints_d")
    assert card.recipe == "v2" and card.prefix_prompt_length == 5 and len(card.labels) == 4
    assert card.trained_parameters == 5 * 32 * (1 + 2 * 3) + 32 + 4 * 104


def test_each_task_reads_a_downstream_of_its_own():
    """run.sh chooses a task by its downstream."""
    readers = [load_task(task).downstream for task in task_names()]
    assert [readers.count(load_task(task).downstream) for task in CORPORA] == [1] * len(CORPORA)


def test_pieces_sessions_and_what_is_left_out(workspace):
    piece = reader_of("VOICE_ACTIVITY", workspace).utterances("test")[0]
    assert (piece.path, piece.start, piece.samples) == ("speech/long.wav", 28_800, 10_080)
    for session in (5, 2):
        splits = "{Session1: , Session2: , Session5: }"
        splits = splits.replace(f"Session{session}: ", f"Session{session}: test")
        test = reader_of("EMOTION", workspace, f"datarc.splits={splits}").utterances("test")
        assert {u.path.partition("/")[0] for u in test} == {f"Session{session}"}
    for task, count, labels in (("DYSARTHRIA", 1, "'zz09'"), ("EMOTION", 6, "'fru', 'xxx'"),
                                ("SARCASM_PP", 12, "''")):  # fmt: skip
        line = f"{count} rows left out, their labels are not in datarc.names ({labels})"
        assert line in (workspace / f"{task}.txt").read_text()


@pytest.mark.parametrize(
    ("task", "file", "old", "new", "message"),
    [
        ("VOICE_ACTIVITY", "balanced_speech_testing_manifest.json", "audio_filepath", "file",
         r"testing_manifest\.json, line 1: .*'audio_filepath'"),
        ("SARCASM_PP", "mustard++_text.csv", "Sarcasm", "Irony",
         r"no column 'sarcasm' in its first line, which has SCENE, KEY"),
        ("SPEAKER", "iden_split.txt", "1 id", "9 id", r"line 1: split '9'; expected 1, 2, 3"),
        ("GENDER", "vox1_meta.csv", "\t", ",", r"vox1_meta\.csv: .*is its separator ','"),
        ("GENDER", "vox1_meta.csv", "id10003", "id7", r"vox1_meta\.csv has no speaker id10003"),
    ],
)  # fmt: skip
def test_the_wrong_layout_is_named(tmp_path, task, file, old, new, message):
    reader = reader_of(task, tmp_path)
    CORPORA[task][0](reader.root)
    path = reader.root / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        reader.generate_manifest()
