"""The published way of it, computed slowly on the stock layers: what ours must equal, and what it
is measured against.

Prompt positions go through every layer, which replaces their keys and values. Decoding is fairseq's
SequenceGenerator: every unit goes through the whole LM, and nothing is kept from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from fairseq.models import FairseqDecoder, FairseqLanguageModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.model import SEP, PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt

PAD, EOS = 1, 2


class PublishedAttention(torch.nn.Module):
    """A stock attention whose keys and values from ``start`` on are replaced before they are
    projected.
    """

    def __init__(self, attention: torch.nn.Module, keys: Tensor, values: Tensor, start: int):
        super().__init__()
        self.attention, self.keys, self.values, self.start = attention, keys, values, start
        attention.self_attention = False  # else fairseq's own arithmetic projects the query

    def _get_input_buffer(self, incremental_state: None) -> dict:
        return {}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **others: object):
        def replaced(tensor: Tensor, prompt: Tensor) -> Tensor:
            vectors = prompt.unsqueeze(1).expand(-1, tensor.shape[1], -1)
            end = self.start + len(prompt)
            return torch.cat([tensor[: self.start], vectors, tensor[end:]])

        key, value = replaced(key, self.keys), replaced(value, self.values)
        # as published: training takes fairseq's own arithmetic, not torch's
        others["static_kv"] = self.attention.training
        return self.attention(query=query, key=key, value=value, **others)


def logits_of(
    lm: TransformerLanguageModel, prompt: Prompt, tokens: Tensor, inputs: Tensor
) -> Tensor:
    """(B, T) -> (B, T, V): P positions with input vectors, keys and values replaced per layer,
    before the row, or, as an infix, before its ``<s>``.
    """
    vectors = lm.decoder.embed_tokens(tokens)
    vectors[tokens == SEP] = prompt.sep
    if not prompt.infix:
        return _inserted(lm, prompt, tokens, vectors, inputs, 0)
    starts = [row.index(SEP) if SEP in row else len(row) for row in tokens.tolist()]
    rows = zip(tokens.split(1), vectors.split(1), starts)
    return torch.cat([_inserted(lm, prompt, *row, inputs, start) for *row, start in rows])


published_logits = torch.no_grad()(logits_of)


def _inserted(
    lm: TransformerLanguageModel, prompt: Prompt, tokens: Tensor, vectors: Tensor, inputs: Tensor,
    start: int,
) -> Tensor:  # fmt: skip
    decoder = lm.decoder
    x = decoder.embed_scale * vectors + decoder.embed_positions(tokens)
    inputs = inputs.expand(len(tokens), -1, -1)
    x = torch.cat([x[:, :start], inputs, x[:, start:]], dim=1).transpose(0, 1)  # (P + T, B, D)
    mask = x.new_full((len(x), len(x)), -torch.inf).triu(1)
    keys, values = prompt.dropout(prompt.keys), prompt.dropout(prompt.values)
    for layer, *replaced in zip(decoder.layers, keys, values):
        stock = layer.self_attn
        layer.self_attn = PublishedAttention(stock, *replaced, start)
        try:
            x = layer(x, self_attn_mask=mask)[0]
        finally:
            layer.self_attn = stock
    logits = decoder.output_layer(decoder.layer_norm(x)).transpose(0, 1)
    return torch.cat([logits[:, :start], logits[:, start + prompt.length :]], dim=1)


def published_loss(model: PromptLanguageModel, tokens: Tensor) -> Tensor:
    """The summed loss, from ``<s>`` on, of a padded batch of rows ``</s> units <s> labels </s>``:
    (B, T + 1). As published, a Python loop embeds them one by one.
    """
    lm, prompt = model.lm, model.prompt
    embed = lm.decoder.embed_tokens
    tokens, target = tokens[:, :-1], tokens[:, 1:]
    rows = [[prompt.sep[0] if token == SEP else embed(token) for token in row] for row in tokens]
    vectors = torch.stack([torch.stack(row) for row in rows])
    logits = _inserted(lm, prompt, tokens, vectors, prompt.inputs, 0)
    losses = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=PAD, reduction="none")
    return (losses * ((target == SEP).cumsum(1) > 0)).sum()  # losses: (B, T)


class PublishedDecoder(FairseqDecoder):
    """The prompted LM as fairseq's generator wants it: all tokens in, all logits out, no state."""

    def __init__(self, model: PromptLanguageModel) -> None:
        super().__init__(tiny.dictionary())
        self.model = model

    def forward(self, prev_output_tokens: Tensor, **others: object) -> tuple[Tensor, dict]:
        prompt = self.model.prompt
        logits = published_logits(self.model.lm, prompt, prev_output_tokens, prompt.inputs)
        return logits, {"attn": [None]}

    def max_positions(self) -> int:
        return 100_000


def hypotheses(
    model: PromptLanguageModel, batch: Sequence[Tensor], max_labels: int, **options: object
) -> list[list[dict]]:
    """fairseq's hypotheses, best first, for each row ``</s> units <s>`` of a batch."""
    lm = FairseqLanguageModel(PublishedDecoder(model))
    generator = SequenceGenerator([lm], tiny.dictionary(), **options)
    rows = [row[1:] for row in batch]
    prefix = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    prefix = prefix.to(model.prompt.sep.device)  # (B, T - 1)
    generator.max_len_b = prefix.shape[1] + max_labels
    lengths = torch.tensor([len(row) for row in rows])
    sample = {"net_input": {"src_tokens": prefix, "src_lengths": lengths}}
    return generator.generate([], sample, prefix_tokens=prefix)


def decode_as_published(
    model: PromptLanguageModel, rows: Sequence[Tensor], max_labels: int, batch_size: int = 16
) -> Iterator[tuple[int, list[int]]]:
    """Greedy answers as (row number, symbols before ``</s>``), in batches of similar length, of 16
    as published.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found = hypotheses(model, [rows[index] for index in batch], max_labels)
        for index, (best, *_) in zip(batch, found):
            answer = best["tokens"][len(rows[index]) - 1 :].tolist()
            if EOS in answer:
                answer = answer[: answer.index(EOS)]
            yield index, answer[:max_labels]
