"""Answers within a task's labels: which symbols are allowed next, and the likeliest answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import with_joint_names
from ulm_prompt.prompt_data.prompt_record import PromptRecord
from ulm_prompt.prompt_data.tasks import label_limit
from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.search import beam_search, log_probabilities

MOST_ARCS = 100_000_000  # states times symbols of an automaton; each takes nine bytes
MOST_SCORED = 3_000  # labels of all candidates together; with more, a beam search finds the best


class LabelSets:
    """An automaton over symbols, with N states. Every answer starts in state 0.

    ``allowed``: (N, V), whether a symbol is allowed in a state. ``next_states``: (N, V), the state
    after the symbol. ``ends``: (N,), whether only ``</s>`` is allowed.
    """

    def __init__(self, arcs: dict[tuple[int, int], int], vocabulary: int, eos: int) -> None:
        """``arcs``: (state, symbol) -> next state. Raises ``UserError`` for too many states."""
        count = 1 + max(max(state, target) for (state, _), target in arcs.items())
        if count * vocabulary > MOST_ARCS:
            raise UserError(
                f"--within_labels: {count:,} states are too many for the label sequences of train; "
                "use fewer or shorter sequences, or --within_labels set"
            )
        self.allowed = torch.zeros(count, vocabulary, dtype=torch.bool)
        self.next_states = torch.zeros(count, vocabulary, dtype=torch.long)
        for arc, target in arcs.items():
            self.allowed[arc], self.next_states[arc] = True, target
        allowed_labels = self.allowed.clone()
        allowed_labels[:, eos] = False
        self.ends = ~allowed_labels.any(1)

    @classmethod
    def build(
        cls, kind: str, sequences: Iterable[Sequence[int]], vocabulary: int, eos: int
    ) -> LabelSets:
        """Build one ``kind``. ``set``: one or more symbols of the sequences, in any order.
        ``slots``: at each position, any symbol that a sequence has there. ``trie``: only whole
        sequences. ``slots`` and ``trie`` allow ``</s>`` at positions where a sequence ends.
        """
        arcs: dict[tuple[int, int], int] = {}
        if kind == "set":
            symbols = {symbol for sequence in sequences for symbol in sequence}
            arcs = {(state, symbol): 1 for state in (0, 1) for symbol in sorted(symbols)}
            return cls({**arcs, (1, eos): 1}, vocabulary, eos)
        count = 1
        for sequence in dict.fromkeys(map(tuple, sequences)):
            state = 0
            for position, symbol in enumerate(sequence, start=1):
                target = position if kind == "slots" else arcs.get((state, symbol), count)
                count = max(count, target + 1)
                arcs[state, symbol] = target
                state = target
            arcs[state, eos] = state
        return cls(arcs, vocabulary, eos)

    def to(self, device: torch.device) -> LabelSets:
        """Move the tensors in place."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self

    def mask(self, scores: Tensor, states: Tensor) -> Tensor:
        """Return ``scores``, (..., V), with -inf where ``states``, (...), forbid the symbol."""
        return scores.masked_fill(~self.allowed[states], -torch.inf)


class LabelAnswer(NamedTuple):
    """An answer with natural-log probabilities: of all labels, and of each after the previous."""

    labels: tuple[str, ...]
    score: float
    label_scores: tuple[float, ...]


