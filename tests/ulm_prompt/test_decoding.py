"""Cached decoding compared with fairseq's SequenceGenerator on the uncached published method; label
sequences compared with the published method, symbol by symbol.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from pipeline.errors import UserError
from tests.benchmarks.published import decode_as_published, hypotheses, published_logits
from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_prompt_record import a_record
from tests.ulm_prompt.tiny import EOS, PAD, SYMBOLS
from ulm_prompt.prompt_lm import labels as labels_module
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.labels import LabelAnswer, LabelAnswers, LabelSets, score_sequences
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.search import Decoded, Options, beam_search, decode

LIMIT = 6
SEQUENCES = [[7, 20], [7, 21], [9, 22]]
VARIED = [[7], [7, 8], [9, 8, 7]]


def a_model(infix: bool = False, ends: int = 25) -> PromptLanguageModel:
    """Return a model that sometimes chooses ``</s>``, so answers end at different steps."""
    model = tiny.prompted(infix=infix)
    with torch.no_grad():
        model.lm.decoder.embed_tokens.weight[EOS] *= ends
    return model


def cached(model: PromptLanguageModel, dtype: torch.dtype | None = None) -> CachedLM:
    return CachedLM(model, PAD, EOS, dtype)


def some_rows(count: int = 23, longest: int = 30) -> list[torch.Tensor]:
    """Return rows ``</s> units <s>`` of mixed lengths."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(count):
        length = int(torch.randint(1, longest, (1,), generator=generator))
        units = torch.randint(4, SYMBOLS, (length,), generator=generator)
        rows.append(torch.cat([torch.tensor([EOS]), units, torch.tensor([0])]))
    return rows


def decode_rows(
    model: PromptLanguageModel, rows: list[torch.Tensor], labels: str = "slots",
    dtype: torch.dtype | None = None, sequences: list[list[int]] = SEQUENCES, **options: object,
) -> list[Decoded]:  # fmt: skip
    all_options = Options(**{"max_labels": LIMIT, "batch_size": 7, **options})
    sets = LabelSets.build(labels, sequences, SYMBOLS, EOS)
    batches = decode(cached(model, dtype), rows, sets, all_options)
    return sorted((row for batch in batches for row in batch), key=lambda decoded: decoded.row)


def free(answers: list[Decoded]) -> list[list[int]]:
    return [decoded.free.symbols for decoded in answers]


def within(answers: list[Decoded]) -> list[list[int]]:
    return [decoded.within.symbols for decoded in answers]


def uncached(
    model: PromptLanguageModel, row: torch.Tensor, after: Sequence[int] = ()
) -> torch.Tensor:
    """Return logits for the symbols ``after`` the row and for one more: (len(after) + 1, V)."""
    tokens = torch.tensor([[*row.tolist(), *after]])
    logits = published_logits(model.lm, model.prompt, tokens, model.prompt.inputs)[0]
    return logits[len(row) - 1 :]


def slowly(model: PromptLanguageModel, row: torch.Tensor, symbols: list[int]) -> list[float]:
    """Return the log-probability of each symbol after the previous ones with the uncached model."""
    scores = uncached(model, row, symbols).log_softmax(-1)
    return [score[symbol].item() for score, symbol in zip(scores, symbols)]


def allowed(kind: str, sequences: list[list[int]], before: list[int]) -> set[int]:
    """Return the symbols that are allowed after the labels ``before``."""
    position = len(before)
    if kind == "set":
        symbols = {symbol for sequence in sequences for symbol in sequence}
        return symbols | {EOS} if before else symbols
    if kind == "trie":
        sequences = [sequence for sequence in sequences if sequence[:position] == before]
    ended = {EOS for sequence in sequences if len(sequence) == position}
    return ended | {sequence[position] for sequence in sequences if len(sequence) > position}


def likeliest_within(
    model: PromptLanguageModel, row: torch.Tensor, kind: str, sequences: list[list[int]], limit: int
) -> list[int]:
    """Return the greedy answer within labels, symbol by symbol with the uncached model."""
    answer: list[int] = []
    while len(answer) < limit:
        choices = sorted(allowed(kind, sequences, answer))
        symbol = choices[int(uncached(model, row, answer)[-1, choices].argmax())]
        if symbol == EOS:
            break
        answer.append(symbol)
    return answer


@pytest.mark.parametrize("infix", [False, True])
def test_greedy_equals_fairseq(infix: bool) -> None:
    model, rows = a_model(infix), some_rows()
    expected = dict(decode_as_published(model, rows, LIMIT, batch_size=5))
    answers = free(decode_rows(model, rows))
    assert answers == [expected[row] for row in range(len(rows))]
    lengths = {len(answer) for answer in answers}
    assert len(lengths) > 2 and max(lengths) == LIMIT, "answers of one length test nothing"


