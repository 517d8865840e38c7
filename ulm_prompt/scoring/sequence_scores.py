"""Scores of answers that are texts: WER, CER, and SUPERB's scores of slots.

SUPERB (arXiv 2105.01051), slot filling: slot type F1 is the mean over utterances of the F1 between
the two sets of slot types. Slot value CER is the CER of the reference's slot values. Each value is
compared with the nearest value of the same slot type in the answer, or with an empty text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jiwer

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.label_names import Label
from ulm_prompt.prompt_data.tasks import Pair, pair_of
from ulm_prompt.prompt_data.verbal import (
    find_renamed_text,
    label_names,
    read_prompt_text,
    renamed_texts,
)
from ulm_prompt.scoring.sample_file import WITHIN, origin_of, read_samples

CHARACTER, SLOT_TYPE = "character", "slot_type"  # the slots of labels.json in a text
NO_LABEL = "\ufffd"  # replaces a unit that is not a label of the task


class Text(NamedTuple):
    """Label units as text: the words without slot labels, and the type and value of each slot."""

    words: str
    slots: tuple[tuple[str, str], ...] = ()


class Answered(NamedTuple):
    """An utterance and its answer."""

    reference: Text
    answer: Text
    labels: int  # number of label units of the reference
    right: bool  # all label units are equal


def score_text_file(path: Path, workspace: Workspace, pair: Pair) -> dict[str, float]:
    """Return the ``score_texts`` of a sample file. Raises ``UserError`` as ``read_answers``."""
    return score_texts(read_answers(path, workspace, pair))


def score_texts(answered: Sequence[Answered]) -> dict[str, float]:
    """Return the scores in % by name, for at least one utterance; slot scores if texts have slots.
    Invalid answers are empty or contain a unit that is not a label.
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
    """Return the mean F1 of the answers' slot types, in %; 100 if neither text has a slot."""
    scores = []
    for pair in pairs:
        expected, answered = ({name for name, _ in text.slots} for text in pair)
        total = len(expected) + len(answered)
        scores.append(2 * len(expected & answered) / total if total else 1.0)
    return 100 * sum(scores) / len(scores)


def slot_value_cer(pairs: Iterable[tuple[Text, Text]]) -> float:
    """Return the CER of the references' slot values, in %. At least one reference has a slot."""
    values, nearest = [], []
    for reference, answer in pairs:
        for slot_type, value in reference.slots:
            candidates = [text for answer_type, text in answer.slots if answer_type == slot_type]
            values.append(value)
            nearest.append(min(candidates, key=lambda text: jiwer.cer(value, text), default=""))
    return 100 * jiwer.cer(values, nearest)


def read_text(labels: Iterable[Label]) -> Text:
    """Read labels in any order. A slot ends at the same slot type, a new slot type, or the end."""
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
    """Read the labels and answers of a sample file as texts, by the verbal map of the decoded text.

    Raises ``UserError`` for labels that are not texts, and if the labels differ from the current
    test split: the verbal map may have changed since then, or the run used another map.
    """
    free_answers = path.with_stem(path.stem.removesuffix(WITHIN))
    digest = (origin_of(free_answers).get("data") or {}).get("test")
    decoded = find_renamed_text(workspace, pair, "test", digest)
    if decoded is not None and decoded.parents[1].name == "verbalizers":
        pair = replace(pair, verbalizer=decoded.parent.name)
    names = label_names(workspace, pair)
    if other_slots := {label.slot for label in names.values()} - {CHARACTER, SLOT_TYPE}:
        labels = workspace.rows(pair.config.downstream, pair.unit_model, "labels.json")
        expected = f"expected {CHARACTER} or {SLOT_TYPE}, because the answers are texts"
        raise UserError(f"{labels}: slot {other_slots.pop()!r}; {expected}")
    samples, text = read_samples(path), renamed_texts(workspace, pair)["test"]
    if [labels for _, labels in read_prompt_text(text)] != [row["label"] for row in samples]:
        raise UserError(
            f"{path}: stale, the labels differ from {text}; run sample.py again; for a prompt of "
            "--verbalizer NAME, first run verbalizer.py with the same --method, without NAME"
        )

    def read(units: list[str]) -> Text:
        return read_text(names.get(unit, Label(CHARACTER, NO_LABEL)) for unit in units)

    rows = ((row["label"].split(), row["predict"].split()) for row in samples)
    return [
        Answered(read(label), read(answer), len(label), label == answer) for label, answer in rows
    ]


class Bin(NamedTuple):
    """The CER in % of the utterances with ``shortest`` to ``longest`` labels."""

    shortest: int
    longest: int
    utterances: int
    cer: float


def binned(answered: Sequence[Answered], width: int) -> list[Bin]:
    """Return bins of ``width`` label lengths, starting at 1, without empty bins."""
    by_bin: dict[int, list[tuple[str, str]]] = {}
    for reference, answer, labels, _ in answered:
        by_bin.setdefault((labels - 1) // width, []).append((reference.words, answer.words))
    bins = []
    for number, words in sorted(by_bin.items()):
        cer = 100 * jiwer.cer(*map(list, zip(*words)))
        bins.append(Bin(number * width + 1, (number + 1) * width, len(words), cer))
    return bins


def bins_of_files(paths: Sequence[Path], workspace: Workspace, width: int) -> dict[str, list[Bin]]:
    """Return the bins of every sample file of texts, by run. The run name begins with --sample_date
    if ``paths`` has several dates.
    """
    runs, has_dates = {}, len({path.parent for path in paths}) > 1
    for path in paths:
        pair = pair_of(workspace, path)
        if pair is not None and pair.config.is_text:
            date, name = (word.removeprefix("samples_") for word in (path.parent.name, path.stem))
            name = f"{date}: {name}" if has_dates else name
            runs[name] = binned(read_answers(path, workspace, pair), width)
    return runs