class LabelAnswers:
    """Finds the likeliest answers of a prompt within its label set.

    The candidates are the label sequences of train or, if these are unknown, all combinations of
    the slots' labels. All candidates are scored exactly. There are two exceptions: texts, and
    several labels per answer if all candidates together have more than ``MOST_SCORED`` labels. Then
    a beam search finds the answers. The beam is as wide as the number of requested answers.
    """

    def __init__(self, record: PromptRecord, dictionary: Dictionary) -> None:
        """Raises ``UserError`` if ``dictionary`` does not contain a label unit."""
        if record.training.get("verbalizer") == "learnable":
            dictionary = with_joint_names(dictionary, record.verbal.values())
        for unit in record.verbal.values():
            if dictionary.index(unit) == dictionary.unk():
                raise UserError(
                    f"{record.task}: label unit {unit} is not in the dict.txt of "
                    f"{record.unit_model}"
                )
        self._eos = dictionary.eos()
        symbol_of = {label: dictionary.index(unit) for label, unit in record.verbal.items()}
        self._labels_of = {symbol: label for label, symbol in symbol_of.items()}
        slots, answers = _labels_by_position(record), record.label_sequences
        kind = "set" if record.is_text else "slots" if answers is None else "trie"
        count = math.prod(map(len, slots)) if answers is None else len(answers)
        # one matrix product scores all single labels, however many there are
        is_small = record.most_labels == 1 or count * record.most_labels <= MOST_SCORED
        score_all = is_small and not record.is_text
        if answers is None and score_all:
            answers = list(itertools.product(*slots))
        elif answers is None:  # the fewest answers that have every label at all its positions
            longest = max(map(len, slots))
            answers = [[labels[n % len(labels)] for labels in slots] for n in range(longest)]
        sequences = dict.fromkeys(tuple(symbol_of[label] for label in labels) for labels in answers)
        self._sequences, self._sets = list(sequences), None
        self._limit = label_limit(None, record.most_labels)
        if not score_all:
            self._sets = LabelSets.build(kind, sequences, len(dictionary), self._eos)

    def __call__(self, lm: CachedLM, state: State, top: int) -> list[list[LabelAnswer]]:
        """Return the ``top`` likeliest answers per row of ``state``, best first; all, if fewer."""
        if self._sets is not None:
            sets = self._sets.to(lm.device)
            beams = beam_search(lm, state, top, self._limit, sets, lenpen=0.0)
            return [[self._answer(*answer) for answer in beam] for beam in beams]
        totals, scores = score_sequences(lm, state, self._sequences, self._eos)
        best = totals.topk(min(top, len(self._sequences)))  # (B, top)
        scores = scores.gather(1, best.indices.unsqueeze(2).expand(-1, -1, scores.shape[2]))
        rows = zip(best.indices.tolist(), scores.tolist(), best.values.tolist())
        return [
            [self._answer(self._sequences[index], *scores) for index, *scores in zip(*row)]
            for row in rows
        ]

    def _answer(self, symbols: Sequence[int], scores: Sequence[float], total: float) -> LabelAnswer:
        labels = tuple(self._labels_of[symbol] for symbol in symbols)
        return LabelAnswer(labels, total, tuple(scores[: len(symbols)]))


def _labels_by_position(record: PromptRecord) -> list[list[str]]:
    """Return the labels that each position allows: the labels of its slot, or all labels."""
    slots: dict[str, list[str]] = {}
    for label, entry in record.labels.items():
        slots.setdefault(entry["slot"], []).append(label)
    if len(slots) == record.labels_per_utterance:
        return list(slots.values())
    return [list(record.labels)] * max(1, record.labels_per_utterance)


@torch.inference_mode()
def score_sequences(
    lm: CachedLM, state: State, sequences: Sequence[tuple[int, ...]], eos: int
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of S distinct symbol sequences after the rows of ``state``: of whole
    sequences, (B, S), and of each symbol, (B, S, longest), 0 after the last symbol.

    The sequences form a tree, and each step reads one level. The hypotheses of a step are all
    prefixes of that length that a symbol follows, so single labels need no step. ``</s>`` is scored
    only if the sequence is a prefix of another: otherwise ``</s>`` is the only possible symbol.
    """
    batch, longest = len(state.lengths), max(map(len, sequences))
    symbol_scores = state.logits.new_zeros(batch, len(sequences), longest + 1)
    previous: dict[tuple[int, ...], int] = {}  # the level above: prefix -> hypothesis
    for length in range(longest):
        prefixes = dict.fromkeys(symbols[:length] for symbols in sequences if len(symbols) > length)
        level = {prefix: hypothesis for hypothesis, prefix in enumerate(prefixes)}
        if length:
            parents = torch.tensor([previous[prefix[:-1]] for prefix in level], device=lm.device)
            latest = torch.tensor([prefix[-1] for prefix in level], device=lm.device)
            state = lm.step(state, latest.expand(batch, -1), parents.expand(batch, -1))
        arcs = [
            (number, level[symbols[:length]], (*symbols, eos)[length])
            for number, symbols in enumerate(sequences)
            if len(symbols) >= length and symbols[:length] in level
        ]
        numbers, hypotheses, next_symbols = torch.tensor(arcs, device=lm.device).T
        scores = log_probabilities(state.logits, lm.pad)  # (B, hypotheses, V)
        symbol_scores[:, numbers, length] = scores[:, hypotheses, next_symbols]
        previous = level
    ends = torch.tensor([len(symbols) for symbols in sequences], device=lm.device)
    is_after = torch.arange(longest, device=lm.device) >= ends[:, None]  # </s> is not a label
    return symbol_scores.sum(2), symbol_scores[:, :, :longest].masked_fill(is_after, 0.0)
