"""Scores compared with slow or independent computations, and the figures printed next to them."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import precision_recall_fscore_support, roc_curve

from pipeline.files import read_json, sha256, write_json
from pipeline.rows import SPLITS, Row, write_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.test_model import published_logits
from ulm_prompt.prompt_data.label_names import Label
from ulm_prompt.scoring import pictures
from ulm_prompt.scoring.class_report import comparison
from ulm_prompt.scoring.sample_file import within_path
from ulm_prompt.scoring.scores import (
    class_scores,
    detection_scores,
    score,
    train_curve,
    wilson,
)
from ulm_prompt.scoring.sequence_scores import (
    NO_LABEL,
    Answered,
    Text,
    binned,
    read_text,
    score_texts,
)


@pytest.mark.parametrize(("right", "count"), [(94, 100), (0, 12), (12, 12), (2894, 3081), (1, 2)])
def test_the_ends_of_an_interval(right: int, count: int) -> None:
    """``right`` is 1.96 standard deviations away from the expected count at each end."""
    ends = [end / 100 for end in wilson(100 * right / count, count)]
    for end, edge in zip(ends, (0.0, 1.0)):
        deviation = math.sqrt(count * end * (1 - end))
        assert end == edge or abs(right - count * end) == pytest.approx(1.959964 * deviation)
    assert ends[0] <= right / count <= ends[1]


@pytest.mark.parametrize(("seed", "targets", "digits"), [(1, 7, 1), (2, 60, 0), (3, 200, 5)])
def test_error_rates_of_two_classes(seed: int, targets: int, digits: int) -> None:
    """Compare with scikit-learn's ROC and a root finder, and a loop over thresholds; with ties."""
    generator = np.random.default_rng(seed)
    yes = generator.normal(1, 1, targets).round(digits)
    no = generator.normal(0, 1, 300).round(digits)
    labels = [1] * targets + [0] * 300
    alarms, hits, _ = roc_curve(labels, [*yes, *no], drop_intermediate=False)
    expected = brentq(lambda x: 1 - x - np.interp(x, alarms, hits), 0, 1)
    costs = []
    for threshold in [*yes, *no, math.inf]:
        misses = sum(score < threshold for score in yes) / targets
        false = sum(score >= threshold for score in no) / 300
        costs.append((0.05 * misses + 0.95 * false) / 0.05)
    scores = detection_scores(yes.tolist(), no.tolist())
    assert scores == pytest.approx((100 * expected, min(costs)))
    assert detection_scores([2.0], [1.0]) == (0, 0)
    assert detection_scores([-math.inf, 3.0], [1.0, 2.0])[0] == 50


def test_scores_of_classes() -> None:
    generator = random.Random(4)
    spoken, answered = (generator.choices(letters, k=90) for letters in ("abc", "abcx"))
    expected = precision_recall_fscore_support(spoken, answered, labels=["a", "b", "c"])
    for scores, *figures, count in zip(class_scores(spoken, answered), *expected):
        shares = [scores["precision"], scores["recall"], scores["f1"]]
        assert shares == pytest.approx([100 * figure for figure in figures])
        assert scores["utterances"] == count
        assert scores["errors"] == round(count * (1 - figures[1]))


def text(*labels: str) -> Text:
    """Return labels as a text; a name of more than one character is a slot type."""
    return read_text(Label("slot_type" if len(name) > 1 else "character", name) for name in labels)


def scores_of_texts(*pairs: tuple[Text, Text]) -> dict[str, float]:
    return score_texts([Answered(*pair, labels=3, right=pair[0] == pair[1]) for pair in pairs])


def test_scores_of_texts_by_hand() -> None:
    """Edits are counted over all utterances; F1 is a mean; a slot value meets its nearest value."""
    first = text("artist", *"AB", "artist"), text("artist", "B", "artist")
    second = text(*"A B"), text(*"A A ", "city", "B", "city")
    assert scores_of_texts(first, second) == {
        "utterances": 2, "WER": pytest.approx(100 * (1 + 1) / (1 + 2)), "CER": 100 * (1 + 2) / 5,
        "slot type F1": 100 * (1 + 0) / 2, "slot value CER": 100 * 1 / 2, "all right": 0,
        "invalid answers": 0,
    }  # fmt: skip
    two = text("city", "A", "city", "date", "B", "date")
    scores = scores_of_texts((two, text("city", "B", "city", "city", "A", "city")))
    assert (scores["WER"], scores["CER"], scores["slot value CER"]) == (100, 100, 100 * (0 + 1) / 2)
    assert scores["slot type F1"] == pytest.approx(100 * 2 / (2 + 1))
    answers = [text(), text(NO_LABEL, "B"), text("artist"), text(*"AB")]
    scores = scores_of_texts(*((text(*"AB"), answer) for answer in answers))
    assert (scores["invalid answers"], scores["all right"]) == (50, 25), "empty, or no label"
    assert scores["CER"] == 100 * (2 + 1 + 2 + 0) / 8 and "slot value CER" not in scores


@pytest.mark.parametrize(
    ("typed", "slots"),
    [
        (["artist", *"AB"], [("artist", "AB")]),  # never closed
        (["artist", "A", "city", "B", "city"], [("artist", "A"), ("city", "B")]),
        (["artist", "artist"], [("artist", "")]),
        (["A", "artist", " ", "B", " ", "artist", "A"], [("artist", "B")]),
    ],
)
def test_answers_whose_slots_do_not_close(typed: list[str], slots: list[tuple[str, str]]) -> None:
    assert list(text(*typed).slots) == slots


