"""A training step as the published code takes it, on the stock layers.

A Python loop puts each row of the batch together with P prefix vectors; the prefix positions go
through every layer, which replaces their keys and values; the logits of all positions are computed,
and the loss is taken from ``<s>`` on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor

from ulm_prompt.prompt_lm.model import SEP, PromptLanguageModel

PAD = 1


def inputs(model: PromptLanguageModel, tokens: Tensor) -> Tensor:
    """(B, T) -> (P + T, B, D), row by row and position by position."""
    decoder, prompt = model.lm.decoder, model.prompt
    rows = []
    for row, positions in zip(tokens, decoder.embed_positions(tokens)):
        vectors = [prompt.sep[0] if token == SEP else decoder.embed_tokens(token) for token in row]
        rows.append(
            torch.cat([prompt.inputs, decoder.embed_scale * torch.stack(vectors) + positions])
        )
    return torch.stack(rows).transpose(0, 1)


def attend(
    layer: TransformerDecoderLayer, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """fairseq's attention written out, the prefix's keys and values replaced: (P + T, B, D)."""
    attention, (length, batch, width) = layer.self_attn, x.shape

    def replaced(prefix: Tensor) -> Tensor:
        return torch.cat([prefix.unsqueeze(1).expand(-1, batch, -1), x[len(prefix) :]])

    def heads(projected: Tensor) -> Tensor:  # -> (B * H, P + T, D/H)
        return projected.reshape(length, batch * layer.nh, -1).transpose(0, 1)

    query = heads(attention.q_proj(x) * attention.scaling)
    weights = torch.bmm(query, heads(attention.k_proj(replaced(keys))).transpose(1, 2)) + mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).type_as(weights)
    attended = torch.bmm(weights, heads(attention.v_proj(replaced(values))))
    return attention.out_proj(attended.transpose(0, 1).reshape(length, batch, width))


def published_loss(model: PromptLanguageModel, tokens: Tensor) -> Tensor:
    """The summed loss of a padded batch of rows ``</s> units <s> labels </s>``: (B, T + 1)."""
    decoder, prompt = model.lm.decoder, model.prompt
    tokens, target = tokens[:, :-1], tokens[:, 1:]
    x = inputs(model, tokens)
    mask = x.new_full((len(x), len(x)), -torch.inf).triu(1)
    keys, values = prompt.dropout(prompt.keys), prompt.dropout(prompt.values)
    for layer, key, value in zip(decoder.layers, keys, values):
        x = x + attend(layer, layer.self_attn_layer_norm(x), key, value, mask)
        x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    logits = decoder.output_layer(decoder.layer_norm(x)).transpose(0, 1)[:, prompt.length :]
    losses = F.cross_entropy(
        logits.transpose(1, 2), target, ignore_index=PAD, reduction="none"
    )  # (B, T)
    return (losses * ((target == SEP).cumsum(1) > 0)).sum()
