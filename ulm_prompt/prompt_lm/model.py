"""The prompted LM: a frozen stock LM with trainable keys and values standing before those of the
tokens.

The published arrangement puts P prefix positions before the tokens and replaces their keys and
values in every layer. Here only those keys and values exist: the same numbers, no computation for
the prefix positions.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.modules import SinusoidalPositionalEmbedding, TransformerDecoderLayer
from torch import Tensor

from ulm_prompt.prompt_lm.prompt import KEYS, VALUES, LabelMap, Prompt, in_input_space

# no postponed annotations here: fairseq reads the types of a dataclass's fields


SEP = 0  # fairseq's index of <s>
LM_DTYPES = ChoiceEnum(["float32", "bfloat16", "float16"])


class Past(Protocol):
    """What stands before the current tokens in one layer."""

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values to attend to, given those of the tokens, (B, H, T, D/H) each."""


class KeysValues(NamedTuple):
    """One layer's keys and values of what stands before the current tokens: (B or 1, H, S, D/H)
    each.
    """

    keys: Tensor
    values: Tensor

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """These before the tokens' own, (B, H, T, D/H) each."""
        past = (tensor.expand(len(keys), -1, -1, -1) for tensor in self)
        joined = (torch.cat(pair, dim=2) for pair in zip(past, (keys, values)))
        return tuple(joined)


@dataclass
class PromptLanguageModelConfig(FairseqDataclass):
    prefix_prompt_length: int = field(default=3, metadata={"help": "P, prefix vectors per layer"})
    prompt_dropout: float = field(default=0.1, metadata={"help": "dropout on the prefix vectors"})
    projected: bool = field(default=False, metadata={"help": "train behind the k/v projections"})
    value_lr_scale: float = field(default=1.0, metadata={"help": "rate of the prefix values / lr"})
    lm_dtype: LM_DTYPES = field(default="float32", metadata={"help": "of the frozen LM"})
    fine_tune: bool = field(default=False, metadata={"help": "no prompt: train the whole LM"})
    label_units: str = field(
        default="", metadata={"help": "the labels' units: train a map from logits to labels"}
    )
    labels_per_utterance: int = field(default=1, metadata={"help": "of that map"})


