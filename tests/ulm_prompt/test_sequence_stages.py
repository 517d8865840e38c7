"""A text task through every stage on a tiny LM: rows whose units tell their characters."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.rows import Row, write_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from ulm_prompt.prompt_data.tasks import Pair, load_task, sequence_pair
from ulm_prompt.prompt_lm.search import Options
from ulm_prompt.scoring.sample_file import report_long
from ulm_prompt.scoring.sequence_scores import score_sequences

UNIT_MODEL = "tiny100"
WORDS = ("AB", "BAB", "A", "AAB")
NAMES = [("character", " "), ("character", "A"), ("character", "B"), ("slot_type", "city")]
CODES = {" ": 0, "A": 1, "B": 2, "<": 3}


def write_split(root: Path, downstream: str, split: str, texts: list[tuple[list, list]]) -> None:
    """``texts``: the units and labels of every utterance."""
    rows = [
        Row(f"{split}/{number}.flac", *(" ".join(map(str, column)) for column in text))
        for number, text in enumerate(texts)
    ]
    write_rows(Workspace(root).rows(downstream, UNIT_MODEL, split), rows)


def write_texts(root: Path, downstream: str) -> None:
    """One to three words an utterance, SF's last one a slot; units are the labels plus 10."""
    generator = random.Random(0)
    for split, count in {"train": 60, "valid": 9, "test": 13}.items():
        texts = []
        for _ in range(count):
            words = generator.choices(WORDS, k=generator.randint(1, 3))
            if downstream == "audio_snips":
                words[-1] = f"<{words[-1]}<"
            labels = [CODES[character] for character in " ".join(words)]
            texts.append(([10 + label for label in labels], labels))
        write_split(root, downstream, split, texts)
    names = NAMES[: 3 + (downstream == "audio_snips")]
    labels = {str(i): {"slot": slot, "name": name} for i, (slot, name) in enumerate(names)}
    write_json(Workspace(root).downstream_data(downstream) / UNIT_MODEL / "labels.json", labels)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both text tasks, trained a little and decoded; KS's samples as they look."""
    root = tmp_path_factory.mktemp("workspace")
    for downstream in ("librispeech", "audio_snips"):
        write_texts(root, downstream)
    for path in (samples(root, "KS"), samples(root, "KS", within=True)):
        write_json(path, {"0": {"file_name": "a", "src": "1 2", "label": "7", "predict": "7"}})
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    data_stages(root)
    knobs = ("--prefix_prompt_length", 5, "--set", "max_update=2", "batch_size=60")
    call("train", root, "--date", "d", *knobs)
    flags = ("--max_labels", 12, "--dtype", "float32")
    call("sample", root, "--model_date", "d", "--sample_date", "s", *flags)
    return root


def samples(root: Path, task: str, within: bool = False) -> Path:
    path = Workspace(root).samples(task, UNIT_MODEL, "d", "s")
    return path.with_stem(path.stem + "_within_labels") if within else path


def pair(task: str) -> Pair:
    return Pair(task, UNIT_MODEL, load_task(task))


def test_scores_of_every_task(root: Path) -> None:
    """WER and CER for texts, slots for SF, and what KS has always printed."""
    printed = call("cal_acc", root, "--sample_date", "s")
    by_task = {re.search(r"samples_([A-Z]+)_", part)[1]: part for part in
               re.split(r"\n(?=/)", printed.split("\n\n(1)")[0].strip())}  # fmt: skip
    assert list(by_task) == ["ASR", "KS", "SF"]
    lines = by_task["KS"].splitlines()[1:]
    names = ("utterances", "accuracy", "accuracy within labels", "macro F1", "invalid answers")
    assert [line[:26] for line in lines] == [f"  {name:22}  " for name in names]
    for task, slots in (("ASR", 0), ("SF", 2)):
        assert len(re.findall(r"(?:WER|CER) .* %", by_task[task])) == 4 + slots
        assert by_task[task].count("slot type F1") == slots
        assert re.search(r"utterances +13\n", by_task[task])


