"""predict.py and Predictor on audio: compared with sample.py, and messages on bad input."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.preprocess import corpora
from tests.ulm_prompt import spoken
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.spoken import melody, predict
from ulm_prompt.using.input_output import Table
from ulm_prompt.using.predictor import BadAudio, Prediction, Predictor


def sampled(workspace: Workspace, task: str) -> dict[str, dict]:
    """Return sample.py's answer within the label set for each file of the test split."""
    flags = ("--sample_date", "s", "--dtype", "float32", "--within_labels", "trie")
    call("sample", workspace.root, *spoken.of_run(task), *flags)
    path = workspace.samples(task, spoken.UNIT_MODEL, "d", "s")
    answers = read_json(path.with_stem(path.stem + "_within_labels"), "sample.py")
    return {entry["file_name"]: entry for entry in answers.values()}


def names(workspace: Workspace, task: str, units: str) -> tuple[str, ...]:
    """Return the names of label units."""
    verbal = read_json(workspace.datasets(spoken.UNIT_MODEL) / "verbal.json", "")[task]
    labels = {unit: label for label, unit in verbal.items()}
    data = workspace.downstream_data(spoken.DOWNSTREAMS[task]) / spoken.UNIT_MODEL
    known = read_json(data / "labels.json", "")
    return tuple(known[labels[unit]]["name"] for unit in units.split())


def test_equals_sample_py(spoken_workspace: Workspace, predictor: Predictor) -> None:
    """Both tasks answer every file in one batch. sample.py answers one task and its test split."""
    for task, downstream in spoken.DOWNSTREAMS.items():
        root = spoken_workspace.root / "corpora" / downstream
        answers = sampled(spoken_workspace, task)
        for (file, expected), predictions in zip(
            answers.items(), predictor([root / file for file in answers], top=99)
        ):
            by_name = {prediction.names: prediction for prediction in predictions[task]}
            prediction = by_name[names(spoken_workspace, task, expected["predict"])]
            assert prediction.probability == pytest.approx(math.exp(expected["score"]), rel=1e-4)
            shares = [math.exp(score) for score in expected["label_scores"]]
            assert prediction.label_probabilities == pytest.approx(shares, rel=1e-4)
            if task == "KS":  # one label: the greedy answer is the likeliest
                assert predictions[task][0] == prediction, file
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
            for task, ranked in answers.items():
                for answer, other in zip(ranked, expected[task], strict=True):
                    assert answer.names == other.names
                    assert answer.probability == pytest.approx(other.probability, rel=1e-4)


BAD = [  # audio, the message without --segments, the message with --segments if it differs
    ("short.wav", "one frame", "shorter than 10 ms"), ("long.wav", "--segments", "no sound that"),
    ("empty.wav", "is an empty file", ""), ("text.wav", "not readable", ""),
    ("absent.wav", "does not exist", ""), (".", "not readable", ""), ("no\0name", "", ""),
    ("x" * 5000, "", ""), ("cut.flac", "", ""), (np.full(48_000, np.nan), "finite", ""),
    (np.zeros((2, 9000)), "pass one channel", ""), (melody(1) * 2**15, "float peak", ""),
    (melody(1) > 0, "found bool", ""),
]  # fmt: skip


def test_audio_that_cannot_be_used(tmp_path: Path, predictor: Predictor) -> None:
    corpora.write(tmp_path / "good.wav", corpora.tone(0.3, 200))
    corpora.write(tmp_path / "short.wav", corpora.tone(0.005, 200))
    corpora.write(tmp_path / "long.wav", np.zeros(8000 * 121), 8000)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(flac := tmp_path / "cut.flac", melody(1), 16_000)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 3])
    audio = [tmp_path / bad if isinstance(bad, str) else bad for bad, *_ in BAD]
    *results, good = predictor([*audio, tmp_path / "good.wav"])
    assert set(good) == {"KS", "IC"}
    for result, bad, (_, message, segments_message) in zip(results, audio, BAD):
        assert isinstance(result, BadAudio) and message in str(result)
        with pytest.raises(BadAudio, match=segments_message or message):
            list(predictor.segments(bad))
    assert predictor([]) == []


