"""The learnable verbalizer against a plain slow computation: loss, gradients and answers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.test_decoding import some_rows
from tests.ulm_prompt.test_model import published_logits
from tests.ulm_prompt.test_training_step import a_sample, criterion
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.decoding import Decoded, Options, decode
from ulm_prompt.prompt_lm.label_map import LabelMap
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.model import PromptLanguageModel

PAD, EOS, SYMBOLS = 1, 2, 104
UNITS = [9, 4, 11, 6, 5, 10, 7, 8]  # all that a_sample has as labels
COUNT = 3


def a_model(noise: float = 0.3) -> PromptLanguageModel:
    model = tiny.prompted()
    label_map = LabelMap([tiny.dictionary()[unit] for unit in UNITS], tiny.dictionary(), COUNT)
    torch.manual_seed(8)
    label_map.weight.data += noise * torch.randn_like(label_map.weight)
    return PromptLanguageModel(model.lm, model.prompt, label_map).eval()


def slow_scores(model: PromptLanguageModel, tokens: list[int]) -> torch.Tensor:
    """Each label's score after ``tokens``, one row, by the published arrangement: (labels,)."""
    row = torch.tensor([tokens])
    logits = published_logits.__wrapped__(model.lm, model.prompt, row, model.prompt.inputs)[0, -1]
    weight = model.label_map.weight
    return torch.stack([(weight[label] * logits).sum() for label in range(len(UNITS))])


def slow_loss(model: PromptLanguageModel, sample: dict) -> torch.Tensor:
    """Minus the log-probability of each label among the labels, summed; ``</s>`` is certain."""
    total = torch.zeros(())
    for tokens in sample["net_input"]["tokens"].tolist():
        separator = tokens.index(0)
        labels = tokens[separator + 1 : separator + 1 + COUNT]
        for number, label in enumerate(labels):
            scores = slow_scores(model, tokens[: separator + 1 + number])
            total = total + torch.log(sum(torch.exp(scores))) - scores[UNITS.index(label)]
    return total


def test_loss_and_gradients_equal_the_slow_ones() -> None:
    model, sample = a_model(), a_sample(5)
    trained = [
        model.label_map.weight, model.prompt.keys, model.prompt.values, model.prompt.sep,
    ]  # fmt: skip
    loss, size, _ = criterion("answer")(model, sample)
    assert size == 5 * (COUNT + 1)
    found = torch.autograd.grad(loss, trained)
    expected_loss = slow_loss(model, sample)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found, torch.autograd.grad(expected_loss, trained)):
        assert theirs.norm() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_published_loss_adds_the_separator_s_and_nothing_else() -> None:
    model, sample = a_model(), a_sample(5)
    expected = slow_loss(model, sample)
    for tokens in sample["net_input"]["tokens"].tolist():
        row = torch.tensor([tokens[: tokens.index(0)]])
        logits = published_logits(model.lm, model.prompt, row, model.prompt.inputs)[0, -1]
        expected = expected - logits.log_softmax(-1)[0]
    loss, _, logged = criterion("published")(model, sample)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert logged["label_loss"] < loss


def test_gradients_of_the_map_are_not_scaled_in_float16() -> None:
    sample = a_sample(5)
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = a_model()
        model.lm.to(dtype)
        criterion("answer")(model, sample)[0].backward()
        found[dtype] = model.label_map.weight.grad
    full, half = found.values()
    assert (full - half).norm() < 0.05 * full.norm()


def decoded(model: PromptLanguageModel, rows: list[torch.Tensor], **options: object) -> list:
    sequences = list(itertools.product(UNITS, repeat=COUNT))
    labels = LabelSets.build("slots", sequences, SYMBOLS, EOS)
    chosen = Options(**{"max_labels": 10, "batch_size": 7, **options})
    found: list[Decoded] = [
        one for batch in decode(CachedLM(model, PAD, EOS), rows, labels, chosen) for one in batch
    ]
    return sorted(found, key=lambda one: one.row)


@torch.no_grad()
def test_answers_equal_the_slow_ones() -> None:
    model, rows = a_model(), some_rows(9)
    logits = CachedLM(tiny.prompted(), PAD, EOS).prefill(rows).logits
    usual, weight = logits.mean((0, 1)), model.label_map.weight  # (V,); random LMs hardly differ
    weight -= torch.outer(weight @ usual, usual) / usual.square().sum()
    answers = decoded(model, rows)
    for row, found in zip(rows, answers):
        tokens, scores = row.tolist(), []
        for _ in range(COUNT):
            each = slow_scores(model, tokens).log_softmax(-1)
            tokens.append(UNITS[each.argmax()])
            scores.append(each.max().item())
        assert found.free.symbols == found.within.symbols == tokens[-COUNT:]
        assert found.free.scores == pytest.approx(scores, abs=1e-4)
    assert len({tuple(found.free.symbols) for found in answers}) > 3, "one answer tests nothing"


def test_it_starts_as_the_fixed_verbalizer() -> None:
    fixed = tiny.prompted()
    for mine, theirs in zip(decoded(a_model(noise=0), some_rows()), decoded(fixed, some_rows())):
        assert mine.free.symbols == theirs.within.symbols


@pytest.fixture(scope="module")
def trained(prepared: Path) -> Path:
    """IC's learnable verbalizer in ten epochs, and in two and eight more."""
    knobs = ("verbalizer=learnable", "max_update=0", "lr_schedule=fixed", "lr=0.05")
    for date, epochs in (("whole", 10), ("parts", 2), ("parts", 10)):
        flags = ("--prompt_task", "IC", "--date", f"map_{date}", "--recipe", "fast", "--set")
        printed = call("train", prepared, *flags, *knobs, f"max_epoch={epochs}")
        assert f"(num. trained: {6 * 32 * 7 + 32 + 12 * SYMBOLS:,})" in printed
    return prepared


def test_it_is_saved_with_the_prompt_and_resumed(trained: Path) -> None:
    whole, parts = (
        torch.load(
            Workspace(trained).checkpoints("IC", "tiny100", date) / "checkpoint_best.pt",
            weights_only=True,
        )["model"]
        for date in ("map_whole", "map_parts")
    )
    assert whole["label_map.weight"].shape == (12, SYMBOLS)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    folder = Workspace(trained).checkpoints("IC", "tiny100", "map_whole")
    card = read_record(folder)
    assert card.training["verbalizer"] == "learnable" and card.labels_per_utterance == 3
    assert card.trained_parameters == sum(tensor.numel() for tensor in whole.values())


def test_sample_answers_with_labels_alone(trained: Path) -> None:
    """Free answers are label sequences of the right length, and far more right than by chance."""
    call(
        "sample",
        trained,
        "--prompt_task",
        "IC",
        "--model_date",
        "map_whole",
        "--sample_date",
        "map",
    )
    printed = call("cal_acc", trained, "--sample_date", "map")
    verbal = json.loads((Workspace(trained).datasets("tiny100") / "verbal.json").read_text())
    path = Workspace(trained).samples("IC", "tiny100", "map_whole", "map")
    samples = list(json.loads(path.read_text()).values())
    for entry in samples:
        answer = entry["predict"].split()
        assert len(answer) == 3 and set(answer) <= set(verbal["IC"].values())
    right = sum(
        mine == theirs
        for entry in samples
        for mine, theirs in zip(entry["predict"].split(), entry["label"].split())
    )
    assert right / (3 * len(samples)) > 0.5, "chance is a quarter"
    assert "utterances              29" in printed