@register_model("prompt_lm", dataclass=PromptLanguageModelConfig)
class PromptLanguageModel(BaseFairseqModel):
    """``prompt`` given: the LM is frozen and the prompt trains. ``prompt`` None: the whole LM
    trains (FT-LM). ``label_map`` given: it trains beside the prompt.
    """

    def __init__(
        self,
        lm: TransformerLanguageModel,
        prompt: Prompt | None,
        label_map: LabelMap | None = None,
    ) -> None:
        super().__init__()
        self.prompt = prompt  # before the LM: DDP takes the dtype of the first parameter
        self.label_map = label_map
        self.lm = lm
        lm.requires_grad_(prompt is None)

    @classmethod
    def build_model(cls, cfg: PromptLanguageModelConfig, task: Any) -> "PromptLanguageModel":
        lm = task.unit_lm.model
        if cfg.fine_tune:
            return cls(lm, None)
        decoder = lm.decoder
        prompt = Prompt(
            len(decoder.layers),
            cfg.prefix_prompt_length,
            decoder.embed_dim,
            cfg.prompt_dropout,
            cfg.projected,
        )
        prompt.values.lr_scale = cfg.value_lr_scale
        model = cls(lm, prompt, _label_map(cfg, task.unit_lm.dictionary))
        task.initialise_prompt(model)
        lm.to(getattr(torch, str(cfg.lm_dtype)))
        return model

    def train(self, mode: bool = True) -> "PromptLanguageModel":
        """A frozen LM stays in evaluation mode: no dropout in it, as published."""
        super().train(mode)
        if self.prompt is not None:
            self.lm.eval()
        return self

    def forward(self, tokens: Tensor, read_at: Tensor) -> Tensor:
        """Logits where the loss looks.

        ``tokens``: (B, T), rows ``</s> units <s> labels`` padded on the right. ``read_at``: (B, Q),
        the positions whose next symbol is asked for. Returns (B, Q, V). The last layer computes
        those positions alone.
        """
        assert tokens.ndim == 2 and read_at.ndim == 2
        x = self.embed(tokens, self.positions(tokens.shape[1]))  # (B, T, D)
        prefixes = self.prefixes()
        mask = self.causal_mask(tokens.shape[1])  # (T, P + T)
        body_mask = mask  # costs nothing on a CPU; a GPU's fused kernels know the pattern by name
        if tokens.is_cuda:
            from torch.nn.attention.bias import causal_lower_right  # takes a second to import

            body_mask = causal_lower_right(*mask.shape)
        *body, last = self.lm.decoder.layers
        for layer, prefix in zip(body, prefixes):
            x = self.block(layer, x, prefix, body_mask)
        mask_read = mask[read_at].unsqueeze(1)  # (B, 1, Q, P + T)
        x = self.block(last, x, prefixes[-1], mask_read, read_at)  # (B, Q, D)
        logits = scale_gradient(self.logits(x).float(), self.gradient_scale)
        return self.answers(logits, torch.arange(read_at.shape[1], device=logits.device))

    def answers(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits (B, Q, V) after the label map; ``places``, (Q,): where in ``<s> labels </s>``."""
        return logits if self.label_map is None else self.label_map(logits, places)

    @property
    def gradient_scale(self) -> float:
        """What gradients are multiplied by between the logits and the prompt."""
        half = self.prompt is not None and self.lm.decoder.embed_tokens.weight.dtype == torch.half
        return FLOAT16_SCALE if half else 1.0

    def in_lm_dtype(self, vectors: Tensor) -> Tensor:
        """The prompt's float32 vectors as the LM takes them."""
        unscaled = scale_gradient(vectors, 1 / self.gradient_scale)
        return unscaled.to(self.lm.decoder.embed_tokens.weight.dtype)

    def embed(self, tokens: Tensor, positions: Tensor, sep: Tensor | None = None) -> Tensor:
        """Token embeddings with the prompt's own ``<s>``, scaled, plus ``positions``: (B, T, D).

        ``sep``, (B, 1, D): the ``<s>`` of each row where rows carry different prompts.
        """
        decoder = self.lm.decoder
        x = decoder.embed_tokens(tokens)
        if sep is None and self.prompt is not None:
            sep = self.in_lm_dtype(self.prompt.sep)
        if sep is not None:
            x = torch.where((tokens == SEP).unsqueeze(-1), sep, x)
        return decoder.dropout_module(decoder.embed_scale * x + positions)

    def positions(self, length: int) -> Tensor:
        """Sinusoidal position vectors 0..length-1 as if there were no prompt: (length, D)."""
        table = self.lm.decoder.embed_positions
        first = table.padding_idx + 1
        if first + length > table.weights.shape[0]:
            table.weights = SinusoidalPositionalEmbedding.get_embedding(
                first + 2 * length, table.embedding_dim, table.padding_idx
            ).to(table.weights)
        return table.weights[first : first + length]

    def prefixes(self) -> list[KeysValues | None]:
        """Each layer's prefix keys and values, projected once for the whole batch."""
        layers = self.lm.decoder.layers
        prompt = self.prompt
        if prompt is None:
            return [None] * len(layers)
        keys = self.in_lm_dtype(prompt.dropout(prompt.keys)).unsqueeze(1)  # (L, 1, P, D)
        values = self.in_lm_dtype(prompt.dropout(prompt.values)).unsqueeze(1)
        if not prompt.projected:
            keys = [layer.self_attn.k_proj(key) for layer, key in zip(layers, keys)]
            values = [layer.self_attn.v_proj(value) for layer, value in zip(layers, values)]
        return [
            KeysValues(heads_of(layer, key), heads_of(layer, value))
            for layer, key, value in zip(layers, keys, values)
        ]

    def causal_mask(self, length: int) -> Tensor:
        """True where a token may look: the whole prefix, itself and what stands before it: (T, P +
        T).
        """
        prefix = 0 if self.prompt is None else self.prompt.length
        device = self.lm.decoder.embed_tokens.weight.device
        mask = torch.ones(length, prefix + length, dtype=torch.bool, device=device)
        return mask.tril(diagonal=prefix)

    def block(
        self,
        layer: TransformerDecoderLayer,
        x: Tensor,
        past: Past | None,
        mask: Tensor | None,
        read_at: Tensor | None = None,
    ) -> Tensor:
        """One stock pre-norm layer with ``past`` keys and values before those of ``x``: (B, T, D).

        With ``read_at``, (B, Q), the output is (B, Q, D): those positions alone.
        """
        attention = layer.self_attn
        normed = layer.self_attn_layer_norm(x)
        keys = heads_of(layer, attention.k_proj(normed))  # (B, H, T, D/H)
        values = heads_of(layer, attention.v_proj(normed))
        if past is not None:
            keys, values = past.join(keys, values)
        if read_at is not None:
            index = read_at.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x, normed = x.gather(1, index), normed.gather(1, index)
        attended = F.scaled_dot_product_attention(
            heads_of(layer, attention.q_proj(normed)),
            keys,
            values,
            attn_mask=mask,
            dropout_p=attention.dropout_module.p if attention.training else 0.0,
        )  # (B, H, Q, D/H)
        attended = attention.out_proj(attended.transpose(1, 2).flatten(2))
        x = x + layer.dropout_module(attended)
        hidden = activate(layer, layer.fc1(layer.final_layer_norm(x)))
        return x + layer.dropout_module(layer.fc2(hidden))

    def logits(self, x: Tensor) -> Tensor:
        """The stock final layer norm and output projection: (..., V)."""
        decoder = self.lm.decoder
        return decoder.output_layer(decoder.layer_norm(x))

    def max_positions(self) -> None:
        """None: sinusoidal positions have no end, and no row is ever filtered away."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What trains alone: the prompt under its published names, or the fine-tuned LM."""
        if self.prompt is None:
            return self.lm.state_dict()
        prompt = self.prompt
        beside = {} if self.label_map is None else self.label_map.state()
        if not prompt.projected:
            return {**prompt.published_state(), **beside}
        published = in_input_space(prompt, self.lm.decoder.layers).published_state()
        raw = {KEYS: prompt.keys.detach().clone(), VALUES: prompt.values.detach().clone()}
        # raw: a resumed run goes on from the very same numbers
        return {**published, **raw, **beside}

    def load_state_dict(
        self,
        state_dict: dict[str, Tensor],
        strict: bool = True,
        model_cfg: Any = None,
        args: argparse.Namespace | None = None,
    ) -> None:
        """Counterpart of ``state_dict``; the signature is fairseq's."""
        if self.prompt is None:
            self.lm.load_state_dict(state_dict, strict=True)
        else:
            self.prompt.load_published_state(state_dict, "checkpoint")
            if self.prompt.projected:
                self.prompt.keys.data.copy_(state_dict[KEYS])
                self.prompt.values.data.copy_(state_dict[VALUES])
            if self.label_map is not None:
                self.label_map.load_state(state_dict, "checkpoint")


def _label_map(cfg: PromptLanguageModelConfig, dictionary: Dictionary) -> LabelMap | None:
    if not cfg.label_units:
        return None
    units = [dictionary.index(unit) for unit in cfg.label_units.split()]
    return LabelMap(units, len(dictionary), cfg.labels_per_utterance, dictionary.eos())


def heads_of(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """(B, T, D) -> (B, H, T, D/H)."""
    return x.unflatten(-1, (layer.nh, -1)).transpose(1, 2)


# ReLU that keeps for the way back what it needs: which numbers were positive, a byte each.


class _LeanReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.relu_())
        ctx.save_for_backward(x > 0)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return gradient * positive


def activate(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """The layer's own activation of ``x``, its widest tensor, which may be overwritten."""
    frozen = not layer.fc2.weight.requires_grad  # else fc2 keeps the activation itself
    if frozen and layer.activation_fn is F.relu and torch.is_grad_enabled() and x.requires_grad:
        return _LeanReLU.apply(x)
    return layer.activation_fn(x)


# How much of its attention the LM spends on the prompt.


@torch.inference_mode()
def attention_on_prompt(model: PromptLanguageModel, rows: Sequence[Tensor]) -> Tensor:
    """The share of attention that falls on each prefix position where the answer is read, at the
    rows' last symbol, averaged over rows: (L, H, P). What remains of 1 falls on the tokens.

    ``rows``: symbols ``</s> units <s>``, of any lengths. ``model`` has a prompt.
    """
    total = 0
    for row in rows:
        total = total + torch.stack(
            _of_one(model, row.to(model.lm.decoder.embed_tokens.weight.device))
        )
    return (total / len(rows)).float().cpu()


def _of_one(model: PromptLanguageModel, row: Tensor) -> list[Tensor]:
    x = model.embed(row[None], model.positions(len(row)))  # (1, T, D)
    mask = model.causal_mask(len(row))  # (T, P + T)
    shares = []
    for layer, prefix in zip(model.lm.decoder.layers, model.prefixes()):
        attention = layer.self_attn
        normed = layer.self_attn_layer_norm(x)
        query = heads_of(layer, attention.q_proj(normed[:, -1:]))  # (1, H, 1, D/H)
        own = heads_of(layer, attention.k_proj(normed))
        keys, _ = prefix.join(own, own)  # (1, H, P + T, D/H)
        scores = query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        shares.append(scores.float().softmax(-1)[0, :, 0, : prefix.keys.shape[2]])  # (H, P)
        x = model.block(layer, x, prefix, mask)
    return shares


# Gradients kept within float16's range on their way through a half-precision LM.


# float16 holds 6e-8 to 65,504; the loss is a sum, so a target's gradient at its logits is up to 1
FLOAT16_SCALE = 256.0


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; its gradient is multiplied by ``factor`` on the way back."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)