def test_an_array_is_answered_as_the_file_of_its_type(tmp_path: Path, predictor: Predictor) -> None:
    samples = melody(1)
    arrays = {
        "PCM_16": (samples * 2**15).astype(np.int16),
        "PCM_32": (samples * 2**31).astype(np.int32),
        "PCM_U8": (samples * 128 + 128).astype(np.uint8),
        "DOUBLE": samples,
    }
    for subtype, array in arrays.items():
        soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype=subtype)
        expected, *results = predictor([tmp_path / "a.wav", array, torch.tensor(array)])
        for answers in results:
            for task, (best, *_) in answers.items():
                assert best.names == expected[task][0].names, (subtype, task)


def test_units_that_the_lm_does_not_know_are_refused(predictor: Predictor) -> None:
    """Such units are from another unit model. With <unk> instead, the answer would be arbitrary."""
    with pytest.raises(UserError, match="unit 999 is not in the LM's dict"):
        predictor.answers(["5 999 7"])


def test_folders_lists_and_the_exit_code(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """predict.py runs in a separate process with a piped list. Files in a folder are recognised by
    content, not by name. Files that do not decode are reported.
    """
    folder = tmp_path / "in"
    kinds = {
        "a.aiff": ("AIFF", None), "a.flac": ("FLAC", None), "a.mp3": ("MP3", "MPEG_LAYER_III"),
        "a.opus": ("OGG", "OPUS"), "no_suffix": ("WAV", None), "deep/a.wav": ("WAV", "ULAW"),
        ".hidden/c.wav": ("WAV", None),
    }  # fmt: skip
    for name, (form, kind) in kinds.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, melody(3), 16_000, format=form, subtype=kind)
    (folder / "b.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0")
    (folder / "b.raw").write_bytes(bytes(32_000))
    (folder / "gone.wav").symlink_to("nowhere")
    shutil.copy(folder / "a.flac", tmp_path / "café.wav")
    listed = [bytes(tmp_path / "café.wav"), b"", b"/caf\xe9.wav", bytes(tmp_path / "absent.wav\r")]
    script, prompts = REPOSITORY / "ulm_prompt" / "predict.py", ("--prompt", "KS", "--prompt", "IC")
    result = subprocess.run(
        [sys.executable, script, "--workspace", spoken_workspace.root, *prompts, folder, "-"],
        input=b"\n".join(listed), capture_output=True, cwd="/", check=False,
    )  # fmt: skip
    errors = result.stderr.decode()
    assert result.returncode == 1, errors
    assert errors.startswith("computes on ")
    for reason in (
        f"{folder}/b.m4a: is not readable audio", f"{folder}/b.raw: has no header",
        f"{folder}/gone.wav: does not exist", "/caf\\udce9.wav: ",
        f"{tmp_path}/absent.wav: does not exist",
    ):  # fmt: skip
        assert f"\nno answer: {reason}" in errors
    assert "7 utterances in" in errors
    assert "per second, by KS, IC; 5 files without an answer; skipped: 1 hidden folders" in errors
    entries = [json.loads(line) for line in result.stdout.decode().splitlines()]
    names = ("a.aiff", "a.flac", "a.mp3", "a.opus", "no_suffix", "a.wav", "café.wav")
    assert [(Path(entry["file"]).name, entry["task"]) for entry in entries] == [
        (name, task) for name in names for task in ("KS", "IC")
    ]
    labels = {entry["file"]: entry["labels"] for entry in entries if entry["task"] == "IC"}
    same = ("in/a.aiff", "in/a.flac", "in/no_suffix", "café.wav")
    assert len({tuple(labels[str(tmp_path / name)]) for name in same}) == 1
    assert list(entries[1]["slots"]) == ["action", "object", "location"]
    assert 0 < entries[1]["probability"] <= min(entries[1]["label_probabilities"])


