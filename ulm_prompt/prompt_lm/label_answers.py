"""A task's likeliest answers to rows that its prompt has read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from pipeline.errors import UserError
from ulm_prompt.prompt_data.prompt_record import PromptRecord
from ulm_prompt.prompt_lm.beam import beam_search
from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.search import log_probabilities
from ulm_prompt.scoring.sample_flags import label_limit

MOST_SCORED = 3_000  # labels in sequences that are all scored; of more, a beam finds the likeliest


class Answer(NamedTuple):
    """Label units, the LM's natural-log probability of them all, and of each after those before."""

    labels: tuple[str, ...]
    score: float
    label_scores: tuple[float, ...]


class LabelAnswers:
    """Answers within the label set of one prompt.

    The whole label sequences that train has; where these are not known, at each place the labels of
    its slot. All are scored, exactly, unless they are more than ``MOST_SCORED`` or texts: then a
    beam as wide as the number of answers that are asked for (1: greedy) searches among them.
    """

    def __init__(self, record: PromptRecord, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        places = _places(record)
        sequences = record.label_sequences
        possible = math.prod(map(len, places)) if sequences is None else len(sequences)
        possible *= record.most_labels
        units = record.verbal.values()
        missing = next((u for u in units if dictionary.index(u) == dictionary.unk()), None)
        if missing is not None:
            raise UserError(
                f"{record.task}: label unit {missing} is not in the dict.txt of {record.unit_model}"
            )
        self._labels_of = {dictionary.index(unit): label for label, unit in record.verbal.items()}

        def symbols(labels: Sequence[str]) -> list[int]:
            return [dictionary.index(record.verbal[label]) for label in labels]

        self._tree = self._sets = None
        if not record.is_text and possible <= MOST_SCORED:
            chosen = itertools.product(*places) if sequences is None else sequences
            self._tree = LabelTree([symbols(labels) for labels in chosen], dictionary.eos())
            return
        kind = "set" if record.is_text else "slots" if sequences is None else "trie"
        if sequences is None:  # as many as show every label at each of its places
            longest = max(map(len, places))
            sequences = [[each[n % len(each)] for each in places] for n in range(longest)]
        self._limit = label_limit(None, record.most_labels)
        self._sets = LabelSets.build(
            kind, [symbols(labels) for labels in sequences], len(dictionary), dictionary.eos()
        )

    def __call__(self, lm: CachedLM, state: State, top: int) -> list[list[Answer]]:
        """The ``top`` likeliest answers to each row of ``state``, best first; fewer where there are
        not so many.
        """
        if self._tree is not None:
            return self._best_of_tree(lm, state, top)
        found = beam_search(lm, state, top, self._limit, self._sets.to(lm.device), lenpen=0.0)
        return [
            [self._answer(each.answer.symbols, each.score, each.answer.scores) for each in row]
            for row in found
        ]

    def _best_of_tree(self, lm: CachedLM, state: State, top: int) -> list[list[Answer]]:
        tree = self._tree
        totals, shares = tree.score(lm, state)
        best = totals.topk(min(top, len(tree.sequences)))  # (B, top)
        shares = shares.gather(1, best.indices.unsqueeze(2).expand(-1, -1, tree.longest))
        rows = zip(best.indices.tolist(), best.values.tolist(), shares.tolist())
        return [
            [
                self._answer(tree.sequences[number], score, parts)
                for number, score, parts in zip(*row)
            ]
            for row in rows
        ]

    def _answer(self, symbols: Sequence[int], score: float, parts: Sequence[float]) -> Answer:
        labels = tuple(self._labels_of[symbol] for symbol in symbols)
        return Answer(labels, score, tuple(parts[: len(symbols)]))


def _places(record: PromptRecord) -> list[list[str]]:
    """The labels that may stand at each place: those of its slot, or all of them."""
    slots: dict[str, list[str]] = {}
    for label, entry in record.labels.items():
        slots.setdefault(entry["slot"], []).append(label)
    if len(slots) == record.labels_per_utterance:
        return list(slots.values())
    return [list(record.labels)] * max(1, record.labels_per_utterance)


# The probability of every label sequence of a task at once: one step a level of their tree.


Labels = tuple[int, ...]


class LabelTree:
    """Label sequences, and the prefixes of them that the LM has to read.

    A level's hypotheses are all prefixes of that length which something may follow; they stand side
    by side in the cache, so that a task of single labels takes no step at all.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], eos: int) -> None:
        self.sequences: list[Labels] = list(dict.fromkeys(map(tuple, sequences)))
        self.longest = max(map(len, self.sequences))
        self._levels = self._prefixes()
        # of each level: which sequences, at which prefix, go on with which symbol
        self._arcs: list[tuple[Tensor, Tensor, Tensor]] = []
        for length, level in enumerate(self._levels):
            arcs = [
                (number, level[sequence[:length]], (*sequence, eos)[length])
                for number, sequence in enumerate(self.sequences)
                if len(sequence) >= length and sequence[:length] in level
            ]
            self._arcs.append(tuple(map(torch.tensor, zip(*arcs))))

    def _prefixes(self) -> list[dict[Labels, int]]:
        """Each level's prefixes with their places."""
        levels = []
        for length in range(self.longest):
            longer = (sequence for sequence in self.sequences if len(sequence) > length)
            prefixes = dict.fromkeys(sequence[:length] for sequence in longer)
            levels.append({prefix: place for place, prefix in enumerate(prefixes)})
        return levels

    @torch.inference_mode()
    def score(self, lm: CachedLM, state: State) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all S sequences after the rows of ``state``: in all, (B, S), and of
        each label, (B, S, longest), 0 behind the last.

        ``</s>`` counts where something else could follow (one sequence begins another), and not
        where a sequence can only end.
        """
        batch, device = len(state.lengths), lm.device
        shares = state.logits.new_zeros(batch, len(self.sequences), self.longest + 1)
        for length, (level, arcs) in enumerate(zip(self._levels, self._arcs)):
            if length:
                before = self._levels[length - 1]
                parents = torch.tensor([before[prefix[:-1]] for prefix in level], device=device)
                symbols = torch.tensor([prefix[-1] for prefix in level], device=device)
                state = lm.step(state, symbols.expand(batch, -1), parents.expand(batch, -1))
            scores = log_probabilities(state.logits, lm.pad)  # (B, prefixes, V)
            numbers, prefixes, symbols = (each.to(device) for each in arcs)
            shares[:, numbers, length] = scores[:, prefixes, symbols]
        totals = shares.sum(2)
        for number, sequence in enumerate(self.sequences):
            shares[:, number, len(sequence) :] = 0.0  # </s> is no label
        return totals, shares[:, :, : self.longest]
