"""A text task through every stage on a tiny LM: rows whose units tell their characters."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from experiments import study_cell
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.rows import Row, write_rows
from pipeline.workspace import REPOSITORY, Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from ulm_prompt import cal_acc, gen_labelspace, make_data, plot, verbalizer
from ulm_prompt.prompt_data.tasks import Pair, load_task, sequence_pair
from ulm_prompt.scoring.sample_file import report_long
from ulm_prompt.scoring.sequence_scores import score_sequences

UNIT_MODEL = "tiny100"
WORDS = ("AB", "BAB", "A", "AAB")
NAMES = [("character", " "), ("character", "A"), ("character", "B"), ("slot_type", "city")]
CODES = {" ": 0, "A": 1, "B": 2, "<": 3}


def write_texts(root: Path, downstream: str, seed: int = 0) -> None:
    """One to three words an utterance, SF's last one a slot; units are the labels plus 10."""
    workspace = Workspace(root)
    generator = random.Random(seed)
    for split, count in {"train": 60, "valid": 9, "test": 13}.items():
        rows = []
        for number in range(count):
            words = generator.choices(WORDS, k=generator.randint(1, 3))
            if downstream == "audio_snips":
                words[-1] = f"<{words[-1]}<"
            labels = [CODES[character] for character in " ".join(words)]
            units = [10 + label for label in labels]
            columns = (" ".join(map(str, values)) for values in (units, labels))
            rows.append(Row(f"{split}/{number}.flac", *columns))
        write_rows(workspace.rows(downstream, UNIT_MODEL, split), rows)
    names = NAMES[: 3 + (downstream == "audio_snips")]
    labels = {str(i): {"slot": slot, "name": name} for i, (slot, name) in enumerate(names)}
    path = workspace.downstream_data(downstream) / UNIT_MODEL / "labels.json"
    path.write_text(json.dumps(labels))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both text tasks, trained a little and decoded in one process; KS's samples as they look."""
    root = tmp_path_factory.mktemp("workspace")
    for downstream in ("librispeech", "audio_snips"):
        write_texts(root, downstream)
    for path in (samples(root, "KS"), samples(root, "KS", within=True)):
        write_json(path, {"0": {"file_name": "a", "src": "1 2", "label": "7", "predict": "7"}})
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    common = ["--workspace", str(root)]
    dated = [*common, "--date", "d", "--set", "max_update=2", "batch_size=60"]
    sampled = [*common, "--model_date", "d", "--sample_date", "s"]
    commands = [[name, *common] for name in
                ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess")]  # fmt: skip
    commands += [
        ["train", *dated],
        ["sample", *sampled, "--max_labels", "12", "--dtype", "float32"],
    ]
    code = [sys.executable, "-m", "tests.ulm_prompt.stages_in_a_row", json.dumps(commands)]
    result = subprocess.run(code, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (root / "printed").write_text(result.stdout)
    return root


def called(script: ModuleType, *args: object) -> None:
    """Run a stage in this process, where fairseq is imported already."""
    sys.argv = [script.__name__, *map(str, args)]
    script.main()


def samples(root: Path, task: str, within: bool = False) -> Path:
    path = Workspace(root).samples(task, UNIT_MODEL, "d", "s")
    return path.with_stem(path.stem + "_within_labels") if within else path


def pair(task: str) -> Pair:
    return Pair(task, UNIT_MODEL, load_task(task))


def test_published_prompt_lengths() -> None:
    """P * D * (1 + 2 L) + D of the published LM: the paper's 4.5M."""
    for task in ("ASR", "SF"):
        length = load_task(task).prefix_prompt_length
        assert length * 1024 * (1 + 2 * 12) + 1024 == 4_506_624


def test_scores_of_every_task(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """WER and CER for texts, slots for SF, and what KS has always printed."""
    called(cal_acc, "--workspace", root, "--sample_date", "s")
    printed = capsys.readouterr().out
    by_task = {re.search(r"samples_([A-Z]+)_", part)[1]: part for part in
               re.split(r"\n(?=/)", printed.split("\n\n(1)")[0].strip())}  # fmt: skip
    assert list(by_task) == ["ASR", "KS", "SF"]
    lines = by_task["KS"].splitlines()[1:]
    names = ("utterances", "accuracy", "accuracy within labels", "invalid answers")
    assert [line[:26] for line in lines] == [f"  {name:22}  " for name in names]
    for task, slots in (("ASR", 0), ("SF", 2)):
        assert len(re.findall(r"(?:WER|CER) .* %", by_task[task])) == 4 + slots
        assert by_task[task].count("slot type F1") == slots
        assert re.search(r"utterances +13\n", by_task[task])


def test_answers_within_the_labels_are_texts(root: Path) -> None:
    """Any label at any place: no unit that is none, and never empty, so nothing is invalid."""
    names = json.loads((Workspace(root).datasets(UNIT_MODEL) / "verbal.json").read_text())
    for task in ("ASR", "SF"):
        entries = json.loads(samples(root, task, within=True).read_text()).values()
        answers = [entry["predict"].split() for entry in entries]
        assert all(answer and set(answer) <= set(names[task].values()) for answer in answers)
        assert score_sequences(samples(root, task, True), Workspace(root), pair(task)).invalid == 0


def test_right_answers_score_full_marks(root: Path, tmp_path: Path) -> None:
    path = tmp_path / samples(root, "SF").name
    entries = json.loads(samples(root, "SF").read_text())
    for entry in entries.values():
        entry["predict"] = entry["label"]
    path.write_text(json.dumps(entries))
    found = score_sequences(path, Workspace(root), pair("SF"))
    assert (found.wer, found.cer, found.slot_value_cer, found.invalid) == (0, 0, 0, 0)
    assert found.right == found.slot_type_f1 == 100


def test_stale_samples_are_refused(root: Path, tmp_path: Path) -> None:
    """Read by another verbalizer, units would be other texts."""
    path = tmp_path / samples(root, "ASR").name
    entries = json.loads(samples(root, "ASR").read_text())
    entries["3"]["label"] += " 10"
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"stale, its labels are not those of .*test\.txt"):
        score_sequences(path, Workspace(root), pair("ASR"))


def test_the_figure(root: Path) -> None:
    """Every utterance of both texts in one bin; KS is no text."""
    command = (plot, "cer_by_length", "--workspace", root, "--sample_date", "s")
    called(*command, "--width", 3)
    folder = samples(root, "ASR").parent
    with open(folder / "cer_by_length.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["run"] for row in rows} == {"ASR_tiny100_d", "SF_tiny100_d"}
    assert sum(int(row["utterances"]) for row in rows) == 26
    assert (folder / "cer_by_length.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no samples of a task whose answers are texts"):
        called(*command, "--prompt_task", "KS")


def test_the_figure_of_two_decodings_tells_them_apart(root: Path) -> None:
    perfect = Workspace(root).samples("ASR", UNIT_MODEL, "d", "right")
    entries = json.loads(samples(root, "ASR").read_text())
    write_json(perfect, {n: {**one, "predict": one["label"]} for n, one in entries.items()})
    called(plot, "cer_by_length", "--workspace", root, "--sample_date", "right", "s", "--width", 90)
    with open(perfect.parent / "cer_by_length.csv", newline="") as handle:
        found = {row["run"]: float(row["cer"]) for row in csv.DictReader(handle)}
    assert list(found) == ["right: ASR_tiny100_d", "s: ASR_tiny100_d", "s: SF_tiny100_d"]
    assert found["right: ASR_tiny100_d"] == 0 < found["s: ASR_tiny100_d"]


def test_a_sample_files_task_is_told_by_its_name(root: Path) -> None:
    workspace = Workspace(root)
    assert sequence_pair(workspace, samples(root, "SF")).task == "SF"
    assert sequence_pair(workspace, samples(root, "KS")) is None
    with pytest.raises(UserError, match="the rows of ASR that it was decoded from are not in"):
        sequence_pair(workspace, Path("samples_ASR_other100_d.json"))


@pytest.mark.parametrize(("task", "labels"), [("ASR", 29), ("SF", 69)])
def test_the_papers_labels_each_get_a_unit(tmp_path: Path, task: str, labels: int) -> None:
    """In texts of the paper's mean lengths, the k-th most frequent label is the k-th unit."""
    downstream, workspace = load_task(task).downstream, Workspace(tmp_path)
    generator = random.Random(1)
    for split, count in {"train": 30, "valid": 2, "test": 2}.items():
        rows = []
        for number in range(count):
            units = [*range(100), *generator.choices(range(100), k=300)]
            text = [*range(labels), *generator.choices(range(labels), k=173 - labels)]
            columns = (" ".join(map(str, values)) for values in (units, text))
            rows.append(Row(f"{number}.flac", *columns))
        write_rows(workspace.rows(downstream, UNIT_MODEL, split), rows)
    for script in (make_data, gen_labelspace, verbalizer):
        called(script, "--workspace", tmp_path)
    names = json.loads((workspace.datasets(UNIT_MODEL) / "verbal.json").read_text())[task]
    assert len(names) == len(set(names.values())) == labels
    text = workspace.prompt_text(UNIT_MODEL, downstream, "data_freq", "train").read_text()
    counts = [Counter(), Counter()]
    for line in text.splitlines():
        for counter, part in zip(counts, line.split(" <s> ")):
            counter.update(part.split())
    units, renamed = counts
    found = [renamed[unit] for unit, _ in units.most_common(labels)]
    assert found == sorted(renamed.values(), reverse=True)


def test_more_labels_than_units(tmp_path: Path) -> None:
    """Texts have any number of labels, but each needs a unit to be named by."""
    write_texts(tmp_path, "librispeech")
    workspace = Workspace(tmp_path)
    path = workspace.rows("librispeech", UNIT_MODEL, "train")
    path.write_text("".join(f"{number}.flac|10 11|{number}\n" for number in range(3)))
    called(make_data, "--workspace", tmp_path)
    called(gen_labelspace, "--workspace", tmp_path)
    with pytest.raises(UserError, match="3 labels but only 2 distinct units"):
        called(verbalizer, "--workspace", tmp_path)


def test_answers_that_are_too_long_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at the limit, or longer with their row than the LM's positions: how many of each."""
    rows = [range(10), range(10), range(4)]
    answers = {row: {"symbols": count} for row, count in
               enumerate((5, 3, 5))}  # fmt: skip
    report_long(rows, answers, limit=5, positions=12, max_units=99)
    printed = capsys.readouterr().out
    assert "2 free answers were cut after 5 labels" in printed
    assert "2 rows are longer with their answer than the 12 positions" in printed
    assert "(15 at most)" in printed
    report_long(rows, answers, limit=6, positions=15, max_units=99)
    assert capsys.readouterr().out == ""


def test_a_study_of_texts_has_their_scores(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table and CSV say WER and CER, not how many texts are right."""
    monkeypatch.setattr(
        study_cell, "run_stage", lambda name, workspace, flags: call(name, workspace.root, *flags)
    )
    call("study", root, "seeds", "--prompt_task", "ASR", "--unit_model", UNIT_MODEL, "--seeds", 1,
         "--test", "--set", "max_update=4", "validate_every=2", "warmup_updates=1")  # fmt: skip
    (row,) = csv.DictReader((root / f"samples/studies/seeds_ASR_{UNIT_MODEL}.csv").open())
    path = Workspace(root).samples("ASR", UNIT_MODEL, "seeds_fast_seed1", "seeds_fast_seed1")
    scores = score_sequences(path, Workspace(root), Pair("ASR", UNIT_MODEL, load_task("ASR")))
    assert float(row["test_WER"]) == scores.wer and float(row["test_CER"]) == scores.cer
    table = (root / f"samples/studies/seeds_ASR_{UNIT_MODEL}.md").read_text()
    assert "| test WER | test CER | seeds |" in table and "slot" not in table
