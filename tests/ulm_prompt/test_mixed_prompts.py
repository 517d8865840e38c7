"""Rows with different prompts in one batch: each gets what its own prompt gives it alone."""

from __future__ import annotations

import pytest
import torch

from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_decoding import EOS, PAD, SYMBOLS, some_rows, uncached
from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import LabelMap, Prompt
from ulm_prompt.prompt_lm.search import Search, follow

LIMIT = 4


def models(*lengths: int) -> list[PromptLanguageModel]:
    """Different prompts of these lengths over one LM."""
    lm = tiny.lm()
    with torch.no_grad():
        lm.decoder.embed_tokens.weight[EOS] *= 25  # answers end at different steps
    torch.manual_seed(7)
    return [PromptLanguageModel(lm, Prompt(3, length, 32)).eval() for length in lengths]


def mixture(count: int) -> tuple[list[torch.Tensor], list[int]]:
    """Ragged rows, and a prompt for each in no order."""
    rows = some_rows(17)
    return rows, torch.randint(count, (len(rows),)).tolist()


def steps(lm: CachedLM, state: State) -> list[torch.Tensor]:
    """Logits over some steps of two hypotheses, ``<s>`` among their symbols."""
    found = [state.logits.expand(-1, 2, -1)]
    for symbol in (9, 0, 30):
        symbols = torch.tensor([[symbol, symbol + 1]]).expand(len(state.lengths), -1)
        state = lm.step(state, symbols, torch.zeros_like(symbols) if symbol == 9 else None)
        found.append(state.logits)
    return found


@pytest.mark.parametrize("lengths", [(5, 5), (5, 2, 9), (1, 12)])
@pytest.mark.parametrize("temperature", [None, 1.3])
def test_each_row_as_with_its_prompt_alone(
    lengths: tuple[int, ...], temperature: float | None
) -> None:
    several = models(*lengths)
    rows, which = mixture(len(lengths))
    mixed_lm = CachedLM(several, PAD, EOS)
    state = mixed_lm.prefill(rows, temperature, which)
    mixed = steps(mixed_lm, state)
    for number, model in enumerate(several):
        places = [place for place, prompt in enumerate(which) if prompt == number]
        assert places, "a prompt that no row has tests nothing"
        alone_lm = CachedLM(model, PAD, EOS)
        alone = alone_lm.prefill([rows[place] for place in places], temperature)
        assert torch.allclose(state.row_scores[places], alone.row_scores, rtol=1e-5, atol=1e-4)
        for one, other in zip(mixed, steps(alone_lm, alone)):
            assert torch.allclose(one[places], other, atol=1e-5)


@pytest.mark.parametrize("lengths", [(4, 4), (3, 8)])
def test_answers_and_scores_of_a_mixed_batch(lengths: tuple[int, ...]) -> None:
    """Rows leave the batch as they end; against the uncached published arrangement."""
    several = models(*lengths)
    rows, which = mixture(len(lengths))
    lm = CachedLM(several, PAD, EOS)
    (answers,) = follow(lm, lm.prefill(rows, which=which), range(len(rows)), LIMIT, Search())
    assert len({len(answer.symbols) for answer in answers}) > 1
    for row, number, answer in zip(rows, which, answers):
        tokens = row
        for symbol, score in zip(answer.symbols, answer.scores):
            expected = uncached(several[number], tokens)
            expected[PAD] = -torch.inf
            assert expected.argmax() == symbol
            assert score == pytest.approx(expected[symbol].item(), abs=1e-5)
            tokens = torch.cat([tokens, torch.tensor([symbol])])
        if len(answer.symbols) < LIMIT:
            assert uncached(several[number], tokens).argmax() == EOS


def test_one_prompt_in_a_list_is_one_prompt() -> None:
    (model,) = models(6)
    rows = some_rows(5)
    alone = CachedLM(model, PAD, EOS).prefill(rows)
    listed = CachedLM([model], PAD, EOS).prefill(rows)
    assert torch.equal(alone.logits, listed.logits) and listed.which is None
    assert alone.logits.shape == (5, 1, SYMBOLS)


def test_prompts_over_different_lms_are_refused() -> None:
    with pytest.raises(AssertionError, match="different LMs"):
        CachedLM([models(3)[0], models(3)[0]], PAD, EOS)


def test_a_learnable_verbalizer_beside_a_fixed_one() -> None:
    """Each row's logits go through its own prompt's label map, or through none."""
    several = models(4, 4)
    torch.manual_seed(3)
    label_map = LabelMap([7, 9, 30], SYMBOLS, 2, EOS)
    torch.nn.init.normal_(label_map.weight)
    several[1] = PromptLanguageModel(several[1].lm, several[1].prompt, label_map).eval()
    rows, which = mixture(2)
    lm = CachedLM(several, PAD, EOS)
    mixed = steps(lm, lm.prefill(rows, which=which))
    for number, model in enumerate(several):
        places = [place for place, prompt in enumerate(which) if prompt == number]
        alone = CachedLM(model, PAD, EOS)
        own = steps(alone, alone.prefill([rows[place] for place in places]))
        for one, other in zip(mixed, own):
            assert torch.allclose(one[places], other, atol=1e-5)
    assert mixed[0][which.index(1)].isinf().any() and mixed[0][which.index(0)].isfinite().all()
