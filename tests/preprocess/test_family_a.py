"""The corpora of SpeechPrompt v2, first half: each in its layout, from audio to accuracy.
tests/preprocess/test_table_forms.py has the rules that they share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import Workspace
from preprocess.actions.downstreams import load_downstreams
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.speech_commands.preprocessor import KEYWORDS, LISTS, WORDS
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor, runner_flags
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from ulm_prompt.prompt_data.tasks import load_task, task_names


def record(root: Path, names: Iterable[str]) -> list[str]:
    """Three short tones a name, so that units change."""
    names = list(names)
    for number, name in enumerate(names):
        hertz = (100 + 50 * (number * step % 11) for step in (1, 3, 7))
        write(root / name, np.concatenate([tone(0.06, pitch) for pitch in hertz]))
    return names


def table(path: Path, header: str, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*filter(None, [header]), *lines]) + "\n", encoding="utf-8")


def grabo(root: Path) -> None:
    record(root, (f"speakers/pp{who}/spchdatadir/recording{command}/Voice_{take}.wav"
                  for who in (2, 10) for command in (1, 36) for take in range(1, 9)))  # fmt: skip


def lithuanian(root: Path) -> None:
    """The published tables name their author's folder."""
    machine = "/work/dodohow1011/lt_speech_commands"
    words = {"ne": "ne", "į_viršų": "į_viršų", "du": "unknown"}
    for number, name in enumerate(("train_limit20", "dev_full", "test_full")):
        files = record(root, (f"dataset/{word}/0{number}_nohash_0.wav" for word in words))
        labelled = zip(files, words.values())
        lines = (f"{machine}/{file}\t{label}" for file, label in labelled)
        table(root / f"{name}.csv", "filename\tlabel", lines)
    noise = record(root, (f"dataset/_background_noise_/{n}.wav" for n in range(22)))
    lines = (f"{machine}/{file}\tsilence" for file in noise)
    table(root / "noise_full.csv", "filename\tlabel", lines)


def arabic(root: Path) -> None:
    for number, name in enumerate(("train", "dev", "test")):
        files = record(root, (f"commands/D_Delete{number}.wav", f"numbers/7_{number}.wav"))
        lines = (f"/work/dodohow1011/AR_SpeechCommands/{file}\t{Path(file).name[0]}"
                 for file in files)  # fmt: skip
        table(root / f"{name}_full.csv", "filename\tlabel", lines)


def mandarin(root: Path) -> None:
    for name, takes in (("train", range(5)), ("test", range(5, 7))):
        files = record(root, (f"D_SPK{who}/{word}/D_SPK{who}_c ({take}).wav"
                              for who in (1, 3) for word in ("01", "19")
                              for take in takes))  # fmt: skip
        lines = (f"/work/dodohow1011/dysarthria_zh_command/{file}\t{file.split('/')[1]}"
                 for file in files)  # fmt: skip
        table(root / f"{name}_full.csv", "filename\tlabel", lines)


def voxforge(root: Path) -> None:
    record(root, (f"{language}/Trunk/Audio/Main/16kHz_16bit/{who}-2010/wav/{language}{n}.wav"
                  for language in ("de", "ru") for who in "ab" for n in range(5)))  # fmt: skip


def asvspoof(root: Path) -> None:
    for name, ending in (("train", "trn"), ("dev", "trl"), ("eval", "trl")):
        letter = name[0].upper()
        names = [f"LA_{letter}_{n}" for n in range(6)]
        record(root, (f"ASVspoof2019_LA_{name}/flac/{file}.flac" for file in names))
        lines = (f"LA_0001 {file} - {('-', 'A01')[n % 2]} {('bonafide', 'spoof')[n % 2]}"
                 for n, file in enumerate(names))  # fmt: skip
        path = root / f"ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{name}.{ending}.txt"
        table(path, "", lines)


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
    table(root / "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", lines)


def speech_commands(root: Path) -> None:
    """v0.02 as it unpacks: the lists name valid's and test's files."""
    files = record(root, (f"{word}/a_nohash_{n}.wav" for word in WORDS for n in range(3)))
    for name, take in zip(LISTS.values(), (1, 2)):
        table(root / name, "", (file for file in files if file.endswith(f"_{take}.wav")))
    write(root / "_background_noise_/rain.wav", tone(1.5, 50))


