"""The two halves of a transformer layer, attention and feed-forward network, for prompt training.

torch's own backward pass is correct but slow here. It copies the widest tensor of a layer four
times for an in-place ReLU, multiplies floats by booleans, and makes an extra copy to join prompt
keys and token keys. On a CPU, its fused attention is slow for rows of a few dozen units, and
``masked_fill_`` or ``where`` takes 20 times as long as a product with integers converted to float.
So both backward passes are written by hand here, for the cases that are faster this way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor

SHORT = 128  # keys per query; with more, torch's fused kernel needs far less memory


def attend(
    query: Tensor, keys: Tensor, values: Tensor, past: Any, mask: Any, dropout: float
) -> Tensor:
    """Return the attention, (B, Q, D), of ``query``, (B, H, Q, D/H), where ``mask`` is True. The
    keys and values, (B, H, T, D/H) each, follow ``past`` (see ``PromptLanguageModel.block``).
    """
    is_training = torch.is_grad_enabled() and query.requires_grad and isinstance(mask, Tensor)
    if is_training and not (query.is_cuda or dropout) and mask.shape[-1] <= SHORT:
        return _ShortAttention.apply(query, keys, values, *(past or (None, None)), mask)
    if past is not None:
        keys, values = past.join(keys, values)
    attended = F.scaled_dot_product_attention(query, keys, values, mask, dropout)
    return attended.transpose(1, 2).flatten(2)


class _ShortAttention(torch.autograd.Function):
    """``softmax(q k / sqrt(d)) v`` in float32, over the prompt's keys, then the tokens' keys."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor,
        past_keys: Tensor | None, past_values: Tensor | None, mask: Tensor,
    ) -> Tensor:  # fmt: skip
        scores = _flat(query) @ _joined(past_keys, keys).transpose(1, 2)  # (B * H, Q, S)
        scores = scores.mul_(query.shape[-1] ** -0.5).unflatten(0, query.shape[:2])
        bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
        weights = scores.add_(bias).softmax(-1).flatten(0, 1)  # (B * H, Q, S)
        ctx.save_for_backward(query, keys, values, past_keys, past_values, weights.to(query.dtype))
        attended = weights @ _joined(past_values, values)  # (B * H, Q, D/H)
        return attended.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, past_keys, past_values, weights = ctx.saved_tensors
        weights = weights.float()  # (B * H, Q, S)
        grad_output = _flat(grad_output.unflatten(2, (query.shape[1], -1)).transpose(1, 2))
        grad_values = weights.transpose(1, 2) @ grad_output  # (B * H, S, D/H)
        grad_scores = (grad_output @ _joined(past_values, values).transpose(1, 2)).mul_(weights)
        grad_scores -= weights * grad_scores.sum(-1, keepdim=True)
        grad_scores *= query.shape[-1] ** -0.5
        grad_query = (grad_scores @ _joined(past_keys, keys)).view(query.shape).to(query.dtype)
        grad_keys = grad_scores.transpose(1, 2) @ _flat(query)  # (B * H, S, D/H)
        grad_past_keys, grad_keys = _split(grad_keys, past_keys, keys)
        grad_past_values, grad_values = _split(grad_values, past_values, values)
        return grad_query, grad_keys, grad_values, grad_past_keys, grad_past_values, None


def _flat(heads: Tensor) -> Tensor:
    """Convert (B, H, Q, D/H) to (B * H, Q, D/H) float32."""
    return heads.float().flatten(0, 1)


def _joined(past: Tensor | None, tokens: Tensor) -> Tensor:
    """Join (1, H, P, D/H) and (B, H, T, D/H). Return (B * H, P + T, D/H) float32."""
    if past is None:
        return _flat(tokens)
    batch, heads, length, width = tokens.shape
    joined = tokens.new_empty(batch, heads, past.shape[2] + length, width, dtype=torch.float32)
    joined[:, :, : past.shape[2]] = past
    joined[:, :, past.shape[2] :] = tokens
    return joined.flatten(0, 1)


def _split(gradient: Tensor, past: Tensor | None, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
    """Split the gradient of ``_joined`` into the gradients of ``past`` and of ``tokens``."""
    gradient = gradient.unflatten(0, tokens.shape[:2]).to(tokens.dtype)
    if past is None:
        return None, gradient
    return gradient[:, :, : past.shape[2]].sum(0, keepdim=True), gradient[:, :, past.shape[2] :]


def feed_forward(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """Return ``x``, (B, T, D), plus the output of the layer's feed-forward network for ``x``."""
    normed = layer.final_layer_norm(x)
    is_frozen = not layer.fc1.weight.requires_grad
    if is_frozen and torch.is_grad_enabled() and layer.activation_fn is F.relu:
        return _FrozenFeedForward.apply(x, normed, layer.fc1, layer.fc2)
    return x + layer.dropout_module(layer.fc2(layer.activation_fn(layer.fc1(normed))))


class _FrozenFeedForward(torch.autograd.Function):
    """``x + fc2(relu(fc1(normed)))``. It saves one byte per hidden value: whether it is > 0."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, normed: Tensor, fc1: torch.nn.Linear, fc2: torch.nn.Linear
    ) -> Tensor:
        hidden = fc1(normed).relu_()
        ctx.weights = fc1.weight, fc2.weight
        ctx.save_for_backward(hidden.bool())
        return fc2(hidden).add_(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (is_positive,) = ctx.saved_tensors
        fc1, fc2 = ctx.weights
        grad_hidden = grad_output @ fc2
        grad_hidden *= is_positive.view(torch.int8).to(grad_hidden.dtype)
        return grad_output, grad_hidden @ fc1, None, None
