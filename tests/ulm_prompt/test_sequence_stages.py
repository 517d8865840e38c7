"""A text task through every stage on a tiny LM. Each unit of a row encodes a character."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.rows import SPLITS, Row, write_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from ulm_prompt.prompt_data.tasks import Pair, load_task, pair_of
from ulm_prompt.prompt_lm.search import Options
from ulm_prompt.scoring.sample_file import report_long, within_path
from ulm_prompt.scoring.scores import scores_of
from ulm_prompt.scoring.sequence_scores import score_text_file

UNIT_MODEL = "tiny100"
WORDS = ("AB", "BAB", "A", "AAB")
NAMES = [("character", " "), ("character", "A"), ("character", "B"), ("slot_type", "city")]


def write_texts(root: Path, downstream: str) -> None:
    """Write one to three words per utterance, in SF a slot last; units are the labels plus 10."""
    generator, has_slots = random.Random(0), downstream == "audio_snips"
    for split, count in zip(SPLITS, (60, 9, 13)):
        rows = []
        for number in range(count):
            words = generator.choices(WORDS, k=generator.randint(1, 3))
            if has_slots:
                words[-1] = f"<{words[-1]}<"
            labels = [" AB<".index(character) for character in " ".join(words)]
            columns = ([10 + label for label in labels], labels)
            rows.append(Row(f"{number}.flac", *(" ".join(map(str, column)) for column in columns)))
        write_rows(Workspace(root).rows(downstream, UNIT_MODEL, split), rows)
    names = enumerate(NAMES[: 3 + has_slots])
    labels = {str(i): {"slot": slot, "name": name} for i, (slot, name) in names}
    write_json(Workspace(root).rows(downstream, UNIT_MODEL, "labels.json"), labels)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with both text tasks, trained a little and decoded, and with samples of KS."""
    root = tmp_path_factory.mktemp("workspace")
    for downstream in ("librispeech", "audio_snips"):
        write_texts(root, downstream)
    for path in (samples(root, "KS"), within_path(samples(root, "KS"))):
        write_json(path, {"0": {"file_name": "a", "src": "1 2", "label": "7", "predict": "7"}})
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    data_stages(root)
    knobs = ("--prefix_prompt_length", 5, "--set", "max_update=2", "batch_size=60")
    call("train", root, "--date", "d", *knobs)
    flags = ("--max_labels", 12, "--dtype", "float32")
    call("sample", root, "--model_date", "d", "--sample_date", "s", *flags)
    return root


def samples(root: Path, task: str, date: str = "s") -> Path:
    return Workspace(root).samples(task, UNIT_MODEL, "d", date)


def right_answers(root: Path, task: str, path: Path) -> dict[str, dict[str, str]]:
    entries = read_json(samples(root, task), "")
    entries = {n: {**entry, "predict": entry["label"]} for n, entry in entries.items()}
    write_json(path, entries)
    return entries


def score(root: Path, task: str, path: Path) -> dict[str, float]:
    return score_text_file(path, Workspace(root), Pair(task, UNIT_MODEL, load_task(task)))


def test_scores_of_every_task(root: Path) -> None:
    """Texts have WER and CER, SF also slot scores, KS its usual scores. Within the labels, answers
    are not empty and contain only labels, so they are valid.
    """
    printed = call("cal_acc", root, "--sample_date", "s").split("\n\n(1)")[0].strip()
    by_task = {re.search(r"samples_([A-Z]+)_", part)[1]: part for part in
               re.split(r"\n(?=/)", printed)}  # fmt: skip
    assert list(by_task) == ["ASR", "KS", "SF"]
    names = ("utterances", "accuracy", "accuracy within labels", "macro F1", "invalid answers")
    lines = by_task["KS"].splitlines()[1:]
    assert [line[:26] for line in lines] == [f"  {name:22}  " for name in names]
    for task, slots in (("ASR", 0), ("SF", 2)):
        assert len(re.findall(r"(?:WER|CER) .* %", by_task[task])) == 4 + slots
        assert by_task[task].count("slot type F1") == slots
        assert re.search(r"utterances +13\n", by_task[task])
        assert score(root, task, within_path(samples(root, task)))["invalid answers"] == 0


