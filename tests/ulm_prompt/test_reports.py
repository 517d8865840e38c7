"""Reports on a classifier's answers, compared with a slow count; pictures of a prompt."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.classifiers.answers import write_answers
from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_data.label_names import Label
from ulm_prompt.prompt_lm.model import attention_on_prompt
from ulm_prompt.scoring.class_report import (
    OTHER,
    class_report,
    in_names,
    print_comparison,
    print_report,
)
from ulm_prompt.scoring.sample_file import write_samples

NAMES = {
    "71": Label("action", "start"), "12": Label("action", "stop"), "5": Label("object", "lamp"),
    "6": Label("object", "heat"), "7": Label("object", "fan"),
}  # fmt: skip


def test_classes_and_mistakes_are_counted(tmp_path: Path) -> None:
    """Compare sixty rows with wrong, invalid and too short answers with a slow count."""
    path, rng, sources, answers = tmp_path / "samples_X_u_d.json", random.Random(0), [], {}
    for number in range(60):
        label = f"{rng.choice(['71', '12'])} {rng.choice(['5', '6'])}"
        sources.append({"file_name": f"{number}.wav", "src": "1 2", "label": label})
        within = {"predict": rng.choice([label, "71 6"]), "score": -rng.random()}
        free = {"predict": rng.choice([label, label, "71 5", "12 7", "71", "99 5", ""])}
        answers[number] = {"free": free, "within": within}
    write_samples(path, sources, answers, scored=False)
    free = [answer["free"]["predict"] for answer in answers.values()]
    named = in_names(path, NAMES)
    report = class_report(named)
    errors = [score["errors"] for score in report["classes"]]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) == sum(row["label"] != answer for row, answer in zip(sources, free))
    assert named.slots == ["action", "object"]
    _, objects, classes = named.answers(slice(1, 2))
    assert classes == ["heat", "lamp"]
    assert objects.count("lamp") == sum(answer.endswith(" 5") for answer in free)
    _, answered, classes = named.answers()
    assert set(answered) <= {*classes, OTHER} and answered.count(OTHER) > 5 and OTHER not in classes
    within = [(-answer["within"]["score"], n) for n, answer in answers.items()]
    wrong = [n for _, n in sorted(within) if sources[n]["label"] != answers[n]["within"]["predict"]]
    assert [mistake["file_name"] for mistake in report["mistakes"]] == [f"{n}.wav" for n in wrong]
    first = math.exp(answers[wrong[0]]["within"]["score"])
    assert report["mistakes"][0]["probability"] == pytest.approx(first)


def test_a_report_of_many_classes_is_short_and_in_columns(capsys: pytest.CaptureFixture) -> None:
    """The slots come first, then the 30 classes with the most errors, then a line for the rest."""
    shares = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    classes = [{"name": f"class {n}", "utterances": 1, "errors": n < 40, **shares}
               for n in range(90)]  # fmt: skip
    slots = {"numberOfShots": 46.24, "size": 100.0}
    print_comparison({"slots": slots, "most_frequent": slots})
    print_report({"classes": classes, "mistakes": [], "confusion": "c.png"})
    lines = capsys.readouterr().out.splitlines()
    expected = ["  numberOfShots    46.24%    46.24%", "  size            100.00%   100.00%"]
    assert lines[2:4] == expected
    assert sum(line.startswith("  class ") for line in lines) == 31
    assert "  and 60 more classes: 60 utterances, 10 errors (--json lists them)" in lines


def test_attention_on_the_prompt_equals_a_full_computation() -> None:
    """The full computation is one softmax over all P + T keys for every head."""
    model = tiny.prompted(length=4, seed=3)
    rows = [torch.tensor([2, 30, 40, 0]), torch.tensor([2, 7, 50, 60, 61, 62, 0])]
    expected = torch.zeros(3, 4, 4)
    with torch.no_grad():
        for row in rows:
            x = model.embed(row[None], model.position_vectors(len(row)))
            for index, layer in enumerate(model.lm.decoder.layers):
                normed = layer.self_attn_layer_norm(x)[0]
                inputs = torch.cat([model.prompt.keys[index], normed])
                keys = layer.self_attn.k_proj(inputs).view(len(inputs), 4, 8)
                query = layer.self_attn.q_proj(normed[-1]).view(4, 8)
                for head in range(4):
                    weights = torch.softmax(keys[:, head] @ query[head] / 8**0.5, 0)
                    expected[index, head] += weights[:4] / len(rows)
                mask = model.causal_mask(len(row))
                x = model.block(layer, x, model.layer_prompts()[index], mask)
    shares = attention_on_prompt(model, rows)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-6)
    assert 0.01 < shares.sum(2).mean() < 0.99


@pytest.fixture(scope="module")
def workspace(prepared: Path) -> Workspace:
    """Rows from elsewhere, so labels have no names; a prompt for IC only, and its sample file."""
    call("train", prepared, "--prompt_task", "IC", "--date", "r", "--set", "max_update=1")
    call("sample", prepared, "--prompt_task", "IC", "--model_date", "r", "--sample_date", "r")
    return Workspace(prepared)


def check_picture(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5


def test_the_report_of_a_sample_file(workspace: Workspace) -> None:
    """A prompt's report, then also a baseline's report: label numbers, without probabilities."""
    score = ("cal_acc", workspace.root, "--sample_date", "r")
    assert "precision" not in (printed := call(*score)) and "\n  label 3 " in printed
    printed = call(*score, "--report")
    for word in ("slot     accuracy  train's most", "errors  precision", "mistakes", " -> "):
        assert word in printed
    check_picture(workspace.root / "samples/samples_r/samples_IC_tiny100_r_confusion.png")
    path = workspace.samples("IC", "tiny100", "ngrams_r", "r")
    labels = ["0 4 8", "1 5 9", "0 4 8"]
    write_answers(path, ["a.wav", "b.wav", "c.wav"], labels, [labels[0], "1 5 10", labels[2]])
    try:
        assert "1, 5, 9 " in call(*score, "--report")
        reports = json.loads(call(*score, "--report", "--mistakes", 2, "--json"))
    finally:
        for file in path.parent.glob("*ngrams*"):
            file.unlink()
    baseline, prompt = reports.values()
    assert len(prompt["mistakes"]) == 2 and set(prompt["slots"]) == {"label", "label 2", "label 3"}
    assert sum(entry["utterances"] for entry in prompt["classes"]) == prompt["utterances"] == 29
    recalls = {entry["name"]: entry["recall"] for entry in baseline["classes"]}
    assert recalls == {"0, 4, 8": 100, "1, 5, 9": 0} and baseline["mistakes"] == []


def test_pictures_need_no_window_and_missing_inputs_are_reported(workspace: Workspace) -> None:
    root = workspace.root
    for script, flags, message in (
        ("plot", "curves", "curves: name the run"),
        ("plot", "curves --date none", "train.log: not found"),
        ("cal_acc", "--sample_date r --unit_model x",
         r"samples_\*_x_\*.json: no samples; .*existing samples: IC_tiny100_r"),
        ("cal_acc", "--sample_date none", "existing samples: .*r"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            call(script, root, *flags.split())
    call("plot", root, "verbalizer")
    attention = ("attention", "--date", "r", "--utterances", 5)
    tiny.write_corpus(root, "other")  # without an LM
    try:
        printed = call("plot", root, *attention)
        with pytest.raises(UserError, match="existing data: KS other, KS tiny100, IC tiny100"):
            call("plot", root, *attention, "--unit_model", "hubert")
    finally:
        shutil.rmtree(workspace.downstream_data("speech_commands") / "other")
    assert "KS tiny100: skipped, " in printed and "IC tiny100 -> " in printed
    for name in ("verbalizer_IC_tiny100", "attention_IC_tiny100_r"):
        check_picture(root / "samples" / "plots" / f"{name}.png")
