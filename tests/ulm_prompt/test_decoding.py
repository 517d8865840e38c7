"""Cached decoding against fairseq's SequenceGenerator over the uncached published arrangement."""

from __future__ import annotations

import torch
from fairseq.models import FairseqDecoder, FairseqLanguageModel
from fairseq.sequence_generator import SequenceGenerator

from tests.ulm_prompt import tiny
from tests.ulm_prompt.test_model import published_logits
from ulm_prompt.prompt_lm.decoding import Symbols, decode
from ulm_prompt.prompt_lm.model import PromptLanguageModel

SYMBOLS = Symbols(pad=1, eos=2)
LIMIT = 6


class UncachedDecoder(FairseqDecoder):
    """The published arrangement as fairseq's generator wants it: all tokens in, logits out."""

    def __init__(self, model: PromptLanguageModel) -> None:
        super().__init__(tiny.dictionary())
        self.model = model

    def forward(
        self, prev_output_tokens: torch.Tensor, **others: object
    ) -> tuple[torch.Tensor, dict]:
        prompt = self.model.prompt
        return published_logits(self.model.lm, prompt, prev_output_tokens, prompt.inputs), {
            "attn": [None]
        }

    def max_positions(self) -> int:
        return 10_000


def some_rows(count: int = 23) -> list[torch.Tensor]:
    """``</s> units <s>`` of mixed lengths."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(count):
        length = int(torch.randint(1, 30, (1,), generator=generator))
        units = torch.randint(4, 104, (length,), generator=generator)
        rows.append(torch.cat([torch.tensor([2]), units, torch.tensor([0])]))
    return rows


def ours(
    model: PromptLanguageModel, rows: list[torch.Tensor], batch_size: int = 7
) -> list[list[int]]:
    allowed = [torch.tensor([7, 9]), torch.tensor([20, 21, 22])]
    found = decode(model, rows, SYMBOLS, LIMIT, allowed, batch_size)
    free = {row: answer for row, answer, _ in found}
    return [free[row] for row in range(len(rows))]


def test_greedy_equals_fairseq() -> None:
    model = tiny.prompted()
    with torch.no_grad():  # let </s> win now and then, so that answers end at different steps
        model.lm.decoder.embed_tokens.weight[2] *= 25
    rows = some_rows()
    generator = SequenceGenerator(
        [FairseqLanguageModel(UncachedDecoder(model))],
        tiny.dictionary(),
        beam_size=1,
        max_len_b=200,
        min_len=0,
    )
    expected = []
    for row in rows:
        generator.max_len_b = len(row) - 1 + LIMIT
        sample = {
            "net_input": {"src_tokens": row[None, 1:], "src_lengths": torch.tensor([len(row) - 1])}
        }
        best = generator.generate([], sample, prefix_tokens=row[None, 1:])[0][0]["tokens"]
        answer = best[len(row) - 1 :].tolist()
        expected.append(answer[: answer.index(2)] if 2 in answer else answer)
    found = ours(model, rows)
    assert found == expected
    assert len({len(answer) for answer in found}) > 1, "answers of one length test nothing"


def test_batch_size_changes_nothing() -> None:
    model, rows = tiny.prompted(), some_rows()
    assert ours(model, rows, 1) == ours(model, rows, 5) == ours(model, rows, 64)


def test_within_labels_takes_the_best_of_the_allowed() -> None:
    """Step by step over the uncached model, the argmax among the allowed symbols."""
    model, rows = tiny.prompted(), some_rows(9)
    allowed = [torch.tensor([7, 9]), torch.tensor([20, 21, 22])]
    for row, _, within in decode(model, rows, SYMBOLS, LIMIT, allowed, 4):
        tokens = rows[row]
        for choices, found in zip(allowed, within):
            logits = published_logits(model.lm, model.prompt, tokens[None], model.prompt.inputs)[
                0, -1
            ]
            assert found == choices[logits[choices].argmax()]
            tokens = torch.cat([tokens, torch.tensor([found])])