def test_a_prompt_of_another_verbal_map(root: Path) -> None:
    """Its texts are read by the map that they were written with."""
    named = ("--prompt_task", "ASR", "--verbalizer", "v")
    call("verbalizer", root, *named, "--method", "random", "--seed", 3)
    call("fairseq_preprocess", root, *named)
    call("train", root, "--date", "v", *named, "--set", "max_update=1", "batch_size=60")
    call("sample", root, "--model_date", "v", "--sample_date", "v", *named)
    path = Workspace(root).samples("ASR", UNIT_MODEL, "v", "v")
    before = [Workspace(root).samples("ASR", UNIT_MODEL, "d", "s"), path]
    scores = [scores_of(file, Workspace(root)) for file in before]
    assert scores[0].keys() == scores[1].keys() and scores[1]["WER within labels"] > 0
    assert "WER" in call("cal_acc", root, "--sample_date", "v")
    assert "ASR_tiny100_v -> " in call("plot", root, "cer_by_length", "--sample_date", "v")


def test_the_page_of_texts(root: Path) -> None:
    """It has no confusions, because an answer is one text, with the slots' labels in brackets."""
    printed = call("cal_acc", root, "--sample_date", "s", "--prompt_task", "SF", "--html")
    assert "(audio: 13 rows without audio: " in printed
    text = samples(root, "SF").with_suffix(".html").read_text()
    assert re.search(r'"spoken": \["[^"]*\[city\][^"]*"\]', text)
    assert "WER within labels" in text and "Learning curve" in text and "Confusions" not in text


def test_right_answers_and_stale_ones(root: Path, tmp_path: Path) -> None:
    """Stale samples are refused: with another verbalizer, their units would be other texts."""
    path = tmp_path / samples(root, "SF").name
    entries = right_answers(root, "SF", path)
    assert score(root, "SF", path) == {
        "utterances": 13, "WER": 0, "CER": 0, "slot type F1": 100, "slot value CER": 0,
        "all right": 100, "invalid answers": 0,
    }  # fmt: skip
    entries["3"]["label"] += " 10"
    write_json(path, entries)
    remedy = r"run sample\.py again; for a prompt of --verbalizer NAME, first run verbalizer\.py"
    with pytest.raises(UserError, match=rf"stale, the labels differ from .*test\.txt; {remedy}"):
        score(root, "SF", path)


def test_the_figure(root: Path) -> None:
    """Every utterance of both text tasks is in one bin. Two decodings have two names."""

    def rows(date: str, *flags: object) -> list[dict[str, str]]:
        call("plot", root, "cer_by_length", "--sample_date", date, *flags)
        figure = samples(root, "ASR", date).with_name("cer_by_length.png")
        assert figure.read_bytes().startswith(b"\x89PNG")
        return list(csv.DictReader(figure.with_suffix(".csv").read_text().splitlines()))

    bins = rows("s", "--width", 3)
    assert {row["run"] for row in bins} == {"ASR_tiny100_d", "SF_tiny100_d"}
    assert sum(int(row["utterances"]) for row in bins) == 26
    with pytest.raises(UserError, match="no samples of a task whose answers are texts"):
        rows("s", "--prompt_task", "KS")
    right_answers(root, "ASR", samples(root, "ASR", "right"))
    cer = {row["run"]: float(row["cer"]) for row in rows("right", "s", "--width", 90)}
    assert list(cer) == ["right: ASR_tiny100_d", "s: ASR_tiny100_d", "s: SF_tiny100_d"]
    assert cer["right: ASR_tiny100_d"] == 0 < cer["s: ASR_tiny100_d"]


def test_a_sample_files_name_gives_its_task(root: Path) -> None:
    assert pair_of(Workspace(root), samples(root, "SF")).task == "SF"
    assert pair_of(Workspace(root), samples(root, "KS")) is None, "its rows are missing"
    with pytest.raises(UserError, match="the rows of ASR are not in"):
        pair_of(Workspace(root), Path("samples_ASR_other100_d.json"))


def test_too_long_answers_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Answers may be cut at the limit, or longer with their row than the LM's positions."""
    rows = [range(10), range(10), range(4)]
    answers = {row: {"symbols": count} for row, count in enumerate((5, 3, 5))}
    report_long(rows, answers, Options(max_labels=5, max_units=99), max_positions=12)
    printed = capsys.readouterr().out
    assert "2 free answers were cut after 5 labels" in printed
    assert "2 rows with their answers exceed the 12 positions" in printed
    assert "(15 at most)" in printed
    report_long(rows, answers, Options(max_labels=6, max_units=99), max_positions=15)
    assert capsys.readouterr().out == ""
