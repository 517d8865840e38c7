"""Reports on a classifier's answers against a slow count, and the pictures of a prompt."""

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
from pipeline.files import write_json
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_lm.model import PromptLanguageModel, attention_on_prompt
from ulm_prompt.prompt_lm.prompt import Prompt
from ulm_prompt.scoring.class_report import (
    OTHER,
    class_report,
    in_names,
    print_comparison,
    print_report,
)
from ulm_prompt.scoring.sample_file import write_samples
from ulm_prompt.scoring.scores import Label

NAMES = {
    "71": Label("action", "start"), "12": Label("action", "stop"), "5": Label("object", "lamp"),
    "6": Label("object", "heat"), "7": Label("object", "fan"),
}  # fmt: skip


def test_every_class_slot_and_mistake_is_counted(tmp_path: Path) -> None:
    """Sixty rows with wrong, invalid and too short answers."""
    path, rng, sources, answers = tmp_path / "samples_X_u_d.json", random.Random(0), [], {}
    for number in range(60):
        label = f"{rng.choice(['71', '12'])} {rng.choice(['5', '6'])}"
        sources.append({"file_name": f"{number}.wav", "src": "1 2", "label": label})
        within = {"predict": rng.choice([label, "71 6"]), "score": -rng.random()}
        free = {"predict": rng.choice([label, label, "71 5", "12 7", "71", "99 5", ""])}
        answers[number] = {"free": free, "within": within}
    write_samples(path, sources, answers, scored=False)
    rows = [(row["label"], answers[n]["free"]["predict"]) for n, row in enumerate(sources)]
    named = in_names(path, NAMES)
    report = class_report(named)
    errors = [score["errors"] for score in report["classes"]]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) == sum(label != answer for label, answer in rows)
    for index, slot in enumerate(("action", "object")):
        right = sum(a.split()[index : index + 1] == [b.split()[index]] for b, a in rows)
        assert report["slots"][slot] == pytest.approx(100 * right / 60)
    _, objects, classes = named.answers(slice(1, 2))
    assert classes == ["heat", "lamp"]
    assert objects.count("lamp") == sum(answer.endswith(" 5") for _, answer in rows)
    _, answered, classes = named.answers()
    assert set(answered) <= {*classes, OTHER} and answered.count(OTHER) > 5 and OTHER not in classes
    wrong = sorted(
        (-answers[n]["within"]["score"], source["file_name"])
        for n, source in enumerate(sources)
        if source["label"] != answers[n]["within"]["predict"]
    )
    assert [mistake["file_name"] for mistake in report["mistakes"]] == [name for _, name in wrong]
    assert report["mistakes"][0]["probability"] == pytest.approx(math.exp(-wrong[0][0]))


