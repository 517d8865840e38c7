"""Scores of answers that are texts: WER, CER, and what SUPERB scores of slots.

SUPERB (arXiv 2105.01051), slot filling: slot type F1 is the mean over utterances of the F1 between
the two sets of slot types; slot value CER is the CER of the reference's slot values, each against
the nearest value that the answer gives to the same slot type, or against nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jiwer

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.label_names import Label
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.prompt_data.verbal import label_names, read_prompt_text, renamed_texts
from ulm_prompt.scoring.sample_file import read_samples

CHARACTER, SLOT_TYPE = "character", "slot_type"  # the slots of labels.json that a text is made of
NO_LABEL = "\ufffd"  # stands in an answer for a unit that is none of the task's labels


class Text(NamedTuple):
    """Label units read: the words without the slots' labels, and each slot's type and value."""

    words: str
    slots: tuple[tuple[str, str], ...] = ()


class Answered(NamedTuple):
    """An utterance and the answer to it."""

    reference: Text
    answer: Text
    labels: int  # units of the reference
    right: bool  # unit for unit


def score_sequences(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """``score_texts`` of the sample file ``path``. Raises ``UserError`` as ``read_answers``."""
    return score_texts(read_answers(path, workspace, pair))


def score_texts(answered: Sequence[Answered]) -> dict[str, float]:
    """The scores in % of the answers to at least one utterance, by name; those of slots where texts
    have slots. Invalid answers are empty or hold a unit that is no label.
    """
    pairs = [utterance[:2] for utterance in answered]
    references, answers = ([text.words for text in texts] for texts in zip(*pairs))
    scores = {
        "utterances": len(answered),
        "WER": 100 * jiwer.wer(references, answers),
        "CER": 100 * jiwer.cer(references, answers),
    }
    if any(text.slots for pair in pairs for text in pair):
        scores["slot type F1"] = slot_type_f1(pairs)
    if any(reference.slots for reference, _ in pairs):
        scores["slot value CER"] = slot_value_cer(pairs)
    scores["all right"] = 100 * sum(utterance.right for utterance in answered) / len(answered)
    invalid = sum(
        NO_LABEL in answer.words or not (answer.words or any(name for name, _ in answer.slots))
        for _, answer in pairs
    )
    return scores | {"invalid answers": 100 * invalid / len(answered)}


def slot_type_f1(pairs: Iterable[tuple[Text, Text]]) -> float:
    """The mean F1 in % of the answers' slot types; 1 where neither text has a slot."""
    scores = []
    for pair in pairs:
        wanted, given = ({name for name, _ in text.slots} for text in pair)
        both = len(wanted) + len(given)
        scores.append(2 * len(wanted & given) / both if both else 1.0)
    return 100 * sum(scores) / len(scores)


def slot_value_cer(pairs: Iterable[tuple[Text, Text]]) -> float:
    """The CER in % of the references' slot values, of which there is one at least."""
    values, nearest = [], []
    for reference, answer in pairs:
        for name, value in reference.slots:
            given = [value_ for name_, value_ in answer.slots if name_ == name]
            values.append(value)
            nearest.append(min(given, key=lambda other: jiwer.cer(value, other), default=""))
    return 100 * jiwer.cer(values, nearest)


def read_text(labels: Iterable[Label]) -> Text:
    """Read labels of any order, as an answer may have them. A slot type opens its slot or, when it
    is open, closes it; another type, or the end, closes it too.
    """
    words: list[str] = []
    slots: list[tuple[str, list[str]]] = []
    is_open = False
    for kind, name in labels:
        if kind != SLOT_TYPE:
            words.append(name)
            if is_open:
                slots[-1][1].append(name)
        elif is_open := not (is_open and slots[-1][0] == name):
            slots.append((name, []))
    return Text(_spaced(words), tuple((name, _spaced(value)) for name, value in slots))


def _spaced(characters: Sequence[str]) -> str:
    return " ".join("".join(characters).split())


def read_answers(path: Path, workspace: Workspace, pair: Pair) -> list[Answered]:
    """Read a sample file's labels and answers as texts.

    Raises ``UserError`` for labels that make no text, and when the file's are not those of the
    current test split: units would be read by another verbalizer than they were written by.
    """
    names = label_names(workspace, pair)
    if other := {label.slot for label in names.values()} - {CHARACTER, SLOT_TYPE}:
        labels = workspace.rows(pair.config.downstream, pair.unit_model, "labels.json")
        expected = f"expected {CHARACTER} or {SLOT_TYPE}, as its answers are texts"
        raise UserError(f"{labels}: slot {other.pop()!r}; {expected}")
    samples, text = read_samples(path), renamed_texts(workspace, pair)["test"]
    if [labels for _, labels in read_prompt_text(text)] != [row["label"] for row in samples]:
        raise UserError(f"{path}: stale, its labels are not those of {text}; run sample.py again")

    def read(units: list[str]) -> Text:
        return read_text(names.get(unit, Label(CHARACTER, NO_LABEL)) for unit in units)

    both = [(row["label"].split(), row["predict"].split()) for row in samples]
    return [Answered(read(one), read(other), len(one), one == other) for one, other in both]


class Bin(NamedTuple):
    """Utterances of ``shortest`` to ``longest`` labels, and their CER in %."""

    shortest: int
    longest: int
    utterances: int
    cer: float


def binned(answered: Sequence[Answered], width: int) -> list[Bin]:
    """Bins of ``width`` label lengths, from 1 on; empty ones are left out."""
    by_bin: dict[int, list[tuple[str, str]]] = {}
    for reference, answer, labels, _ in answered:
        by_bin.setdefault((labels - 1) // width, []).append((reference.words, answer.words))
    bins = []
    for number, words in sorted(by_bin.items()):
        cer = 100 * jiwer.cer(*map(list, zip(*words)))
        bins.append(Bin(number * width + 1, (number + 1) * width, len(words), cer))
    return bins


def bins_of_files(paths: Sequence[Path], workspace: Workspace, width: int) -> dict[str, list[Bin]]:
    """The bins of every sample file of texts in ``paths``, by the run's name; with the
    --sample_date before it where ``paths`` are of several.
    """
    runs, several = {}, len({path.parent for path in paths}) > 1
    for path in paths:
        pair = pair_of(workspace, path)
        if pair is not None and pair.config.is_sequence:
            date, name = (word.removeprefix("samples_") for word in (path.parent.name, path.stem))
            name = f"{date}: {name}" if several else name
            runs[name] = binned(read_answers(path, workspace, pair), width)
    return runs