def test_the_page_of_texts(root: Path) -> None:
    """No confusions: an answer is one text, with slots' labels in brackets."""
    printed = call("cal_acc", root, "--sample_date", "s", "--prompt_task", "SF", "--html")
    assert "(audio: 13 rows without audio: " in printed
    text = samples(root, "SF").with_suffix(".html").read_text()
    rows = json.loads(text.split('id="data">')[1].split("</script>")[0])["rows"]
    assert all(len(row["spoken"]) == len(row["within"]) == 1 for row in rows)
    assert any(re.search(r"\[.+\]", row["spoken"][0]) for row in rows)
    assert "WER within labels" in text and "Learning curve" in text and "Confusions" not in text


def test_answers_within_the_labels_are_texts(root: Path) -> None:
    """Any label at any position: no unit that is none, and never empty, so nothing is invalid."""
    for task in ("ASR", "SF"):
        entries = json.loads(samples(root, task, within=True).read_text()).values()
        assert all(entry["predict"] for entry in entries)
        assert score_sequences(samples(root, task, True), Workspace(root), pair(task)).invalid == 0


def test_right_answers_and_stale_ones(root: Path, tmp_path: Path) -> None:
    """Read by another verbalizer, units would be other texts: refused."""
    path = tmp_path / samples(root, "SF").name
    entries = json.loads(samples(root, "SF").read_text())
    write_json(path, {n: {**entry, "predict": entry["label"]} for n, entry in entries.items()})
    scores = score_sequences(path, Workspace(root), pair("SF"))
    assert (scores.wer, scores.cer, scores.slot_value_cer, scores.invalid) == (0, 0, 0, 0)
    assert scores.right == scores.slot_type_f1 == 100
    entries["3"]["label"] += " 10"
    write_json(path, entries)
    with pytest.raises(UserError, match=r"stale, its labels are not those of .*test\.txt"):
        score_sequences(path, Workspace(root), pair("SF"))


def test_the_figure(root: Path) -> None:
    """Every utterance of both texts in one bin; KS is no text. Two decodings have two names."""
    command = ("plot", root, "cer_by_length", "--sample_date")
    call(*command, "s", "--width", 3)
    folder = samples(root, "ASR").parent
    with open(folder / "cer_by_length.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["run"] for row in rows} == {"ASR_tiny100_d", "SF_tiny100_d"}
    assert sum(int(row["utterances"]) for row in rows) == 26
    assert (folder / "cer_by_length.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no samples of a task whose answers are texts"):
        call(*command, "s", "--prompt_task", "KS")
    perfect = Workspace(root).samples("ASR", UNIT_MODEL, "d", "right")
    entries = json.loads(samples(root, "ASR").read_text())
    write_json(perfect, {n: {**entry, "predict": entry["label"]} for n, entry in entries.items()})
    call(*command, "right", "s", "--width", 90)
    with open(perfect.parent / "cer_by_length.csv", newline="") as handle:
        cer = {row["run"]: float(row["cer"]) for row in csv.DictReader(handle)}
    assert list(cer) == ["right: ASR_tiny100_d", "s: ASR_tiny100_d", "s: SF_tiny100_d"]
    assert cer["right: ASR_tiny100_d"] == 0 < cer["s: ASR_tiny100_d"]


def test_a_sample_files_task_is_told_by_its_name(root: Path) -> None:
    workspace = Workspace(root)
    assert sequence_pair(workspace, samples(root, "SF")).task == "SF"
    assert sequence_pair(workspace, samples(root, "KS")) is None
    with pytest.raises(UserError, match="the rows of ASR that it was decoded from are not in"):
        sequence_pair(workspace, Path("samples_ASR_other100_d.json"))


def test_answers_that_are_too_long_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at the limit, or longer with their row than the LM's positions: how many of each."""
    rows = [range(10), range(10), range(4)]
    answers = {row: {"symbols": count} for row, count in enumerate((5, 3, 5))}
    report_long(rows, answers, Options(max_labels=5, max_units=99), positions=12)
    printed = capsys.readouterr().out
    assert "2 free answers were cut after 5 labels" in printed
    assert "2 rows are longer with their answer than the 12 positions" in printed
    assert "(15 at most)" in printed
    report_long(rows, answers, Options(max_labels=6, max_units=99), positions=15)
    assert capsys.readouterr().out == ""