def test_a_report_of_many_classes_is_short_and_in_columns(capsys: pytest.CaptureFixture) -> None:
    """The slots first; the 30 classes with the most errors, the rest in one line."""
    shares = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    classes = [{"name": f"class {n}", "utterances": 1, "errors": n < 40, **shares}
               for n in range(90)]  # fmt: skip
    slots = {"numberOfShots": 46.24, "size": 100.0}
    print_comparison({"slots": slots, "most_frequent": slots})
    print_report({"classes": classes, "mistakes": [], "confusion": "c.png"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "  numberOfShots    46.24%    46.24%", "  size            100.00%   100.00%",
    ]  # fmt: skip
    assert sum(line.startswith("  class ") for line in lines) == 31
    assert "  and 60 more classes: 60 utterances, 10 errors (--json lists them)" in lines


def test_attention_on_the_prompt_is_what_a_full_computation_finds() -> None:
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


def write_intents(root: Path, **names: str) -> Workspace:
    """Intents with named labels, other than n0 to n11 by ``names``, an LM, and their text."""
    space = Workspace(root)
    tiny.write_corpus(root, downstream="fluent_commands")
    slots = ("action", "object", "place")
    labels = {str(i): {"slot": slots[i // 4], "name": names.get(f"n{i}", f"n{i}")}
              for i in range(12)}  # fmt: skip
    write_json(space.rows("fluent_commands", "tiny100", "labels.json"), labels)
    tiny.write_lm(space.lm("tiny100"))
    for script in ("make_data", "gen_labelspace", "verbalizer"):
        call(script, root)
    return space


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Intents, a prompt and its samples."""
    space = write_intents(tmp_path_factory.mktemp("reports"))
    model = PromptLanguageModel(tiny.lm(), Prompt(3, 5, 32))
    folder = space.checkpoints("IC", "tiny100", "d")
    folder.mkdir(parents=True)
    weights = {**model.lm.state_dict(), **model.prompt.published_state()}
    torch.save({"model": weights}, folder / "checkpoint_best.pt")
    call("sample", space.root, "--model_date", "d", "--sample_date", "s")
    return space


def check_picture(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5


def test_the_report_of_a_sample_file(workspace: Workspace) -> None:
    score = ("cal_acc", workspace.root, "--sample_date", "s")
    said = call(*score, "--report")
    for word in ("slot    accuracy  train's most", "errors  precision", "mistakes", " -> "):
        assert word in said
    check_picture(workspace.root / "samples/samples_s/samples_IC_tiny100_d_confusion.png")
    (one,) = json.loads(call(*score, "s", "--report", "--mistakes", 2, "--json")).values()
    assert len(one["mistakes"]) == 2 and set(one["slots"]) == {"action", "object", "place"}
    assert sum(entry["utterances"] for entry in one["classes"]) == one["utterances"] == 29
    said = call(*score)
    assert "precision" not in said and "\n  place " in said


def test_a_baseline_s_report_names_its_labels(workspace: Workspace) -> None:
    """Its answers are label numbers, without probabilities; the prompt's report is there, too."""
    labels, answers = ["0 4 8", "1 5 9", "0 4 8"], ["0 4 8", "1 5 10", "0 4 8"]
    path = workspace.samples("IC", "tiny100", "ngrams_s", "s")
    write_answers(path, ["a.wav", "b.wav", "c.wav"], labels, answers)
    score = ("cal_acc", workspace.root, "--sample_date", "s", "--report")
    try:
        assert "n1, n5, n9 " in call(*score)
        prompt, report = json.loads(call(*score, "--json")).values()
    finally:
        for left in path.parent.glob("*ngrams*"):
            left.unlink()
    assert prompt["mistakes"] and report["mistakes"] == []
    recalls = {one["name"]: one["recall"] for one in report["classes"]}
    assert recalls == {"n0, n4, n8": 100, "n1, n5, n9": 0}
    assert report["slots"]["action"] == 100 > report["slots"]["place"]


def test_pictures_need_no_window_and_name_what_is_missing(workspace: Workspace) -> None:
    root = workspace.root
    for script, flags, message in (
        ("plot", ("curves",), "curves: name the run"),
        ("plot", ("curves", "--date", "d"), "train.log: not found"),
        ("cal_acc", ("--sample_date", "s", "--unit_model", "x"),
         r"samples_\*_x_\*.json: no samples; .*there is IC_tiny100_d"),
        ("cal_acc", ("--sample_date", "t"), "there is s$"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            call(script, root, *flags)
    call("plot", root, "verbalizer")
    tiny.write_corpus(root, "other", "speech_commands")  # neither an LM nor a prompt
    tiny.write_corpus(root, "tiny100", "speech_commands")  # no prompt
    attention = ("attention", "--date", "d", "--utterances", 5)
    try:
        said = call("plot", root, *attention)
        assert "KS tiny100: passed over, " in said and "IC tiny100 -> " in said
        with pytest.raises(UserError, match="there is KS other, KS tiny100, IC tiny100"):
            call("plot", root, *attention, "--unit_model", "hubert")
    finally:
        shutil.rmtree(workspace.downstream_data("speech_commands"))
    for name in ("verbalizer_IC_tiny100", "attention_IC_tiny100_d"):
        check_picture(root / "samples" / "plots" / f"{name}.png")
