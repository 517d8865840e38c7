"""Cached decoding against fairseq's SequenceGenerator over the uncached published arrangement."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import UserError
from tests.benchmarks.published_decoding import decode_as_published, hypotheses
from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_model import published_logits
from ulm_prompt.prompt_lm import labels as label_sets_module
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.search import Decoded, Options, beam_search, decode

PAD, EOS, SYMBOLS = 1, 2, 104
LIMIT = 6
SEQUENCES = [[7, 20], [7, 21], [9, 22]]


def a_model(infix: bool = False) -> PromptLanguageModel:
    """``</s>`` wins now and then, so that answers end at different steps."""
    model = tiny.prompted(infix=infix)
    with torch.no_grad():
        model.lm.decoder.embed_tokens.weight[EOS] *= 25
    return model


def cached(model: PromptLanguageModel, dtype: torch.dtype | None = None) -> CachedLM:
    return CachedLM(model, PAD, EOS, dtype)


def some_rows(count: int = 23, longest: int = 30) -> list[torch.Tensor]:
    """``</s> units <s>`` of mixed lengths."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(count):
        length = int(torch.randint(1, longest, (1,), generator=generator))
        units = torch.randint(4, SYMBOLS, (length,), generator=generator)
        rows.append(torch.cat([torch.tensor([EOS]), units, torch.tensor([0])]))
    return rows


def long_answers() -> PromptLanguageModel:
    """``</s>`` wins seldom: most answers go on for hundreds of symbols."""
    model = tiny.prompted()
    with torch.no_grad():
        model.lm.decoder.embed_tokens.weight[EOS] *= 6
    return model


def label_sets(kind: str = "slots") -> LabelSets:
    return LabelSets.build(kind, SEQUENCES, SYMBOLS, EOS)


def ours(
    model: PromptLanguageModel, rows: list[torch.Tensor], labels: str = "slots",
    dtype: torch.dtype | None = None, **options: object,
) -> list[Decoded]:  # fmt: skip
    chosen = Options(**{"max_labels": LIMIT, "batch_size": 7, **options})
    found = decode(cached(model, dtype), rows, label_sets(labels), chosen)
    return sorted((one for batch in found for one in batch), key=lambda decoded: decoded.row)


def free(found: list[Decoded]) -> list[list[int]]:
    return [decoded.free.symbols for decoded in found]


def within(found: list[Decoded]) -> list[list[int]]:
    return [decoded.within.symbols for decoded in found]


