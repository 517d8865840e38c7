"""predict.py on wav files, against sample.py on the same audio; what it does with bad files."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.preprocess import corpora
from tests.ulm_prompt import spoken
from tests.ulm_prompt.in_process import call
from ulm_prompt import predict
from ulm_prompt.using.input_output import Table, as_they_arrive
from ulm_prompt.using.predictor import BadAudio, Prediction, Predictor


@pytest.fixture(scope="module")
def predictor(spoken_workspace: Workspace) -> Predictor:
    return Predictor.load(["KS", "IC"], spoken_workspace.root, dtype="float32")


def sampled(workspace: Workspace, task: str, *flags: object) -> dict[str, dict]:
    """What sample.py answers within the labels to each file of the test split."""
    command = ("--prompt_task", task, "--model_date", "d", "--sample_date", "s")
    call("sample", workspace.root, *command, "--dtype", "float32", *flags)
    path = workspace.samples(task, spoken.UNIT_MODEL, "d", "s")
    answers = read_json(path.with_stem(path.stem + "_within_labels"), "sample.py")
    return {entry["file_name"]: entry for entry in answers.values()}


def names(workspace: Workspace, task: str, units: str) -> tuple[str, ...]:
    """Label units as people call them."""
    folder = workspace.datasets(spoken.UNIT_MODEL)
    labels = {unit: label for label, unit in read_json(folder / "verbal.json", "")[task].items()}
    data = workspace.downstream_data(spoken.DOWNSTREAMS[task]) / spoken.UNIT_MODEL
    known = read_json(data / "labels.json", "")
    return tuple(known[labels[unit]]["name"] for unit in units.split())


def test_equals_sample_py(spoken_workspace: Workspace, predictor: Predictor) -> None:
    """Both tasks answer every file in one batch; sample.py had one task and its own test split."""
    for task, downstream in spoken.DOWNSTREAMS.items():
        root = spoken_workspace.root / "corpora" / downstream
        answers = sampled(spoken_workspace, task, "--within_labels", "trie")
        for (file, expected), found in zip(
            answers.items(), predictor([root / file for file in answers], top=99)
        ):
            by_name = {each.names: each for each in found[task]}
            same = by_name[names(spoken_workspace, task, expected["predict"])]
            assert same.probability == pytest.approx(math.exp(expected["score"]), rel=1e-4)
            shares = [math.exp(score) for score in expected["label_scores"]]
            assert same.label_probabilities == pytest.approx(shares, rel=1e-4)
            if task == "KS":  # one step: greedy is the likeliest
                assert found[task][0] == same, file
            assert len(by_name) == len(predictor.records[task].label_sequences)


def test_neither_batch_nor_waveform_nor_other_prompts_change_an_answer(
    spoken_workspace: Workspace, predictor: Predictor
) -> None:
    files = sorted((spoken_workspace.root / "corpora").rglob("*.wav"))[::5]
    together = predictor(files, top=3)
    assert len({answers["KS"][0].names for answers in together}) > 1
    alone = Predictor.load(["IC"], spoken_workspace.root, dtype="float32")
    for file, expected in zip(files, together):
        assert list(expected) == ["KS", "IC"]
        samples, _ = soundfile.read(file, dtype="float32")
        for (answers,) in (predictor([file], 3), predictor([samples], 3), alone([file], 3)):
            for task in answers:
                assert [answer.names for answer in answers[task]] == [
                    answer.names for answer in expected[task]
                ]
                shares = [answer.probability for answer in answers[task]]
                assert shares == pytest.approx(
                    [answer.probability for answer in expected[task]], rel=1e-4
                )


def test_audio_that_cannot_be_used(tmp_path: Path, predictor: Predictor) -> None:
    corpora.write(tmp_path / "good.wav", corpora.tone(0.3, 200))
    corpora.write(tmp_path / "short.wav", corpora.tone(0.01, 200))
    corpora.write(tmp_path / "long.wav", np.zeros(8000 * 121), 8000)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no audio")
    audio = [tmp_path / f"{name}.wav" for name in ("short", "long", "empty", "text", "absent")]
    audio += [tmp_path, "no\0name", "x" * 5000, np.full(9000, np.nan), np.zeros((2, 9000))]
    expected = ["one frame", "--segments", "is an empty file", "not readable", "does not exist",
                "not readable", "", "", "finite", "(T,)"]  # fmt: skip
    found = predictor([*audio, tmp_path / "good.wav"])
    assert set(found[-1]) == {"KS", "IC"}
    for result, words in zip(found, expected):
        assert isinstance(result, BadAudio) and words in str(result)
    assert predictor([]) == []


def run(workspace: Workspace, *words: object) -> None:
    """Run predict.py in this process, where fairseq is imported already."""
    sys.argv = ["predict.py", "--workspace", str(workspace.root), *map(str, words)]
    predict.main()


def test_folders_lists_formats_and_the_exit_code(
    spoken_workspace: Workspace, tmp_path: Path
) -> None:
    """A process of its own: a list is piped in, and a file of it is bad."""
    corpora.write(tmp_path / "in" / "b.wav", corpora.tone(0.5, 200))
    corpora.write(tmp_path / "in" / "deep" / "a.flac", corpora.tone(0.5, 300))
    corpora.write(tmp_path / "in" / ".hidden" / "c.wav", corpora.tone(0.5, 300))
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    (tmp_path / "in" / ".b.wav").write_bytes(b"what a copy left")
    shutil.copy(tmp_path / "in" / "b.wav", tmp_path / "café.wav")
    listed = [bytes(tmp_path / "café.wav"), b"", b"/caf\xe9.wav", bytes(tmp_path / "absent.wav\r")]
    result = subprocess.run(
        [
            *(sys.executable, str(REPOSITORY / "ulm_prompt" / "predict.py")),
            *("--workspace", str(spoken_workspace.root), "--prompt", "KS", "--prompt", "IC"),
            *(str(tmp_path / "in"), "-"),
        ],
        input=b"\n".join(listed),
        capture_output=True,
        cwd="/",
        check=False,
    )
    errors = result.stderr.decode(errors="surrogateescape")
    assert result.returncode == 1, errors
    named = errors.splitlines()[1:]
    assert errors.startswith("computes on ")
    assert named[0].startswith(f"no answer: {tmp_path / 'in' / 'notes.txt'}: is not readable audio")
    assert named[1].startswith("no answer: /caf\udce9.wav: ")
    assert named[2].endswith("absent.wav: does not exist")
    assert "3 utterances in" in errors
    assert "a second, by KS, IC; 3 files without an answer" in errors
    lines = result.stdout.decode(errors="surrogateescape").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(Path(entry["file"]).name, entry["task"]) for entry in entries] == [
        *(("b.wav", "KS"), ("b.wav", "IC"), ("a.flac", "KS"), ("a.flac", "IC")),
        *(("café.wav", "KS"), ("café.wav", "IC")),
    ]
    assert entries[0]["labels"] == entries[4]["labels"]
    assert list(entries[1]["slots"]) == ["action", "object", "location"]
    assert 0 < entries[1]["probability"] <= min(entries[1]["label_probabilities"])


def test_all_that_decodes_is_answered(
    spoken_workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder's files by what they hold, not by their names; what does not decode is named."""
    kinds = {
        "a.opus": ("OGG", "OPUS"), "a.mp3": ("MP3", "MPEG_LAYER_III"), "a.aiff": ("AIFF", None),
        "a.flac": ("FLAC", None), "a.wav": ("WAV", "ULAW"), "no_suffix": ("WAV", None),
    }  # fmt: skip
    for name, (form, kind) in kinds.items():
        soundfile.write(tmp_path / name, spoken.melody(3), 16_000, format=form, subtype=kind)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0")
    (tmp_path / "b.raw").write_bytes(bytes(32_000))
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SystemExit) as end:
        run(spoken_workspace, "--prompt", "KS", "--format", "jsonl", tmp_path)
    assert end.value.code == 1
    out, errors = capsys.readouterr()
    answers = {Path(entry["file"]).name: entry for entry in map(json.loads, out.splitlines())}
    assert answers.keys() == kinds.keys()
    for name in ("no_suffix", "a.flac"):
        assert answers[name]["labels"] == answers["a.aiff"]["labels"]
    assert "a.m4a: is not readable audio" in errors and "b.raw: has no header" in errors
    assert "gone.wav: does not exist" in errors
    assert "6 utterances in" in errors and "; 3 files without an answer" in errors


