"""The learnable verbalizer compared with a plain, slow computation; its training and answers."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path

import pytest
import torch

from pipeline.devices import torch_threads
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.rows import Row, write_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from tests.ulm_prompt.test_decoding import decode_rows, some_rows, uncached
from tests.ulm_prompt.tiny import EOS, PAD, SYMBOLS
from ulm_prompt.prompt_data.label_names import unit_names
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.prompt_lm import checkpoint
from ulm_prompt.prompt_lm import labels as label_answers
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.labels import LabelAnswers
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import LabelMap
from ulm_prompt.prompt_lm.search import Decoded

UNITS, COUNT = tiny.MAPPED, 3


def decoded(model: PromptLanguageModel, rows: list[torch.Tensor]) -> list[Decoded]:
    sequences = list(itertools.product(UNITS, repeat=COUNT))
    return decode_rows(model, rows, sequences=sequences, max_labels=10)


@torch.no_grad()
def test_answers_equal_the_slow_ones() -> None:
    model, rows = tiny.mapped(), some_rows(9)
    logits = CachedLM(tiny.prompted(), PAD, EOS).prefill(rows).logits
    # a random LM gives nearly equal logits to all rows: remove the mean, so that answers differ
    mean, weight = logits.mean((0, 1)), model.label_map.weight  # (V,), (labels, V)
    weight -= torch.outer(weight @ mean, mean) / mean.square().sum()
    answers = decoded(model, rows)
    for row, answer in zip(rows, answers):
        symbols, scores = [], []
        while len(symbols) < COUNT:
            label_scores = (weight @ uncached(model, row, symbols)[-1]).log_softmax(-1)
            symbols.append(UNITS[label_scores.argmax()])
            scores.append(label_scores.max().item())
        assert answer.free.symbols == answer.within.symbols == symbols
        assert answer.free.scores == pytest.approx(scores, abs=1e-4)
    assert len({tuple(answer.free.symbols) for answer in answers}) > 3, "one answer tests nothing"


def test_it_starts_as_the_fixed_verbalizer() -> None:
    models = tiny.mapped(noise=0), tiny.prompted()
    for learnable, fixed in zip(*(decoded(model, some_rows()) for model in models)):
        assert learnable.free.symbols == fixed.within.symbols


def test_it_trains_resumes_and_answers_with_labels_alone(prepared: Path) -> None:
    """Training IC for ten epochs, and for two epochs and then eight, gives the same prompt. Free
    answers are label sequences of the right length, and are far better than chance.
    """
    workspace = Workspace(prepared)
    knobs = ("verbalizer=learnable", "max_update=0", "lr_schedule=fixed", "lr=0.05")
    for date, epochs in (("whole", 10), ("parts", 2), ("parts", 10)):
        flags = ("--prompt_task", "IC", "--date", f"map_{date}", "--recipe", "fast", "--set")
        printed = call("train", prepared, *flags, *knobs, f"max_epoch={epochs}")
        assert f"(num. trained: {6 * 32 * 7 + 32 + 12 * SYMBOLS:,})" in printed
    folder = workspace.checkpoints("IC", "tiny100", "map_whole")
    whole, parts = (
        torch.load(best, weights_only=True)["model"]
        for best in (folder / "checkpoint_best.pt", *folder.parent.glob("*map_parts/*_best.pt"))
    )
    assert whole["label_map.weight"].shape == (12, SYMBOLS)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    record = read_record(folder)
    assert record.training["verbalizer"] == "learnable" and record.labels_per_utterance == 3
    assert record.trained_parameters == sum(tensor.numel() for tensor in whole.values())
    entries, right = answered(workspace, "IC", "map_whole")
    assert len(entries) == 29 and right / (3 * 29) > 0.5, "chance is a quarter"
    for entry in entries:
        answer = entry["predict"].split()
        assert len(answer) == 3 and set(answer) <= set(record.verbal.values())


def answered(workspace: Workspace, task: str, date: str) -> tuple[list[dict], int]:
    """Run sample.py and cal_acc.py. Return the answers and the number of correct labels."""
    run = "--prompt_task", task, "--model_date", date
    call("sample", workspace.root, *run, "--sample_date", date)
    entries = list(read_json(workspace.samples(task, "tiny100", date, date), "").values())
    scores = call("cal_acc", workspace.root, "--sample_date", date)
    assert f"utterances              {len(entries)}" in scores
    pairs = [zip(entry["predict"].split(), entry["label"].split()) for entry in entries]
    return entries, sum(predicted == label for pair in pairs for predicted, label in pair)


def test_labels_beyond_the_units_are_named_by_several() -> None:
    assert unit_names(["7", "3", "9"], 5) == ["7", "3", "9", "7+3", "3+9"]
    assert unit_names(["7", "3"], 9) == ["7", "3", "7+3"]
    names = unit_names([str(unit) for unit in range(100)], 1251)
    assert len(set(names)) == 1251 and names[-1] == "28+41"
    counts = [sum(str(unit) in name.split("+") for name in names) for unit in range(100)]
    assert max(counts) - min(counts) <= 14, "no unit names far more labels than another"


def test_a_joint_name_is_the_mean_of_its_units() -> None:
    """The label starts as this mean, and the LM reads the mean before the next label."""
    model = tiny.prompted()
    model.label_map = LabelMap(["5", "7", "5+7"], tiny.dictionary(), 2)
    logits = torch.randn(2, 3, SYMBOLS)
    scores = model.label_map(logits, torch.arange(3))[:, 1]  # (B, V + 1)
    five, seven = (tiny.dictionary().index(unit) for unit in ("5", "7"))
    assert scores.shape[-1] == SYMBOLS + 1
    torch.testing.assert_close(scores[:, SYMBOLS], logits[:, 1, [five, seven]].mean(1))
    assert torch.isinf(scores).sum() == 2 * (SYMBOLS - 2)
    vectors = model.embed(torch.tensor([[five, seven, SYMBOLS]]), torch.zeros(3, 32))[0]
    torch.testing.assert_close(vectors[2], vectors[:2].mean(0))
    with pytest.raises(UserError, match="label 5.100: unit 100 is not in"):
        LabelMap(["5", "5+100"], tiny.dictionary(), 2)


def test_1251_labels_on_100_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From rows to accuracy. An answer of one label needs no step after the prefill."""
    workspace, count = Workspace(tmp_path), 1251
    tiny.write_lm(workspace.lm("tiny100"))
    drawn = random.Random(1).sample(range(count), 60)
    for split, labels in {"train": range(count), "valid": drawn, "test": drawn}.items():
        rows = [Row(f"{n}.wav", f"{n // 36} {36 + n % 36}", str(n)) for n in labels]
        write_rows(workspace.rows("speech_commands", "tiny100", split), rows)
    data_stages(tmp_path)
    dicts = workspace.data_bin("tiny100", "KS"), workspace.lm("tiny100")
    assert len({(folder / "dict.txt").read_bytes() for folder in dicts}) == 1
    task = "--prompt_task", "KS"
    with pytest.raises(UserError, match="1,180 of 1,251 labels have no unit .*=learnable"):
        call("train", tmp_path, *task, "--date", "fixed")
    assert not (tmp_path / "checkpoints").exists()
    knobs = "verbalizer=learnable", "batch_size=64", "lr=0.03", "lr_schedule=fixed", "max_epoch=5"
    with torch_threads(1):
        flags = "--date", "d", "--recipe", "fast", "--set", *knobs, "max_update=0"
        call("train", tmp_path, *task, *flags)
    folder = workspace.checkpoints("KS", "tiny100", "d")
    record = read_record(folder)
    assert record.trained_parameters == 3 * 32 * 7 + 32 + count * SYMBOLS
    monkeypatch.setattr(CachedLM, "step", None)
    samples, right = answered(workspace, "KS", "d")
    assert len(samples) == 60 and right > 6 and any("+" in entry["predict"] for entry in samples), (
        "chance is 0.05"
    )
    model, lm = checkpoint.load(folder, workspace.lm("tiny100"))
    cached = CachedLM(model, PAD, EOS)
    rows = [
        torch.tensor([EOS, *(lm.dictionary.index(unit) for unit in entry["src"].split())])
        for entry in samples
    ]
    monkeypatch.setattr(label_answers, "MOST_SCORED", 9)
    record = dataclasses.replace(record, most_labels=1)
    answers = LabelAnswers(record, lm.dictionary)(cached, cached.prefill(rows), 2)
    for (best, second), entry in zip(answers, samples):
        assert record.verbal[best.labels[0]] == entry["predict"] and best.score >= second.score