def uncached(model: PromptLanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of what follows ``tokens``, one row."""
    logits = published_logits(model.lm, model.prompt, tokens[None], model.prompt.inputs)[0, -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize(("limit", "infix"), [(LIMIT, False), (20, False), (LIMIT, True)])
def test_greedy_equals_fairseq(limit: int, infix: bool) -> None:
    """The longer limit outgrows the room that a cache starts with."""
    model, rows = a_model(infix), some_rows()
    reference = decode_as_published(model, tiny.dictionary(), rows, limit, batch_size=5)
    expected = dict(reference)
    found = free(ours(model, rows, max_labels=limit))
    assert found == [expected[row] for row in range(len(rows))]
    lengths = {len(answer) for answer in found}
    assert len(lengths) > 2 and max(lengths) == limit, "answers of one length test nothing"


def test_long_answers_are_the_uncached_greedy_ones() -> None:
    """200 labels, as texts have them: each is the likeliest after all before it, in one pass over
    row and answer; rows of mixed lengths end at different steps.
    """
    model, rows = long_answers(), some_rows(12, longest=60)
    found = free(ours(model, rows, "set", max_labels=200))
    for row, answer in zip(rows, found):
        tokens = torch.cat([row, torch.tensor(answer, dtype=torch.long)])
        logits = published_logits(model.lm, model.prompt, tokens[None], model.prompt.inputs)[0]
        logits[:, PAD] = -math.inf
        likeliest = logits.argmax(-1)[len(row) - 1 :].tolist()
        assert likeliest[: len(answer)] == answer
        assert len(answer) == 200 or likeliest[len(answer)] == EOS
    lengths = [len(answer) for answer in found]
    assert max(lengths) == 200 and min(lengths) < 200, lengths


@pytest.mark.parametrize(
    ("beam", "options", "infix"),
    [
        (1, {}, False),
        (5, {}, False),
        (3, {"len_penalty": 0.3, "temperature": 1.7}, False),
        (3, {}, True),
    ],
)
def test_beam_equals_fairseq(beam: int, options: dict[str, float], infix: bool) -> None:
    """Every finished hypothesis: its symbols, its normalised score and each symbol's."""
    model, rows = a_model(infix), some_rows(9, longest=12)
    state = cached(model).prefill(rows, score_rows=options.get("temperature", 1.0))
    found = beam_search(
        cached(model), state, beam, LIMIT, None,
        options.get("len_penalty", 1.0), options.get("temperature", 1.0),
    )  # fmt: skip
    best = []
    for row, ours in zip(rows, found):
        theirs = hypotheses(model, tiny.dictionary(), [row], LIMIT, beam_size=beam, **options)[0]
        assert len(ours) == len(theirs) == beam
        for mine, other in zip(ours, theirs):
            read = len(row) - 1
            assert mine.symbols == other["tokens"][read:-1].tolist()
            assert mine.total == pytest.approx(other["score"].item(), rel=1e-5)
            scores = other["positional_scores"][read:-1].tolist()
            assert mine.scores == pytest.approx(scores, abs=1e-4)
        best.append(ours[0].symbols)
    assert len({len(answer) for answer in best}) > 1, "answers of one length test nothing"


@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"sampling": True, "topk": 9}])
def test_batch_size_changes_nothing(options: dict[str, object]) -> None:
    model, rows = a_model(), some_rows()
    one, several, all_at_once = (
        ours(model, rows, batch_size=size, **options) for size in (1, 5, 64)
    )
    assert free(one) == free(several) == free(all_at_once)
    assert within(one) == within(several) == within(all_at_once)


def test_within_labels_takes_the_likeliest_of_the_allowed() -> None:
    """Step by step over the uncached model, and the log-probabilities that it gives."""
    model, rows = a_model(), some_rows(9)
    allowed = [torch.tensor([7, 9]), torch.tensor([20, 21, 22])]
    for row, decoded in zip(rows, ours(model, rows)):
        tokens, scores = row, []
        for choices in allowed:
            expected = uncached(model, tokens)
            symbol = choices[expected[choices].argmax()]
            scores.append(expected[symbol].item())
            tokens = torch.cat([tokens, symbol[None]])
        assert decoded.within.symbols == tokens[len(row) :].tolist()
        assert decoded.within.scores == pytest.approx(scores, abs=1e-4)


def test_the_set_allows_every_label_at_every_place() -> None:
    """A text may have any label anywhere, at least one, and ends when ``</s>`` is the likeliest."""
    model, rows = long_answers(), some_rows(9)
    allowed = torch.tensor(sorted({symbol for sequence in SEQUENCES for symbol in sequence}))
    for row, decoded in zip(rows, ours(model, rows, "set", max_labels=12)):
        tokens, scores = row, []
        while len(scores) < 12:
            expected = uncached(model, tokens)
            symbol = allowed[expected[allowed].argmax()]
            if scores and expected[EOS] > expected[symbol]:
                break
            scores.append(expected[symbol].item())
            tokens = torch.cat([tokens, symbol[None]])
        assert decoded.within.symbols == tokens[len(row) :].tolist()
        assert decoded.within.scores == pytest.approx(scores, abs=1e-4)