def test_long_answers_are_the_uncached_greedy_ones() -> None:
    """A text of 200 labels does not fit in a new cache, which must grow. An uncached pass over row
    and answer checks that each label is the likeliest one.
    """
    model, rows = a_model(ends=6), some_rows(12, longest=60)
    answers = free(decode_rows(model, rows, "set", max_labels=200))
    for row, answer in zip(rows, answers):
        scores = uncached(model, row, answer)
        scores[:, PAD] = -math.inf
        assert scores.argmax(-1).tolist()[:200] == [*answer, EOS][:200]
    lengths = [len(answer) for answer in answers]
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
    """Compare every finished hypothesis: symbols, normalised score and symbol scores."""
    model, rows = a_model(infix), some_rows(9, longest=12)
    penalty, temperature = options.get("len_penalty", 1.0), options.get("temperature", 1.0)
    state = cached(model).prefill(rows, row_temperature=temperature)
    beams = beam_search(cached(model), state, beam, LIMIT, None, penalty, temperature)
    for row, answers in zip(rows, beams):
        expected = hypotheses(model, [row], LIMIT, beam_size=beam, **options)[0]
        assert len(answers) == len(expected) == beam
        for answer, hypothesis in zip(answers, expected):
            start = len(row) - 1
            assert answer.symbols == hypothesis["tokens"][start:-1].tolist()
            assert answer.total == pytest.approx(hypothesis["score"].item(), rel=1e-5)
            scores = hypothesis["positional_scores"][start:-1].tolist()
            assert answer.scores == pytest.approx(scores, abs=1e-4)
    lengths = {len(best.symbols) for best, *_ in beams}
    assert len(lengths) > 1, "answers of one length test nothing"


@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"sampling": True, "topk": 9}])
def test_batch_size_changes_nothing(options: dict[str, object]) -> None:
    runs = [decode_rows(a_model(), some_rows(), batch_size=size, **options) for size in (1, 5, 64)]
    for symbols in (free, within):
        single_rows, small_batches, one_batch = map(symbols, runs)
        assert single_rows == small_batches == one_batch


@pytest.mark.parametrize("kind", ["slots", "set", "trie"])
@pytest.mark.parametrize("sequences", [SEQUENCES, VARIED])
def test_within_labels_takes_the_likeliest_of_the_allowed(
    kind: str, sequences: list[list[int]]
) -> None:
    """``</s>`` is allowed where a sequence of train ends; in a set, after any label."""
    model, rows = a_model(ends=6), some_rows(9)
    for row, decoded in zip(rows, decode_rows(model, rows, kind, None, sequences, max_labels=12)):
        expected = likeliest_within(model, row, kind, sequences, 12)
        assert decoded.within.symbols == expected
        assert decoded.within.scores == pytest.approx(slowly(model, row, expected), abs=1e-4)


