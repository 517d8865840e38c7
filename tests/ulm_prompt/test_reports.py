"""Reports on a classifier's answers against a slow count, and the pictures of a prompt."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.classifiers.answers import write_answers
from pipeline.files import sha256, write_json
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.forked import stage
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_lm.model import PromptLanguageModel, attention_on_prompt
from ulm_prompt.prompt_lm.prompt import Prompt
from ulm_prompt.scoring.class_report import answers, class_report, without_a_prompt
from ulm_prompt.scoring.pictures import OTHER
from ulm_prompt.scoring.scores import Label, wilson

NAMES = {
    "71": Label("action", "start"), "12": Label("action", "stop"), "5": Label("object", "lamp"),
    "6": Label("object", "heat"), "7": Label("object", "fan"),
}  # fmt: skip


def write_samples(path: Path, seed: int = 0) -> list[dict]:
    """Sixty rows with wrong, invalid and too short answers, and their twin with scores."""
    rng = random.Random(seed)
    rows, twin = [], []
    for number in range(60):
        label = f"{rng.choice(['71', '12'])} {rng.choice(['5', '6'])}"
        predict = rng.choice([label, label, "71 5", "12 7", "71", "99 5", ""])
        within = rng.choice([label, "71 6"])
        row = {"file_name": f"{number}.wav", "src": "1 2", "label": label}
        rows.append(row | {"predict": predict})
        twin.append(row | {"predict": within, "score": -rng.random(), "label_scores": []})
    write_json(path, {str(i): row for i, row in enumerate(rows)})
    write_json(
        path.with_stem(path.stem + "_within_labels"), {str(i): row for i, row in enumerate(twin)}
    )
    return rows


def spoken_class(units: str) -> str:
    return ", ".join(NAMES[unit].name for unit in units.split())


def test_every_class_slot_and_mistake_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "samples_X_u_d.json"
    rows = write_samples(path)
    report = class_report(path, NAMES)
    assert sum(score["utterances"] for score in report["classes"]) == 60
    for score in report["classes"]:
        units = next(r["label"] for r in rows if score["name"] == spoken_class(r["label"]))
        spoken = [row for row in rows if row["label"] == units]
        answered = [row for row in rows if row["predict"] == units]
        right = sum(row["predict"] == units for row in spoken)
        assert score["utterances"] == len(spoken)
        assert score["recall"] == pytest.approx(100 * right / len(spoken))
        assert score["precision"] == pytest.approx(100 * right / max(1, len(answered)))
        assert score["f1"] == pytest.approx(200 * right / (len(spoken) + len(answered)))
    for index, slot in enumerate(("action", "object")):
        right = [
            r["predict"].split()[index : index + 1] == [r["label"].split()[index]] for r in rows
        ]
        assert report["slots"][slot] == pytest.approx(100 * sum(right) / 60)
    _, answered, classes = answers(path, NAMES)
    assert set(answered) <= {*classes, OTHER} and answered.count(OTHER) > 5 and OTHER not in classes
    twin = json.loads((tmp_path / "samples_X_u_d_within_labels.json").read_text())
    wrong = [row for row in twin.values() if row["label"] != row["predict"]]
    wrong.sort(key=lambda row: row["score"], reverse=True)
    assert [m["file_name"] for m in report["mistakes"]] == [row["file_name"] for row in wrong]
    assert report["mistakes"][0]["probability"] == pytest.approx(math.exp(wrong[0]["score"]))


def test_attention_on_the_prompt_is_what_a_full_computation_finds():
    """One softmax over all P + T keys of every head, from the plain formula."""
    model = tiny.prompted(length=4, seed=3)
    rows = [torch.tensor([2, 30, 40, 0]), torch.tensor([2, 7, 50, 60, 61, 62, 0])]
    expected = torch.zeros(3, 4, 4)
    with torch.no_grad():
        for row in rows:
            x = model.embed(row[None], model.positions(len(row)))
            for index, layer in enumerate(model.lm.decoder.layers):
                normed = layer.self_attn_layer_norm(x)[0]
                inputs = torch.cat([model.prompt.keys[index], normed])
                keys = layer.self_attn.k_proj(inputs).view(len(inputs), 4, 8)
                query = layer.self_attn.q_proj(normed[-1]).view(4, 8)
                for head in range(4):
                    weights = torch.softmax(keys[:, head] @ query[head] / 8**0.5, 0)
                    expected[index, head] += weights[:4] / len(rows)
                mask = model.causal_mask(len(row))
                x = model.block(layer, x, model.prefixes()[index], mask)
    shares = attention_on_prompt(model, rows)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-6)
    assert 0.01 < shares.sum(2).mean() < 0.99


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Intents with named labels, their samples, a prompt and its log."""
    root = tmp_path_factory.mktemp("reports")
    space = Workspace(root)
    tiny.write_corpus(root, downstream="fluent_commands")
    names = {
        str(i): {"slot": ("action", "object", "place")[i // 4], "name": f"n{i}"} for i in range(12)
    }
    write_json(space.rows("fluent_commands", "tiny100", "train").parent / "labels.json", names)
    tiny.write_lm(space.lm("tiny100"))
    for script in ("make_data", "gen_labelspace", "verbalizer"):
        stage(f"ulm_prompt/{script}.py", "--workspace", root)
    model = PromptLanguageModel(tiny.lm(), Prompt(3, 5, 32))
    folder = space.checkpoints("IC", "tiny100", "d")
    folder.mkdir(parents=True)
    weights = {**model.lm.state_dict(), **model.prompt.published_state()}
    torch.save({"model": weights}, folder / "checkpoint_best.pt")
    stage("ulm_prompt/sample.py", "--workspace", root, "--model_date", "d", "--sample_date", "s")
    return root


def picture(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5
    return pixels


def test_the_report_of_a_sample_file(workspace):
    said = stage(
        "ulm_prompt/cal_acc.py", "--workspace", workspace, "--sample_date", "s", "--report"
    )
    for word in ("accuracy of action", "accuracy of place", "precision", "mistakes", " -> "):
        assert word in said
    picture(workspace / "samples/samples_s/samples_IC_tiny100_d_confusion.png")
    flags = ("--sample_date", "s", "s", "--report", "--mistakes", "2", "--json")
    (one,) = json.loads(stage("ulm_prompt/cal_acc.py", "--workspace", workspace, *flags)).values()
    assert len(one["mistakes"]) == 2 and set(one["slots"]) == {"action", "object", "place"}
    assert sum(entry["utterances"] for entry in one["classes"]) == one["utterances"] == 29
    said = stage("ulm_prompt/cal_acc.py", "--workspace", workspace, "--sample_date", "s")
    assert "precision" not in said and said.count("accuracy") == 2


def test_a_baseline_s_report_names_its_labels(workspace):
    """Its answers are label numbers, without probabilities; the prompt's report is there, too."""
    labels, answers = ["0 4 8", "1 5 9", "0 4 8"], ["0 4 8", "1 5 10", "0 4 8"]
    path = Workspace(workspace).samples("IC", "tiny100", "ngrams_s", "s")
    write_answers(path, ["a.wav", "b.wav", "c.wav"], labels, answers)
    try:
        flags = ("--workspace", workspace, "--sample_date", "s", "--report", "--json")
        (prompt, report) = json.loads(stage("ulm_prompt/cal_acc.py", *flags)).values()
    finally:
        for left in path.parent.glob("*ngrams*"):
            left.unlink()
    assert prompt["mistakes"] and report["mistakes"] == []
    assert {one["name"]: one["recall"] for one in report["classes"]} == {
        "n0, n4, n8": 100, "n1, n5, n9": 0,
    }  # fmt: skip
    assert report["slots"]["action"] == 100 > report["slots"]["place"]


def test_pictures_need_no_window_and_name_what_is_missing(workspace):
    flags = ("--workspace", workspace)
    assert "curves: name the run" in stage("ulm_prompt/plot.py", "curves", *flags, code=2)
    said = stage("ulm_prompt/plot.py", "curves", *flags, "--date", "d", code=2)
    assert "train.log: not found" in said
    stage("ulm_prompt/plot.py", "verbalizer", *flags)
    stage("ulm_prompt/plot.py", "attention", *flags, "--date", "d", "--utterances", 5)
    for name in ("verbalizer_IC_tiny100", "attention_IC_tiny100_d"):
        picture(workspace / "samples" / "plots" / f"{name}.png")


@pytest.mark.parametrize(("right", "count"), [(94, 100), (0, 12), (12, 12), (2894, 3081), (1, 2)])
def test_an_interval_holds_the_shares_that_the_count_allows(right: int, count: int) -> None:
    """Its ends are the true shares of which ``right`` is 1.96 standard deviations away."""
    ends = [end / 100 for end in wilson(100 * right / count, count)]
    for end, edge in zip(ends, (0.0, 1.0)):
        distance = abs(right - count * end)
        deviation = math.sqrt(count * end * (1 - end))
        assert end == edge or distance == pytest.approx(1.959964 * deviation, rel=1e-6)
    assert ends[0] <= right / count <= ends[1]


def test_a_report_says_what_an_answer_without_a_prompt_reaches(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    tiny.write_corpus(tmp_path, downstream="speech_commands")
    for name in ("make_data", "gen_labelspace", "verbalizer"):
        stage(f"ulm_prompt/{name}.py", "--workspace", tmp_path)
    units = Pair("KS", "tiny100", load_task("KS"))
    path = workspace.samples("KS", "tiny100", "d", "d")
    labels = list("555543333")
    write_json(path, {str(n): {"file_name": "a", "src": "1 <s>", "label": label, "predict": "5"}
                      for n, label in enumerate(labels)})  # fmt: skip
    assert without_a_prompt(path, workspace, units) == {"the most frequent label": 400 / 9}
    card = tmp_path / "checkpoints" / "KS_tiny100_ngrams_x" / "ngrams.json"
    rows = sha256(workspace.rows("speech_commands", "tiny100", "test"))
    write_json(card, {"rows": {"test": rows}, "test": {"accuracy": 71.5}})
    assert without_a_prompt(path, workspace, units)["unit n-grams, linear"] == 71.5
    write_json(card, {"rows": {"test": "of others"}, "test": {"accuracy": 71.5}})
    assert "unit n-grams, linear" not in without_a_prompt(path, workspace, units)
