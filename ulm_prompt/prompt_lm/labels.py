"""Answers within a task's labels: which symbols may come next, and the likeliest answers."""

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

MOST_ARCS = 100_000_000  # states times symbols of an automaton, nine bytes each
MOST_SCORED = 3_000  # labels in sequences that are all scored; of more, a beam finds the likeliest


class LabelSets:
    """A small automaton over symbols; every answer starts in state 0.

    ``allowed``: (N, V), whether a symbol may follow in a state. ``following``: (N, V), the state it
    leads to. ``ends``: (N,), whether nothing but ``</s>`` may follow.
    """

    def __init__(self, arcs: dict[tuple[int, int], int], vocabulary: int, eos: int) -> None:
        """``arcs``: (state, symbol) -> next state. Raises ``UserError`` for too many states."""
        count = 1 + max(max(state, target) for (state, _), target in arcs.items())
        if count * vocabulary > MOST_ARCS:
            raise UserError(
                f"--within_labels: {count:,} states for the label sequences of train are too many; "
                "expected shorter or fewer ones; use --within_labels set"
            )
        self.allowed = torch.zeros(count, vocabulary, dtype=torch.bool)
        self.following = torch.zeros(count, vocabulary, dtype=torch.long)
        for arc, target in arcs.items():
            self.allowed[arc], self.following[arc] = True, target
        others = self.allowed.clone()
        others[:, eos] = False
        self.ends = ~others.any(1)

    @classmethod
    def build(
        cls, kind: str, sequences: Iterable[Sequence[int]], vocabulary: int, eos: int
    ) -> LabelSets:
        """``set``: any symbol of any sequence, any number of times, then ``</s>``. ``slots``: the
        symbols that some sequence has at this position. ``trie``: only whole sequences. ``</s>``
        may follow where some sequence ends. Raises ``UserError`` where that takes too much memory.
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
        """Move in place."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self

    def mask(self, scores: Tensor, states: Tensor) -> Tensor:
        """``scores``, (..., V), ruled out where ``states``, (...), do not allow the symbol."""
        return scores.masked_fill(~self.allowed[states], -torch.inf)


class LabelAnswer(NamedTuple):
    """Labels, the LM's natural-log probability of them all, and of each after those before."""

    labels: tuple[str, ...]
    score: float
    label_scores: tuple[float, ...]


class LabelAnswers:
    """A prompt's likeliest answers within its label set.

    The candidates are the label sequences of train; where these are not known, every combination of
    the slots' labels. All are scored, exactly, unless they are texts or, of several labels each,
    hold more than ``MOST_SCORED``: among those a beam searches, as wide as answers are wanted.
    """

    def __init__(self, record: PromptRecord, dictionary: Dictionary) -> None:
        """Raises ``UserError`` for a label unit that ``dictionary`` lacks."""
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
        slots, known = _labels_by_position(record), record.label_sequences
        count = math.prod(map(len, slots)) if known is None else len(known)
        # single labels are one product, however many
        few = record.most_labels == 1 or count * record.most_labels <= MOST_SCORED
        kind = "set" if record.is_text else "slots" if known is None else "trie"
        if known is None and few and not record.is_text:
            known = list(itertools.product(*slots))
        elif known is None:  # as many as show every label at each of its positions
            longest = max(map(len, slots))
            known = [[labels[n % len(labels)] for labels in slots] for n in range(longest)]
        sequences = dict.fromkeys(tuple(symbol_of[label] for label in labels) for labels in known)
        self._sequences, self._sets = list(sequences), None
        self._limit = label_limit(None, record.most_labels)
        if record.is_text or not few:
            self._sets = LabelSets.build(kind, sequences, len(dictionary), self._eos)

    def __call__(self, lm: CachedLM, state: State, top: int) -> list[list[LabelAnswer]]:
        """The ``top`` likeliest answers to each row of ``state``, best first, or all if fewer."""
        if self._sets is not None:
            sets = self._sets.to(lm.device)
            found = beam_search(lm, state, top, self._limit, sets, lenpen=0.0)
            return [[self._named(*answer) for answer in of_row] for of_row in found]
        totals, shares = score_sequences(lm, state, self._sequences, self._eos)
        best = totals.topk(min(top, len(self._sequences)))  # (B, top)
        shares = shares.gather(1, best.indices.unsqueeze(2).expand(-1, -1, shares.shape[2]))
        found = zip(best.indices.tolist(), shares.tolist(), best.values.tolist())
        return [
            [self._named(self._sequences[index], *scores) for index, *scores in zip(*of_row)]
            for of_row in found
        ]

    def _named(self, symbols: Sequence[int], scores: Sequence[float], total: float) -> LabelAnswer:
        labels = tuple(self._labels_of[symbol] for symbol in symbols)
        return LabelAnswer(labels, total, tuple(scores[: len(symbols)]))


def _labels_by_position(record: PromptRecord) -> list[list[str]]:
    """The labels that may stand at each position: those of its slot, or all of them."""
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
    """Log-probabilities of S different symbol sequences after the rows of ``state``: in all,
    (B, S), and of each symbol, (B, S, longest), 0 behind the last.

    The sequences are read as a tree, a level a step: its hypotheses are all prefixes of that length
    which something may follow, so single labels take no step. ``</s>`` counts where something else
    could follow (a sequence begins another), not where a sequence can only end.
    """
    batch, longest = len(state.lengths), max(map(len, sequences))
    shares = state.logits.new_zeros(batch, len(sequences), longest + 1)
    earlier: dict[tuple[int, ...], int] = {}
    for length in range(longest):
        level = dict.fromkeys(symbols[:length] for symbols in sequences if len(symbols) > length)
        level = {prefix: column for column, prefix in enumerate(level)}
        if length:
            parents = torch.tensor([earlier[prefix[:-1]] for prefix in level], device=lm.device)
            latest = torch.tensor([prefix[-1] for prefix in level], device=lm.device)
            state = lm.step(state, latest.expand(batch, -1), parents.expand(batch, -1))
        arcs = [
            (number, level[symbols[:length]], (*symbols, eos)[length])
            for number, symbols in enumerate(sequences)
            if len(symbols) >= length and symbols[:length] in level
        ]
        numbers, columns, following = torch.tensor(arcs, device=lm.device).T
        scores = log_probabilities(state.logits, lm.pad)  # (B, prefixes, V)
        shares[:, numbers, length] = scores[:, columns, following]
        earlier = level
    ends = torch.tensor([len(symbols) for symbols in sequences], device=lm.device)
    behind = torch.arange(longest, device=lm.device) >= ends[:, None]  # </s> is no label
    return shares.sum(2), shares[:, :, :longest].masked_fill(behind, 0.0)
