"""The published method, computed slowly by fairseq's own layers. Tests compare our results with
it, benchmarks compare our speed with it.

Prompt positions go through every layer, which replaces their keys and values. fairseq's
SequenceGenerator decodes: every step passes all tokens through the whole LM, without a cache.
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
    """fairseq's attention, with the prompt's ``keys`` and ``values`` from position ``start`` on.
    They replace the inputs of the key and value projections.
    """

    def __init__(self, attention: torch.nn.Module, keys: Tensor, values: Tensor, start: int):
        super().__init__()
        self.attention, self.keys, self.values, self.start = attention, keys, values, start
        attention.self_attention = False  # if True, fairseq takes keys and values from the query

    def _get_input_buffer(self, incremental_state: None) -> dict:
        return {}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: object):
        def replace(tensor: Tensor, prompt: Tensor) -> Tensor:
            vectors = prompt.unsqueeze(1).expand(-1, tensor.shape[1], -1)
            end = self.start + len(prompt)
            return torch.cat([tensor[: self.start], vectors, tensor[end:]])

        key, value = replace(key, self.keys), replace(value, self.values)
        # as published: training uses fairseq's own arithmetic, not torch's
        options["static_kv"] = self.attention.training
        return self.attention(query=query, key=key, value=value, **options)


def logits_of(
    lm: TransformerLanguageModel, prompt: Prompt, tokens: Tensor, inputs: Tensor
) -> Tensor:
    """Return logits, (B, T) -> (B, T, V). The P prompt positions begin as ``inputs``. They precede
    the row, or the row's ``<s>`` if the prompt is an infix.
    """
    vectors = lm.decoder.embed_tokens(tokens)
    vectors[tokens == SEP] = prompt.sep
    if not prompt.infix:
        return _prompted_logits(lm, prompt, tokens, vectors, inputs, 0)
    starts = [row.index(SEP) if SEP in row else len(row) for row in tokens.tolist()]
    rows = zip(tokens.split(1), vectors.split(1), starts)
    return torch.cat([_prompted_logits(lm, prompt, *row, inputs, start) for *row, start in rows])


published_logits = torch.no_grad()(logits_of)


def _prompted_logits(
    lm: TransformerLanguageModel, prompt: Prompt, tokens: Tensor, vectors: Tensor, inputs: Tensor,
    start: int,
) -> Tensor:  # fmt: skip
    decoder = lm.decoder
    x = decoder.embed_scale * vectors + decoder.embed_positions(tokens)
    inputs = inputs.expand(len(tokens), -1, -1)
    x = torch.cat([x[:, :start], inputs, x[:, start:]], dim=1).transpose(0, 1)  # (P + T, B, D)
    mask = x.new_full((len(x), len(x)), -torch.inf).triu(1)
    keys, values = prompt.dropout(prompt.keys), prompt.dropout(prompt.values)
    for layer, layer_keys, layer_values in zip(decoder.layers, keys, values):
        attention = layer.self_attn
        layer.self_attn = PublishedAttention(attention, layer_keys, layer_values, start)
        try:
            x = layer(x, self_attn_mask=mask)[0]
        finally:
            layer.self_attn = attention
    logits = decoder.output_layer(decoder.layer_norm(x)).transpose(0, 1)
    return torch.cat([logits[:, :start], logits[:, start + prompt.length :]], dim=1)


def published_loss(model: PromptLanguageModel, tokens: Tensor) -> Tensor:
    """Return the summed loss, from ``<s>`` on, of a padded batch (B, T + 1) of rows
    ``</s> units <s> labels </s>``. As published, a Python loop embeds the symbols one by one.
    """
    lm, prompt = model.lm, model.prompt
    embed = lm.decoder.embed_tokens
    tokens, target = tokens[:, :-1], tokens[:, 1:]
    rows = [[prompt.sep[0] if token == SEP else embed(token) for token in row] for row in tokens]
    vectors = torch.stack([torch.stack(row) for row in rows])
    logits = _prompted_logits(lm, prompt, tokens, vectors, prompt.inputs, 0)
    losses = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=PAD, reduction="none")
    return (losses * ((target == SEP).cumsum(1) > 0)).sum()  # losses: (B, T)


class PublishedDecoder(FairseqDecoder):
    """The prompted LM for fairseq's generator: all tokens in, all logits out, no cache."""

    def __init__(self, model: PromptLanguageModel) -> None:
        super().__init__(tiny.dictionary())
        self.model = model

    def forward(self, prev_output_tokens: Tensor, **unused: object) -> tuple[Tensor, dict]:
        prompt = self.model.prompt
        logits = published_logits(self.model.lm, prompt, prev_output_tokens, prompt.inputs)
        return logits, {"attn": [None]}

    def max_positions(self) -> int:
        return 100_000


def hypotheses(
    model: PromptLanguageModel, batch: Sequence[Tensor], max_labels: int, **options: object
) -> list[list[dict]]:
    """Return fairseq's hypotheses, best first, for each row ``</s> units <s>`` of a batch."""
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
    """Yield greedy answers as (row number, symbols before ``</s>``). A batch has rows of similar
    length; the published batch size is 16.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        results = hypotheses(model, [rows[index] for index in batch], max_labels)
        for index, (best, *_) in zip(batch, results):
            answer = best["tokens"][len(rows[index]) - 1 :].tolist()
            if EOS in answer:
                answer = answer[: answer.index(EOS)]
            yield index, answer[:max_labels]