def test_bins_of_label_length() -> None:
    """Every utterance is in one bin. The CER of a bin counts edits over all its utterances."""
    lengths = {1: "A", 20: "AB", 21: "B", 60: "AA"}
    answered = [Answered(Text("AB"), Text(answer), n, False) for n, answer in lengths.items()]
    assert binned(answered, width=20) == [(1, 20, 2, 25), (21, 40, 1, 50), (41, 60, 1, 50)]


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Write KS with two labels, and the answers of a random prompt."""
    workspace = Workspace(tmp_path_factory.mktemp("two"))
    generator = random.Random(5)
    for split, count in {"train": 40, "valid": 9, "test": 30}.items():
        rows = [
            Row(f"{n}.wav", " ".join(str(generator.randrange(100)) for _ in range(6)), label)
            for n, label in enumerate(generator.choices("01", (5, 2), k=count))
        ]
        write_rows(workspace.rows("speech_commands", "tiny100", split), rows)
    names = {"0": {"slot": "keyword", "name": "other"}, "1": {"slot": "keyword", "name": "wake"}}
    write_json(workspace.rows("speech_commands", "tiny100", "labels.json"), names)
    tiny.write_lm(workspace.lm("tiny100"))
    for name in ("make_data", "gen_labelspace", "verbalizer"):
        call(name, workspace.root)
    folder = workspace.checkpoints("KS", "tiny100", "d")
    folder.mkdir(parents=True)
    state = {**tiny.lm().state_dict(), **tiny.prompted().prompt.published_state()}
    torch.save({"model": state}, folder / "checkpoint_best.pt")
    flags = "--model_date", "d", "--sample_date", "s", "--dtype", "float32"
    call("sample", workspace.root, *flags)
    return workspace


def test_detection_from_rows_to_cost(two_classes: Workspace) -> None:
    """Compare the log-odds of the rarer label, wake, with the log-odds of the published model."""
    path = two_classes.samples("KS", "tiny100", "d", "s")
    model, symbols = tiny.prompted(), tiny.dictionary()
    units = read_json(two_classes.datasets("tiny100") / "verbal.json", "")["KS"]
    scores: dict[bool, list[float]] = {True: [], False: []}
    for row in read_json(within_path(path), "").values():
        tokens = [symbols.eos(), *(symbols.index(unit) for unit in row["src"].split())]
        inputs = model.lm, model.prompt, torch.tensor([tokens]), model.prompt.inputs
        logits = published_logits(*inputs)[0, -1]
        odds = (logits[symbols.index(units["1"])] - logits[symbols.index(units["0"])]).item()
        assert row["log_odds"] == pytest.approx(abs(odds), abs=1e-3)
        assert (row["predict"] == units["1"]) == (odds > 0)
        scores[row["label"] == units["1"]].append(odds)
    assert 0 < len(scores[True]) < len(scores[False]), "wake is the rarer label"
    file_scores = score(path)
    figures = file_scores["eer"], file_scores["detection_cost"]
    assert figures == pytest.approx(detection_scores(scores[True], scores[False]), abs=1e-6)
    printed = call("cal_acc", two_classes.root, "--sample_date", "s")
    assert f"EER                     {file_scores['eer']:.2f} %" in printed
    assert f"minimum detection cost  {file_scores['detection_cost']:.4f}\n" in printed
    assert "C_miss=1, C_fa=1, P_target=0.05" in printed and "the rarer label, wake\n" in printed


def test_accuracies_without_a_prompt(two_classes: Workspace) -> None:
    """The most frequent label is of train. Only n-grams of the current rows are printed."""
    paths = {s: two_classes.rows("speech_commands", "tiny100", s) for s in SPLITS}
    zeros = sum(line.endswith("|0") for line in paths["test"].read_text().splitlines())
    record = two_classes.root / "checkpoints" / "KS_tiny100_ngrams_x" / "ngrams.json"
    hashes = {split: sha256(path) for split, path in paths.items()}
    for rows, is_printed in ((hashes, True), ({**hashes, "train": "other rows"}, False)):
        write_json(record, {"rows": rows, "test": {"accuracy": 71.5}})
        printed = call("cal_acc", two_classes.root, "--sample_date", "s")
        assert f"without a prompt: train's most frequent label, {100 * zeros / 30:.2f} %" in printed
        assert ("  without a prompt: unit n-grams, linear, 71.50 %\n" in printed) == is_printed


def test_train_and_valid_of_the_run_that_was_decoded(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, date = ("--prompt_task", "IC"), ("--sample_date", "beside")
    flags = ("--recipe", "fast", "--date", "beside", "--set", "max_epoch=3", "max_update=0")
    call("train", prepared, *task, *flags, "lr_schedule=fixed")
    call("sample", prepared, *task, "--model_date", "beside", *date)
    workspace, run = Workspace(prepared), ("IC", "tiny100", "beside")
    curve = train_curve(workspace.logs(*run) / "train.log")
    record = read_json(workspace.checkpoints(*run) / "prompt.json", "")
    compared = comparison(workspace.samples(*run, "beside"), workspace)
    accuracy = curve[record["run"]["updates"]]["accuracy"]
    assert compared["run"] == {"train": accuracy, "valid": record["valid"]["accuracy"]}
    assert len(curve) == 3 and f"{accuracy:.2f} % on train" in call("cal_acc", prepared, *date)
    assert len(compared["slots"]) == 3
    assert all(0 < share < 100 for share in compared["most_frequent"].values())
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, *_: figures.append(figure))
    call("plot", prepared, "curves", "--date", "beside", *task)
    left, right = figures[0].axes
    names = ["beside, valid", "beside, train", "most frequent label of train"]
    assert [line.get_label() for line in left.lines] == names
    for axis in (left, right):
        low, high = axis.get_ylim()
        assert all(low <= y <= high for line in axis.lines for y in line.get_ydata())