def test_label_sets_that_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trie over long texts has as many states as they have characters."""
    monkeypatch.setattr(label_sets_module, "MOST_ARCS", 7 * SYMBOLS)
    sequences = [[7, 8, 9, 9], [8, 8, 9, 9]]
    with pytest.raises(UserError, match="9 states .*--within_labels set"):
        LabelSets.build("trie", sequences, SYMBOLS, EOS)
    assert len(LabelSets.build("set", sequences, SYMBOLS, EOS).ends) == 2


def test_the_trie_allows_only_label_sequences_of_train() -> None:
    """Greedy takes the likeliest arc at each node; a wide beam finds the likeliest sequence."""
    model, rows = a_model(), some_rows(40)
    slots, trie = within(ours(model, rows)), within(ours(model, rows, "trie"))
    assert any(answer not in SEQUENCES for answer in slots), "otherwise both are one"
    assert all(answer in SEQUENCES for answer in trie)
    wide = within(ours(model, rows, "trie", beam=4))
    assert wide != trie
    for row, found in zip(rows, wide):
        scores = []
        for sequence in SEQUENCES:
            tokens, total = row, 0.0
            for symbol in [*sequence, EOS]:
                total += uncached(model, tokens)[symbol].item()
                tokens = torch.cat([tokens, torch.tensor([symbol])])
            scores.append(total)
        assert found == SEQUENCES[scores.index(max(scores))]


def test_labels_of_several_lengths() -> None:
    """``</s>`` is allowed where a sequence of train ends, and nothing else behind the longest."""
    labels = LabelSets.build("trie", [[7], [7, 8], [9, 8, 7]], SYMBOLS, EOS)
    after_7 = labels.following[0, 7]
    assert labels.allowed[0].nonzero().flatten().tolist() == [7, 9]
    assert labels.allowed[after_7].nonzero().flatten().tolist() == [EOS, 8]
    assert not labels.ends[after_7] and labels.ends[labels.following[after_7, 8]]
    slots = LabelSets.build("slots", [[7], [7, 8], [9, 8, 7]], SYMBOLS, EOS)
    assert slots.allowed[slots.following[0, 9]].nonzero().flatten().tolist() == [EOS, 8]


def test_sampling_draws_from_the_distribution() -> None:
    """The first symbol over many copies of one row, against the uncached probabilities."""
    model, row = a_model(), some_rows(1)[0]
    copies = 1000
    found = ours(
        model, [row] * copies, sampling=True, temperature=2.0, max_labels=1, batch_size=500
    )
    counts = torch.zeros(SYMBOLS)
    for answer in free(found):
        counts[answer[0] if answer else EOS] += 1
    expected = uncached(model, row)
    expected[PAD] = -math.inf
    expected = (expected / 2).softmax(-1)
    noise = (expected * (1 - expected) / copies).sqrt()
    assert ((counts / copies - expected).abs() <= 5 * noise + 1e-9).all()
    assert free(found) == free(
        ours(model, [row] * copies, sampling=True, temperature=2.0, max_labels=1, batch_size=64)
    ), "draws depend on the row's number, not on its batch"
    again = ours(model, [row] * copies, sampling=True, temperature=2.0, max_labels=1, seed=2)
    assert free(found) != free(again)


def test_topk_and_topp_cut_the_distribution() -> None:
    model, row = a_model(), some_rows(1)[0]
    scores = uncached(model, row)
    scores[PAD] = -math.inf
    ranked = scores.softmax(-1).sort(descending=True)

    def drawn(**options: object) -> set[int]:
        found = free(ours(model, [row] * 800, sampling=True, max_labels=1, **options))
        return {answer[0] if answer else EOS for answer in found}

    assert drawn(topk=3) == set(ranked.indices[:3].tolist())
    assert free(ours(model, [row], sampling=True, topk=1)) == free(ours(model, [row]))
    aim = (ranked.values[0] + ranked.values[1] / 2).item()
    assert drawn(topp=aim) == set(ranked.indices[:2].tolist())