def test_csv_and_table(spoken_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    clip = next((spoken_workspace.root / "corpora").rglob("*.wav"))
    flags = ("--prompt", "IC", "--prompt", "KS", "--top", 2, clip)
    run(spoken_workspace, *flags, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["task"], row["rank"]) for row in rows] == [
        *(("IC", "1"), ("IC", "2"), ("KS", "1"), ("KS", "2"))
    ]
    assert rows[0]["labels"].count("|") == rows[0]["label_probabilities"].count("|") == 2
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])
    run(spoken_workspace, *flags, "--format", "table")
    printed = capsys.readouterr()
    head, *lines = printed.out.splitlines()
    assert "1 utterances in" in printed.err and len(lines) == 4
    place = head.index("answer")
    shown = [line[place:] for line in lines]
    assert shown[2] == rows[2]["labels"] and shown[3] == rows[3]["labels"]
    assert shown[0].split(" (")[0] == rows[0]["labels"].split("|")[0]
    assert lines[1].startswith(" "), "the file stands at its best answer alone"


def test_the_table_cuts_long_names_and_hides_control_characters(predictor: Predictor) -> None:
    out = io.StringIO()
    table = Table(out, predictor.records)
    answer = Prediction(("yes",), ("keyword",), 0.5, (0.5,))
    for name in ("a.wav", "\x1b[2J" + "x" * 90 + "end.wav", "two\nlines.wav"):
        table.write(Path(name), {"KS": [answer]})
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and "\x1b" not in out.getvalue()
    assert "end.wav" in lines[2]
    assert len({line.index("yes") for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompt", "XY", "{clip}"], "--prompt XY: no such task"),
        (["--prompt", "KS", "{clip}", "--unit_model", "cpc100"], "no trained prompt at"),
        (["--prompt", "KS", "{root}/nowhere"], "nowhere: no such file or folder"),
        (["--prompt", "KS", "{root}/empty"], "no files in this folder"),
        (["--model_date", "d", "{clip}"], "name it with --prompt"),
        (["--prompt", "{root}/corpora", "{clip}"], "neither prompt.safetensors nor"),
        (["--prompt", "{clip}", "{clip}"], "no such task"),
        (["--prompt", "KS", "{clip}", "--top", "0"], "--top 0: expected at least 1"),
        (["--prompt", "KS", "{clip}", "--top", "9" * 25], "at least 1, at most 10,000"),
        (["{clip}", "--segments", "--longest", "nan"], "--longest nan: expected 0.2 to 60 sec"),
        (["{clip}", "--segments", "--longest", "inf"], "--longest inf: expected 0.2 to 60 sec"),
        (["--prompt", "ks", "{clip}"], r"no such task \(did you mean KS\?\) of KS, IC"),
        (
            ["--prompt", "KS", "{clip}", "--unit_model", "logmel10"],
            r"did you mean KS_logmel100_checkpoints_d\?",
        ),
        (["--prompt", "KS", "-", "-"], "can be read once"),
        (["--prompt", "KS", "--prompt", "KS", "{clip}"], "name each prompt once"),
    ],
)
def test_mistakes_on_the_command_line(
    spoken_workspace: Workspace, words: list[str], expected: str
) -> None:
    root = spoken_workspace.root
    clip = next((root / "corpora").rglob("*.wav"))
    (root / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=expected) as error:
        run(spoken_workspace, *(word.format(root=root, clip=clip) for word in words))
    assert "\n" not in str(error.value)