@pytest.mark.parametrize("flags", [(), ("--segments",)])
def test_predict_py_counts_its_audio(
    spoken_workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple
) -> None:
    voice = np.concatenate([np.zeros(8000), melody(1), np.zeros(8000)])
    corpora.write(tmp_path / "opposite.wav", np.stack([voice, -voice], axis=1))
    corpora.write(tmp_path / "slow.wav", voice[::2], 8000)
    for name in ("cut.wav", "cut2.wav"):
        corpora.write(tmp_path / name, voice)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:9_000])
    os.mkfifo(tmp_path / "pipe.wav")
    assert predict(spoken_workspace, "--prompt", "IC", *flags, "--format", "csv", tmp_path) == 1
    errors = capsys.readouterr().err
    total = len(voice) / 16_000
    assert f"cut.wav: is cut short: found 0.28 s of {total:.2f} s\n" in errors
    assert "pipe.wav: is not readable audio: it is a pipe; save it to a file first\n" in errors
    assert (
        "audio: 2 recordings read (the loudest of 2 channels taken, which cancel each other: 1; "
        "8000 Hz resampled to 16000 Hz: 1); 3 left out (is cut short: 2; is not readable audio: 1)"
    ) in errors


def test_csv_and_table(
    spoken_workspace: Workspace, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = spoken.clip(spoken_workspace)
    flags = ("--prompt", "IC", "--prompt", "KS", "--top", 2, clip)
    assert predict(spoken_workspace, *flags, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    wanted = [("IC", "1"), ("IC", "2"), ("KS", "1"), ("KS", "2")]
    assert [(row["task"], row["rank"]) for row in rows] == wanted
    assert rows[0]["labels"].count("|") == rows[0]["label_probabilities"].count("|") == 2
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])
    assert predict(spoken_workspace, *flags, "--format", "table") == 0
    printed = capsys.readouterr()
    head, *lines = printed.out.splitlines()
    assert "1 utterances in" in printed.err and len(lines) == 4
    answers = [line[head.index("answer") :] for line in lines]
    assert answers[2] == rows[2]["labels"] and answers[3] == rows[3]["labels"]
    assert answers[0].split(" (")[0] == rows[0]["labels"].split("|")[0]
    assert lines[1].startswith(" "), "only the best answer has the file name"

    table = Table(out := io.StringIO(), predictor.records, False)
    for name in ("a.wav", "\x1b[2J" + "x" * 90 + "end.wav", "two\nlines.wav"):
        table.write(Path(name), {"KS": [Prediction(("yes",), ("keyword",), 0.5, (0.5,))]})
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and "\x1b" not in out.getvalue() and "end.wav" in lines[2]
    assert len({line.index("yes") for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--prompt XY {clip}", "--prompt XY: no such task"),
        ("--prompt ks {clip}", r"no such task \(did you mean KS\?\), folder or file; expected"),
        ("--prompt {clip} {clip}", "no such task"),
        ("--prompt {root}/corpora {clip}", "contains neither prompt.safetensors nor"),
        ("--prompt KS {clip} --unit_model cpc100", "no trained prompt at"),
        ("--prompt KS {clip} --unit_model logmel10", r"mean KS_logmel100_checkpoints_d\?"),
        ("--prompt KS --prompt KS {clip}", "name each prompt once"),
        ("--model_date d {clip}", "name it with --prompt"),
        ("--prompt KS {root}/nowhere", "nowhere: no such file or folder"),
        ("--prompt KS {root}/empty", "this folder contains no files"),
        ("--prompt KS {clip} --top 0", "--top 0: expected at least 1"),
        (f"--prompt KS {{clip}} --top {'9' * 25}", "at least 1, at most 10,000"),
        ("{clip} --segments --longest nan", "--longest nan: expected 0.2 to 60 sec"),
        ("{clip} --segments --longest inf", "--longest inf: expected 0.2 to 60 sec"),
        ("{clip} --segments --longest 0", "expected 0.2 to 60 seconds"),
        ("{clip} --longest 3", "expected 0.2 to 60 seconds, with --segments"),
    ],
)
def test_mistakes_on_the_command_line(
    spoken_workspace: Workspace, words: str, expected: str
) -> None:
    root = spoken_workspace.root
    clip = spoken.clip(spoken_workspace)
    (root / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=expected) as error:
        predict(spoken_workspace, *(word.format(root=root, clip=clip) for word in words.split()))
    assert "\n" not in str(error.value)
