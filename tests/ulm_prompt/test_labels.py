"""All label sequences at once, against the uncached LM; and the search where they are too many."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.errors import UserError
from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_decoding import (
    EOS,
    a_model,
    cached,
    likeliest_within,
    slowly,
    some_rows,
)
from tests.ulm_prompt.test_prompt_record import a_record
from ulm_prompt.prompt_lm import labels as label_answers
from ulm_prompt.prompt_lm.labels import LabelAnswers, score_sequences

SEQUENCES = [(7,), (7, 20), (9, 22), (9, 20, 7, 7), (9, 22, 5), (30,)]
BEGINS_ANOTHER = {0, 2}  # </s> is one of several symbols that may follow
MODEL = a_model()


def test_every_sequence_against_the_uncached_lm() -> None:
    rows = some_rows(6)
    lm = cached(MODEL)
    totals, shares = score_sequences(lm, lm.prefill(rows), SEQUENCES, EOS)
    for place, row in enumerate(rows):
        for number, sequence in enumerate(SEQUENCES):
            expected = slowly(MODEL, row, [*sequence, *[EOS] * (number in BEGINS_ANOTHER)])
            assert totals[place, number].item() == pytest.approx(sum(expected), abs=1e-4)
            found = shares[place, number].tolist()
            assert found[: len(sequence)] == pytest.approx(expected[: len(sequence)], abs=1e-4)
            assert not any(found[len(sequence) :])


def answers(top: int, **changes: object) -> list[list[label_answers.LabelAnswer]]:
    lm, record = cached(MODEL), dataclasses.replace(a_record(), **changes)
    return LabelAnswers(record, tiny.dictionary())(lm, lm.prefill(some_rows(8)), top)


@pytest.mark.parametrize("known", [True, False])
def test_top_answers_are_the_likeliest_in_order(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of train's sequences or, where these are not known, of all combinations of the slots' labels;
    and by a beam where they are too many, which counts the last ``</s>`` always: that is little.
    """
    record = a_record()
    changes = {} if known else {"label_sequences": None}
    count = len(record.label_sequences) if known else 2 * 3
    exact = answers(99, **changes)
    for of_row in exact:
        scores = [answer.score for answer in of_row]
        assert len(of_row) == count and scores == sorted(scores, reverse=True)
        for one in of_row:
            assert sum(one.label_scores) == pytest.approx(one.score, abs=1e-4)
            assert [record.labels[each]["slot"] for each in one.labels] == ["action", "object"]
    assert answers(2, **changes) == [of_row[:2] for of_row in exact]
    monkeypatch.setattr(label_answers, "MOST_SCORED", 1)
    for of_row, by_beam in zip(exact, answers(count, **changes)):
        expected = {answer.labels: answer.label_scores for answer in of_row}
        assert {answer.labels for answer in by_beam} == expected.keys()
        for answer in by_beam:
            assert answer.label_scores == pytest.approx(expected[answer.labels], abs=1e-4)


def test_texts_are_searched_greedily() -> None:
    symbols, verbal = tiny.dictionary(), a_record().verbal
    labels = [[symbols.index(unit)] for unit in verbal.values()]
    found = answers(1, label_sequences=None, labels_per_utterance=0, most_labels=4)
    for row, (answer,) in zip(some_rows(8), found):
        text = [symbols.index(verbal[label]) for label in answer.labels]
        assert text == likeliest_within(MODEL, row, "set", labels, 200)
        expected = sum(slowly(MODEL, row, [*text, EOS]))
        assert answer.score == pytest.approx(expected, abs=1e-3)


def test_a_unit_that_the_dict_lacks() -> None:
    with pytest.raises(UserError, match="label unit 100 is not in the dict"):
        answers(1, verbal={**a_record().verbal, "4": "100"})
