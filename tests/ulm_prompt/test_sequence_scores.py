"""Scores of texts against slow computations by their definitions."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulm_prompt.scoring.sequence_scores import (
    NO_LABEL,
    Answered,
    Label,
    Text,
    binned,
    read_text,
    score_texts,
)


def edits(left: tuple[str, ...] | str, right: tuple[str, ...] | str) -> int:
    """Levenshtein's recursion, as it is defined."""

    @cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = left[i - 1] == right[j - 1]
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + 1 - same)

    return between(len(left), len(right))


def text(*labels: str) -> Text:
    """Labels as they are typed: longer than a character is a slot type."""
    return read_text(Label("slot_type" if len(name) > 1 else "character", name) for name in labels)


def answered(reference: Text, answer: Text) -> Answered:
    return Answered(reference, answer, 1 + len(reference.words), reference == answer)


labels = st.lists(st.sampled_from([*"AB ", "artist", "city", "date"]), max_size=12)
references = labels.filter(lambda names: any(name in "AB" for name in names))
utterances = st.lists(st.tuples(references, labels), min_size=1, max_size=4)


@given(utterances)
def test_scores_by_their_definition(some: list[tuple[list[str], list[str]]]) -> None:
    """Edits over all utterances, by the references' words and characters; F1 by precision and
    recall; each reference slot beside all that the answer could mean.
    """
    read = [(text(*reference), text(*answer)) for reference, answer in some]
    scores = score_texts([answered(*pair) for pair in read])
    words = [[tuple(one.words.split()) for one in pair] for pair in read]
    wrong = sum(edits(*pair) for pair in words)
    assert scores.wer == pytest.approx(100 * wrong / sum(len(pair[0]) for pair in words))
    wrong = sum(edits(one.words, other.words) for one, other in read)
    assert scores.cer == pytest.approx(100 * wrong / sum(len(one.words) for one, _ in read))
    assert scores.right == pytest.approx(100 * sum(a == b for a, b in read) / len(read))
    means, wrong, characters = [], 0, 0
    for reference, answer in read:
        wanted, given_ = ({name for name, _ in one.slots} for one in (reference, answer))
        hits = len(wanted & given_)
        precision = hits / len(given_) if given_ else float(not wanted)
        recall = hits / len(wanted) if wanted else float(not given_)
        total = precision + recall
        means.append(2 * precision * recall / total if total else 0.0)
        for name, value in reference.slots:
            choices = [own for other, own in answer.slots if other == name] or [""]
            wrong += min(edits(value, own) for own in choices)
            characters += len(value)
    if any(one.slots for pair in read for one in pair):
        assert scores.slot_type_f1 == pytest.approx(100 * sum(means) / len(means))
    else:
        assert scores.slot_type_f1 is None and scores.slot_value_cer is None
    if characters:
        assert scores.slot_value_cer == pytest.approx(100 * wrong / characters)


@pytest.mark.parametrize(
    ("typed", "slots"),
    [
        (["artist", *"AB"], [("artist", "AB")]),  # never closed
        (["artist", "A", "city", "B", "city"], [("artist", "A"), ("city", "B")]),
        (["artist", "artist"], [("artist", "")]),
        (["A", "artist", " ", "B", " ", "artist", "A"], [("artist", "B")]),
    ],
)
def test_answers_whose_slots_do_not_close(typed: list[str], slots: list[tuple[str, str]]) -> None:
    assert list(text(*typed).slots) == slots


def test_invalid_answers_are_empty_or_hold_no_label() -> None:
    reference = text(*"AB")
    answers = [text(), text(NO_LABEL, "B"), text("artist"), text(*"AB")]
    scores = score_texts([answered(reference, answer) for answer in answers])
    assert scores.invalid == 50 and scores.right == 25
    assert scores.cer == 100 * (2 + 1 + 2 + 0) / 8


def test_bins_of_label_length() -> None:
    """Every utterance in one bin, by its labels; a bin's CER is that of its utterances together."""
    lengths = {1: "A", 20: "AB", 21: "B", 60: "AA"}
    some = [Answered(Text("AB"), Text(answer), n, False) for n, answer in lengths.items()]
    assert binned(some, width=20) == [(1, 20, 2, 25), (21, 40, 1, 50), (41, 60, 1, 50)]