def test_another_kmeans_than_the_units_were_made_with(
    spoken_workspace: Workspace, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(spoken_workspace.root, root, ignore=shutil.ignore_patterns("corpora"))
    from preprocess.speech2unit.kmeans import load_kmeans, save_kmeans

    path = root / "pretrained_models" / "logmel100_km.npz"
    save_kmeans(path, load_kmeans(path) + 1)
    with pytest.raises(UserError, match="not the k-means that .* was made with"):
        Predictor.load(["KS"], root)
    path.unlink()
    with pytest.raises(UserError, match="k-means of logmel100 not found"):
        Predictor.load(["KS"], root)


def test_the_first_path_is_not_kept_waiting() -> None:
    """Batches are what has arrived; an error of the list comes out, after what was before it."""
    released = []

    def slow() -> Iterator[Path]:
        yield Path("0")
        while not released:
            time.sleep(0.001)
        yield from (Path(str(number)) for number in range(1, 9))
        raise OSError("gone")

    batches = as_they_arrive(slow(), 4)
    assert next(batches) == [Path("0")]
    released.append(True)
    rest = []
    with pytest.raises(OSError, match="gone"):
        for batch in batches:
            assert 1 <= len(batch) <= 4
            rest += batch
    assert rest == [Path(str(number)) for number in range(1, 9)]


def test_units_that_the_lm_lacks_are_refused(predictor: Predictor) -> None:
    """They are of another unit model: <unk> in their place would be answered like anything."""
    with pytest.raises(UserError, match="unit 999 is not in the LM's dict"):
        predictor.answers(["5 999 7"])
