"""Which label symbols may come next: what training shows anywhere, or at each place, or its label
sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pipeline.errors import UserError

MOST_ARCS = 100_000_000  # states times symbols of an automaton, nine bytes each


class LabelSets:
    """A small automaton over symbols; every answer starts in state 0.

    ``allowed``: (N, V), whether a symbol may follow in a state. ``following``: (N, V), the state it
    leads to. ``ends``: (N,), whether nothing but ``</s>`` may follow.
    """

    def __init__(self, arcs: dict[tuple[int, int], int], vocabulary: int, eos: int) -> None:
        count = 1 + max(state for pair in arcs.items() for state in (pair[0][0], pair[1]))
        if count * vocabulary > MOST_ARCS:
            raise UserError(
                f"--within_labels: {count:,} states for the label sequences of train are too many; "
                "expected shorter or fewer ones; use --within_labels set"
            )
        self.allowed = torch.zeros(count, vocabulary, dtype=torch.bool)
        self.following = torch.zeros(count, vocabulary, dtype=torch.long)
        for (state, symbol), target in arcs.items():
            self.allowed[state, symbol] = True
            self.following[state, symbol] = target
        others = self.allowed.clone()
        others[:, eos] = False
        self.ends = ~others.any(1)

    @classmethod
    def build(
        cls, kind: str, sequences: Iterable[Sequence[int]], vocabulary: int, eos: int
    ) -> LabelSets:
        """``set``: at each place any symbol of any sequence, then ``</s>`` after one at least.
        ``slots``: at each place any symbol that some sequence has there; ``trie``: only whole
        sequences; ``</s>`` may follow where some sequence ends.

        Raises ``UserError`` where that takes too much memory.
        """
        arcs: dict[tuple[int, int], int] = {}
        if kind == "set":
            symbols = {symbol for sequence in sequences for symbol in sequence}
            arcs = {(state, symbol): 1 for state in (0, 1) for symbol in sorted(symbols)}
            return cls({**arcs, (1, eos): 1}, vocabulary, eos)
        count = 1
        for sequence in dict.fromkeys(map(tuple, sequences)):
            state = 0
            for place, symbol in enumerate(sequence, start=1):
                target = place if kind == "slots" else arcs.get((state, symbol), count)
                count = max(count, target + 1)
                arcs[state, symbol] = target
                state = target
            arcs[state, eos] = state
        return cls(arcs, vocabulary, eos)

    def to(self, device: torch.device) -> LabelSets:
        """Move in place."""
        for name in ("allowed", "following", "ends"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def mask(self, scores: Tensor, states: Tensor) -> Tensor:
        """``scores``, (..., V), ruled out where ``states``, (...), do not allow the symbol."""
        return scores.masked_fill(~self.allowed[states], -torch.inf)
