"""All label sequences at once, against the uncached LM; and the search where they are too many."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pipeline.errors import UserError
from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_decoding import EOS, a_model, cached, some_rows, uncached
from tests.ulm_prompt.test_prompt_record import a_record
from ulm_prompt.prompt_data.prompt_record import PromptRecord
from ulm_prompt.prompt_lm import labels as label_answers
from ulm_prompt.prompt_lm.labels import LabelAnswers, score_sequences

SEQUENCES = [(7,), (7, 20), (9, 22), (9, 20, 7, 7), (9, 22, 5), (30,)]
BEGINS_ANOTHER = {0, 2}  # </s> is one of several symbols that may follow


def slowly(row: torch.Tensor, sequence: list[int], with_end: bool) -> list[float]:
    """Log-probability of each symbol, and of ``</s>``, over the uncached model."""
    scores, tokens = [], row
    for symbol in [*sequence, EOS][: len(sequence) + with_end]:
        scores.append(uncached(MODEL, tokens)[symbol].item())
        tokens = torch.cat([tokens, torch.tensor([symbol])])
    return scores


MODEL = a_model()


def test_every_sequence_against_the_uncached_lm() -> None:
    rows = some_rows(6)
    lm = cached(MODEL)
    totals, shares = score_sequences(lm, lm.prefill(rows), SEQUENCES, EOS)
    for place, row in enumerate(rows):
        for number, sequence in enumerate(SEQUENCES):
            expected = slowly(row, sequence, number in BEGINS_ANOTHER)
            assert totals[place, number].item() == pytest.approx(sum(expected), abs=1e-4)
            found = shares[place, number].tolist()
            assert found[: len(sequence)] == pytest.approx(expected[: len(sequence)], abs=1e-4)
            assert not any(found[len(sequence) :])


def answers(record: PromptRecord, top: int) -> list[list[label_answers.LabelAnswer]]:
    lm = cached(MODEL)
    return LabelAnswers(record, tiny.dictionary())(lm, lm.prefill(some_rows(8)), top)


def test_top_answers_are_the_likeliest_in_order() -> None:
    """In the tree, and with a beam that is wide enough where the tree would be too large."""
    record = a_record()
    every = answers(record, 99)
    assert all(len(of_row) == len(record.label_sequences) for of_row in every)
    for of_row in every:
        scores = [answer.score for answer in of_row]
        assert scores == sorted(scores, reverse=True)
        assert all(sum(one.label_scores) == pytest.approx(one.score, abs=1e-4) for one in of_row)
    assert answers(record, 2) == [of_row[:2] for of_row in every]


def test_a_beam_where_sequences_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the last ``</s>`` always: with one length of sequences that is little."""
    record = a_record()
    every = answers(record, 99)
    monkeypatch.setattr(label_answers, "MOST_SCORED", 1)
    for exact, of_row in zip(every, answers(record, 4)):
        by_labels = {answer.labels: answer for answer in exact}
        assert len(of_row) == 4
        for answer in of_row:
            same = by_labels[answer.labels]
            assert answer.label_scores == pytest.approx(same.label_scores, abs=1e-4)


def test_slots_where_sequences_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    record = dataclasses.replace(a_record(), label_sequences=None)
    exact = answers(record, 99)
    assert all(len(of_row) == 2 * 3 for of_row in exact)
    slots = [tuple(record.labels[label]["slot"] for label in each.labels) for each in exact[0]]
    assert set(slots) == {("action", "object")}
    monkeypatch.setattr(label_answers, "MOST_SCORED", 1)
    found = answers(record, 6)
    assert {one.labels for one in found[0]} == {one.labels for one in exact[0]}


def test_texts_are_searched_greedily() -> None:
    record = dataclasses.replace(
        a_record(), label_sequences=None, labels_per_utterance=0, most_labels=4
    )
    allowed = torch.tensor([tiny.dictionary().index(unit) for unit in record.verbal.values()])
    for row, (answer,) in zip(some_rows(8), answers(record, 1)):
        tokens, total = row, 0.0
        for label in answer.labels:
            scores = uncached(MODEL, tokens)
            choices = (
                allowed if len(tokens) == len(row) else torch.cat([allowed, torch.tensor([EOS])])
            )
            best = choices[scores[choices].argmax()]
            assert tiny.dictionary()[int(best)] == record.verbal[label]
            total += scores[best].item()
            tokens = torch.cat([tokens, best[None]])
        total += uncached(MODEL, tokens)[EOS].item()
        assert answer.score == pytest.approx(total, abs=1e-3) and math.isfinite(total)


def test_a_unit_that_the_dict_lacks() -> None:
    record = dataclasses.replace(a_record(), verbal={**a_record().verbal, "4": "100"})
    with pytest.raises(UserError, match="label unit 100 is not in the dict"):
        LabelAnswers(record, tiny.dictionary())