def test_label_sets_that_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trie of long texts has as many states as the texts have characters."""
    monkeypatch.setattr(labels_module, "MOST_ARCS", 7 * SYMBOLS)
    sequences = [[7, 8, 9, 9], [8, 8, 9, 9]]
    with pytest.raises(UserError, match="9 states .*--within_labels set"):
        LabelSets.build("trie", sequences, SYMBOLS, EOS)
    assert len(LabelSets.build("set", sequences, SYMBOLS, EOS).ends) == 2


def test_a_wide_beam_finds_the_likeliest_sequence() -> None:
    """Greedy search takes the likeliest arc at each node of the trie, and finds other sequences."""
    model, rows = a_model(), some_rows(40)
    wide = within(decode_rows(model, rows, "trie", beam=4))
    assert wide != within(decode_rows(model, rows, "trie"))
    for row, answer in zip(rows, wide):
        scores = [sum(slowly(model, row, [*sequence, EOS])) for sequence in SEQUENCES]
        assert answer == SEQUENCES[scores.index(max(scores))]


@pytest.mark.parametrize("cut", ["none", "topk", "topp"])
def test_sampling_draws_from_the_distribution(cut: str) -> None:
    """Compare the first symbols of many copies of one row with the uncached probabilities."""
    model, row, copies = a_model(), some_rows(1)[0], 1000
    expected = uncached(model, row)[-1]
    expected[PAD] = -math.inf
    ranked = (expected / 2).softmax(-1).sort(descending=True)
    enough = (ranked.values[0] + ranked.values[1] / 2).item()
    count, options = {
        "none": (SYMBOLS, {}), "topk": (3, {"topk": 3}), "topp": (2, {"topp": enough})
    }[cut]  # fmt: skip

    def drawn(**others: object) -> list[int]:
        fixed = {"sampling": True, "temperature": 2.0, "max_labels": 1, **options}
        answers = free(decode_rows(model, [row] * copies, **fixed, **others))
        return [(*answer, EOS)[0] for answer in answers]

    shares = torch.zeros(SYMBOLS)
    shares[ranked.indices[:count]] = ranked.values[:count] / ranked.values[:count].sum()
    symbols = drawn(batch_size=500)
    counts = torch.bincount(torch.tensor(symbols), minlength=SYMBOLS)
    noise = (shares * (1 - shares) / copies).sqrt()
    assert ((counts / copies - shares).abs() <= 5 * noise + 1e-9).all()
    assert symbols == drawn(batch_size=64), "draws depend on the row number only"
    assert drawn() != drawn(seed=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_mostly(dtype: torch.dtype) -> None:
    model, rows = a_model(), some_rows(60)
    full = free(decode_rows(model, rows, max_labels=1))
    half = decode_rows(model, rows, max_labels=1, dtype=dtype)
    assert sum(map(list.__eq__, free(half), full)) >= 54
    assert all(math.isfinite(score) for decoded in half for score in decoded.within.scores)


def test_every_sequence_at_once_against_the_uncached_lm() -> None:
    sequences = [(7,), (7, 20), (9, 22), (9, 20, 7, 7), (9, 22, 5), (30,)]
    prefixes = {0, 2}  # prefixes of other sequences: </s> is one of several next symbols
    model, rows = a_model(), some_rows(6)
    lm = cached(model)
    totals, scores = score_sequences(lm, lm.prefill(rows), sequences, EOS)
    for index, row in enumerate(rows):
        for number, sequence in enumerate(sequences):
            expected = slowly(model, row, [*sequence, *[EOS] * (number in prefixes)])
            assert totals[index, number].item() == pytest.approx(sum(expected), abs=1e-4)
            padded = [*expected[: len(sequence)], *[0.0] * (4 - len(sequence))]
            assert scores[index, number].tolist() == pytest.approx(padded, abs=1e-4)


def answers(top: int, **changes: object) -> list[list[LabelAnswer]]:
    lm, record = cached(a_model()), dataclasses.replace(a_record(), **changes)
    return LabelAnswers(record, tiny.dictionary())(lm, lm.prefill(some_rows(8)), top)


@pytest.mark.parametrize("known", [True, False])
def test_top_answers_are_the_likeliest_in_order(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidates are train's sequences or, if these are unknown, all combinations of the slots'
    labels. If they are too many, a beam search always counts the last ``</s>``, which adds little.
    """
    record = a_record()
    changes = {} if known else {"label_sequences": None}
    count = len(record.label_sequences) if known else 2 * 3
    exact = answers(99, **changes)
    for ranked in exact:
        scores = [answer.score for answer in ranked]
        assert len(ranked) == count and scores == sorted(scores, reverse=True)
        for answer in ranked:
            assert sum(answer.label_scores) == pytest.approx(answer.score, abs=1e-4)
            slots = [record.labels[label]["slot"] for label in answer.labels]
            assert slots == ["action", "object"]
    assert answers(2, **changes) == [ranked[:2] for ranked in exact]
    monkeypatch.setattr(labels_module, "MOST_SCORED", 1)
    for ranked, beam in zip(exact, answers(count, **changes)):
        by_beam = {answer.labels: pytest.approx(answer.label_scores, abs=1e-4) for answer in beam}
        assert {answer.labels: answer.label_scores for answer in ranked} == by_beam


def test_texts_are_searched_greedily() -> None:
    symbols, verbal = tiny.dictionary(), a_record().verbal
    labels = [[symbols.index(unit)] for unit in verbal.values()]
    texts = answers(1, label_sequences=None, labels_per_utterance=0, most_labels=4)
    for row, (answer,) in zip(some_rows(8), texts):
        text = [symbols.index(verbal[label]) for label in answer.labels]
        assert text == likeliest_within(a_model(), row, "set", labels, 200)
        expected = sum(slowly(a_model(), row, [*text, EOS]))
        assert answer.score == pytest.approx(expected, abs=1e-3)


def test_a_unit_that_the_dict_lacks() -> None:
    with pytest.raises(UserError, match="label unit 100 is not in the dict"):
        answers(1, verbal={**a_record().verbal, "4": "100"})
