"""Decoding as the published code does it: fairseq's SequenceGenerator pushes every unit through the
whole LM, one step at a time, and nothing is kept from step to step.

It is what our decoding must equal, and what it is measured against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqDecoder, FairseqLanguageModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from tests.ulm_prompt.test_model import published_logits
from ulm_prompt.prompt_lm.model import PromptLanguageModel

BATCH = 16  # as published


class PublishedDecoder(FairseqDecoder):
    """The prompted LM as fairseq's generator wants it: all tokens in, all logits out, no state."""

    def __init__(self, model: PromptLanguageModel, dictionary: Dictionary) -> None:
        super().__init__(dictionary)
        self.model = model

    def forward(self, prev_output_tokens: Tensor, **others: object) -> tuple[Tensor, dict]:
        prompt = self.model.prompt
        logits = published_logits(self.model.lm, prompt, prev_output_tokens, prompt.inputs)
        return logits, {"attn": [None]}

    def max_positions(self) -> int:
        return 100_000


def hypotheses(
    model: PromptLanguageModel,
    dictionary: Dictionary,
    batch: Sequence[Tensor],
    max_labels: int,
    **options: object,
) -> list[list[dict]]:
    """fairseq's hypotheses, best first, for each row ``</s> units <s>`` of a batch."""
    generator = SequenceGenerator(
        [FairseqLanguageModel(PublishedDecoder(model, dictionary))], dictionary, **options
    )
    prefix = torch.nn.utils.rnn.pad_sequence(
        [row[1:] for row in batch], batch_first=True, padding_value=dictionary.pad()
    ).to(model.prompt.sep.device)  # (B, T - 1)
    generator.max_len_b = prefix.shape[1] + max_labels
    lengths = torch.tensor([len(row) - 1 for row in batch])
    sample = {"net_input": {"src_tokens": prefix, "src_lengths": lengths}}
    return generator.generate([], sample, prefix_tokens=prefix)


def decode_as_published(
    model: PromptLanguageModel,
    dictionary: Dictionary,
    rows: Sequence[Tensor],
    max_labels: int,
    batch_size: int = BATCH,
) -> Iterator[tuple[int, list[int]]]:
    """Greedy answers as (row number, symbols before ``</s>``), in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found = hypotheses(model, dictionary, [rows[index] for index in batch], max_labels)
        for index, (best, *_) in zip(batch, found):
            answer = best["tokens"][len(rows[index]) - 1 :].tolist()
            if dictionary.eos() in answer:
                answer = answer[: answer.index(dictionary.eos())]
            yield index, answer[:max_labels]