FILES, TABLE, FOLDER = (
    "no file matches datarc.files=",
    "table not found",
    "datarc.root_path is the|has testing_list",
)
CORPORA: dict[str, tuple[Callable[[Path], None], list[int], list[str], str]] = {
    "GRABO": (grabo, [8, 16, 8], ["recording1", "recording36"], FILES),
    "LT_SC": (lithuanian, [5, 13, 13], ["ne", "į_viršų", "unknown", "silence"], TABLE),
    "AR_SC": (arabic, [2, 2, 2], ["delete", "seven"], TABLE),
    "DM_SC": (mandarin, [16, 4, 8], ["one", "home"], TABLE),
    "LANGUAGE_ID": (voxforge, [10, 6, 4], ["de", "ru"], FILES),
    "FAKE_SPEECH": (asvspoof, [6, 6, 6], ["bonafide", "spoof"], TABLE),
    "ACCENT": (accentdb, [26, 6, 8], ["bangla", "welsh"], FILES),
    "ESC50": (esc50, [12, 4, 4], ["dog", "hand_saw"], TABLE),
    "SC_V2_12": (speech_commands, [36, 36, 36],
                 [*KEYWORDS, "_unknown_", "_silence_"], FOLDER),
    "SC_V2_35": (speech_commands, [35, 35, 35], sorted(WORDS), FOLDER),
}  # fmt: skip
FEWER = {"LANGUAGE_ID": ["datarc.rows={train: 5, valid: 3, test: 2}"]}  # than 1,200 a language


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the corpora, and their units."""
    root = tmp_path_factory.mktemp("family")
    readers = [preprocessor(load_task(task).downstream, root, *FEWER.get(task, []))
               for task in CORPORA]  # fmt: skip
    for task, reader in zip(CORPORA, readers):
        CORPORA[task][0](reader.root)
        with open(root / f"{task}.txt", "w") as handle, contextlib.redirect_stdout(handle):
            reader.generate_manifest()
    learn_kmeans(readers)
    for reader in readers:
        Quantizing(reader).run(Ranks(), skip_bad=False)
        reader.postprocess()
    return root


@pytest.mark.parametrize("task", CORPORA)
def test_a_corpus_in_its_layout(workspace, task):
    """Rows of each split, the classes' names, and what is said of another size than the real."""
    _, counts, names, _ = CORPORA[task]
    folder = workspace / "preprocess" / load_task(task).downstream / "data" / "logmel100"
    rows = [list(read_rows(folder / split)) for split in SPLITS]
    assert [len(split) for split in rows] == counts
    assert [label["name"] for label in read_json(folder / "labels.json", "").values()] == names
    assert {row.labels for row in rows[0]} <= set(map(str, range(len(names))))
    said = (workspace / f"{task}.txt").read_text()
    assert ("not the corpus's known size" in said) is (task != "SC_V2_12")
    assert "two splits" not in said


@pytest.mark.parametrize("task", CORPORA)
def test_another_layout(tmp_path, task):
    reader = preprocessor(load_task(task).downstream, tmp_path)
    write(reader.root / "other" / "a.wav", tone(0.1, 200))
    with pytest.raises(UserError, match=CORPORA[task][3]):
        reader.generate_manifest()


def test_from_audio_to_accuracy(workspace):
    tiny.write_lm(Workspace(workspace).lm("logmel100"))
    data_stages(workspace)
    knobs = ("max_update=2", "max_epoch=0", "batch_size=8")
    call("train", workspace, "--date", "d", "--set", *knobs)
    call("sample", workspace, "--model_date", "d", "--sample_date", "d")
    scores = call("cal_acc", workspace, "--sample_date", "d")
    assert all(task in scores for task in CORPORA)


def test_the_runner_says_once_what_it_leaves_out(tmp_path, capsys):
    (tmp_path / "corpora" / "voxforge").mkdir(parents=True)
    (task,) = load_downstreams(runner_flags("--workspace", tmp_path), False)
    assert task.downstream == "voxforge"
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said[-1] == "left out, without a corpus" and len(set(said)) == len(said) <= 2


def test_each_task_reads_a_downstream_of_its_own():
    """run.sh chooses a task by its downstream."""
    readers = [load_task(task).downstream for task in task_names()]
    assert [readers.count(load_task(task).downstream) for task in CORPORA] == [1] * len(CORPORA)
