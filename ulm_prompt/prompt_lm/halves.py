"""The two halves of a layer, attention and feed-forward network, as a prompt trains through them.

torch's own way back is right and slow here. It copies the widest tensor of a layer four times for
an in-place ReLU, multiplies floats by booleans, and joins the prompt's keys to those of the tokens
by a copy that is thrown away. On a CPU its fused attention is slow on rows of a few dozen units,
and ``masked_fill_`` or ``where`` 20 times as slow as a product with an integer that became a float.
So the way back through both halves is written out, where that is faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor

SHORT = 128  # keys a query; for longer rows the fused kernel needs far less memory


def attend(
    query: Tensor, keys: Tensor, values: Tensor, past: Any, mask: Any, dropout: float
) -> Tensor:
    """Attention of (B, H, Q, D/H) over the tokens' keys and values, (B, H, T, D/H) each, and those
    of ``past`` (see ``PromptLanguageModel.block``), where ``mask`` is True: (B, Q, D).
    """
    trains = torch.is_grad_enabled() and query.requires_grad and isinstance(mask, Tensor)
    if trains and not (query.is_cuda or dropout) and mask.shape[-1] <= SHORT:
        return _ShortAttention.apply(query, keys, values, *(past or (None, None)), mask)
    if past is not None:
        keys, values = past.join(keys, values)
    attended = F.scaled_dot_product_attention(query, keys, values, mask, dropout)
    return attended.transpose(1, 2).flatten(2)


class _ShortAttention(torch.autograd.Function):
    """``softmax(q k / sqrt(d)) v`` in float32, the prompt's keys before those of the tokens."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor,
        past_keys: Tensor | None, past_values: Tensor | None, mask: Tensor,
    ) -> Tensor:  # fmt: skip
        scores = _flat(query) @ _joined(past_keys, keys).transpose(1, 2)  # (B * H, Q, S)
        scores = scores.mul_(query.shape[-1] ** -0.5).unflatten(0, query.shape[:2])
        bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
        shares = scores.add_(bias).softmax(-1).flatten(0, 1)
        ctx.save_for_backward(query, keys, values, past_keys, past_values, shares.to(query.dtype))
        attended = shares @ _joined(past_values, values)  # (B * H, Q, D/H)
        return attended.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, past_keys, past_values, shares = ctx.saved_tensors
        shares = shares.float()  # (B * H, Q, S)
        gradient = _flat(gradient.unflatten(2, (query.shape[1], -1)).transpose(1, 2))
        of_values = shares.transpose(1, 2) @ gradient
        of_scores = (gradient @ _joined(past_values, values).transpose(1, 2)).mul_(shares)
        of_scores -= shares * of_scores.sum(-1, keepdim=True)
        of_scores *= query.shape[-1] ** -0.5
        of_query = (of_scores @ _joined(past_keys, keys)).view(query.shape).to(query.dtype)
        of_keys = of_scores.transpose(1, 2) @ _flat(query)
        of_past_keys, of_keys = _parted(of_keys, past_keys, keys)
        of_past_values, of_values = _parted(of_values, past_values, values)
        return of_query, of_keys, of_values, of_past_keys, of_past_values, None


def _flat(heads: Tensor) -> Tensor:
    """(B, H, Q, D/H) -> (B * H, Q, D/H) float32."""
    return heads.float().flatten(0, 1)


def _joined(past: Tensor | None, tokens: Tensor) -> Tensor:
    """(1, H, P, D/H) before (B, H, T, D/H): (B * H, P + T, D/H) float32."""
    if past is None:
        return _flat(tokens)
    batch, heads, length, width = tokens.shape
    joined = tokens.new_empty(batch, heads, past.shape[2] + length, width, dtype=torch.float32)
    joined[:, :, : past.shape[2]] = past
    joined[:, :, past.shape[2] :] = tokens
    return joined.flatten(0, 1)


def _parted(gradient: Tensor, past: Tensor | None, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
    """The gradient of ``_joined`` for what it joined."""
    gradient = gradient.unflatten(0, tokens.shape[:2]).to(tokens.dtype)
    if past is None:
        return None, gradient
    return gradient[:, :, : past.shape[2]].sum(0, keepdim=True), gradient[:, :, past.shape[2] :]


def feed_forward(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """``x``, (B, T, D), plus the layer's feed-forward network of it."""
    normed = layer.final_layer_norm(x)
    is_frozen = not layer.fc1.weight.requires_grad
    if is_frozen and torch.is_grad_enabled() and layer.activation_fn is F.relu:
        return _FrozenFeedForward.apply(x, normed, layer.fc1, layer.fc2)
    return x + layer.dropout_module(layer.fc2(layer.activation_fn(layer.fc1(normed))))


class _FrozenFeedForward(torch.autograd.Function):
    """``x + fc2(relu(fc1(normed)))``. It keeps which numbers the ReLU left, a byte each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, normed: Tensor, fc1: torch.nn.Linear, fc2: torch.nn.Linear
    ) -> Tensor:
        hidden = fc1(normed).relu_()
        ctx.weights = fc1.weight, fc2.weight
        ctx.save_for_backward(hidden.bool())
        return fc2(hidden).add_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (is_positive,) = ctx.saved_tensors
        fc1, fc2 = ctx.weights
        of_hidden = gradient @ fc2
        of_hidden *= is_positive.view(torch.int8).to(of_hidden.dtype)
        return gradient, of_hidden @ fc1, None, None
