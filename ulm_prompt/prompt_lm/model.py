"""The prompted LM: a frozen stock LM with trainable keys and values beside those of the tokens.

The published arrangement puts P positions before the tokens (a prefix) or before ``<s>`` (an infix)
and replaces their keys and values in every layer. Here only those keys and values exist: the same
numbers, and no computation for the prompt's positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.modules import SinusoidalPositionalEmbedding, TransformerDecoderLayer
from torch import Tensor

from ulm_prompt.prompt_lm.halves import attend, feed_forward
from ulm_prompt.prompt_lm.prompt import KEYS, MAP, VALUES, LabelMap, Prompt, in_input_space

# no postponed annotations here: fairseq reads the types of a dataclass's fields

SEP = 0  # fairseq's index of <s>
LM_DTYPES = ChoiceEnum(["float32", "bfloat16", "float16"])
FLOAT16_SCALE = 256.0  # float16 holds 6e-8 to 65,504; a target's gradient at its logits is up to 1


class KeysValues(NamedTuple):
    """A prompt's keys and values in one layer: (1, H, P, D/H) each."""

    keys: Tensor
    values: Tensor

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """These before the tokens' own, (B, H, T, D/H) each."""
        past = (tensor.expand(len(keys), -1, -1, -1) for tensor in self)
        return tuple(torch.cat(pair, dim=2) for pair in zip(past, (keys, values)))


@dataclass
class PromptLanguageModelConfig(FairseqDataclass):
    prefix_prompt_length: int = field(default=3, metadata={"help": "P, prefix vectors per layer"})
    infix_prompt_length: int = field(default=0, metadata={"help": "the same where <s> is, instead"})
    prompt_dropout: float = field(default=0.1, metadata={"help": "dropout on the prompt's vectors"})
    projected: bool = field(default=False, metadata={"help": "train behind the k/v projections"})
    value_lr_scale: float = field(default=1.0, metadata={"help": "rate of the prompt values / lr"})
    lm_dtype: LM_DTYPES = field(default="float32", metadata={"help": "of the frozen LM"})
    fine_tune: bool = field(default=False, metadata={"help": "no prompt: train the whole LM"})
    label_units: str = field(default="", metadata={"help": "train a map from logits to these"})
    labels_per_utterance: int = field(default=1, metadata={"help": "of that map"})


@register_model("prompt_lm", dataclass=PromptLanguageModelConfig)
class PromptLanguageModel(BaseFairseqModel):
    """``prompt`` given: the LM is frozen and the prompt trains. ``prompt`` None: the whole LM
    trains (FT-LM). ``label_map`` given: it trains beside the prompt.
    """

    def __init__(
        self, lm: TransformerLanguageModel, prompt: Prompt | None, label_map: LabelMap | None = None
    ) -> None:
        super().__init__()
        self.prompt, self.label_map = prompt, label_map
        self.lm = lm  # after the prompt: DDP takes the dtype of the first parameter
        lm.requires_grad_(prompt is None).train(prompt is None)

    @classmethod
    def build_model(cls, cfg: PromptLanguageModelConfig, task: Any) -> "PromptLanguageModel":
        """A model over the LM of ``task``; the task gives the prompt its starting values."""
        lm = task.unit_lm.model
        if cfg.fine_tune:
            return cls(lm, None)
        length, infix = cfg.infix_prompt_length or cfg.prefix_prompt_length, cfg.infix_prompt_length
        shape = len(lm.decoder.layers), length, lm.decoder.embed_dim
        prompt = Prompt(*shape, cfg.prompt_dropout, cfg.projected, infix > 0)
        prompt.values.lr_scale = cfg.value_lr_scale
        names, count = cfg.label_units.split(), cfg.labels_per_utterance
        label_map = LabelMap(names, task.unit_lm.dictionary, count) if names else None
        return cls(lm, prompt, label_map)

    def train(self, mode: bool = True) -> "PromptLanguageModel":
        """A frozen LM stays in evaluation mode: no dropout in it, as published. fairseq calls this
        twice an update: where nothing changes, no module is visited.
        """
        if self.prompt is None or mode != self.training:
            super().train(mode)
            self.lm.train(mode and self.prompt is None)
        return self

    def forward(self, tokens: Tensor, read_at: Tensor) -> Tensor:
        """Logits where the loss looks, (B, Q, V): of the symbols after the positions ``read_at``,
        (B, Q), of ``tokens``, (B, T), rows ``</s> units <s> labels`` padded on the right. The last
        layer computes those positions alone.
        """
        x = self.embed(tokens, self.positions(tokens.shape[1]))  # (B, T, D)
        prefixes = self.prefixes()
        mask = self.mask(tokens)  # (1 or B, T, P + T)
        body_mask = mask.unsqueeze(1)
        if tokens.is_cuda and len(mask) == 1:  # a GPU's fused kernels know the pattern by name
            from torch.nn.attention.bias import causal_lower_right  # takes a second to import

            body_mask = causal_lower_right(*mask.shape[1:])
        *body, last = self.lm.decoder.layers
        for layer, prefix in zip(body, prefixes):
            x = self.block(layer, x, prefix, body_mask)
        x = self.block(last, x, prefixes[-1], mask_at(mask, read_at), read_at)  # (B, Q, D)
        logits = scale_gradient(self.logits(x), self.gradient_scale)
        return self.answers(logits, torch.arange(read_at.shape[1], device=logits.device))

    def answers(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Logits (B, Q, V) after the label map; ``numbers``, (Q,): which of ``<s> labels </s>``."""
        return logits if self.label_map is None else self.label_map(logits, numbers)

    @property
    def gradient_scale(self) -> float:
        """What gradients are multiplied by between the logits and the prompt."""
        half = self.prompt is not None and self.lm.decoder.embed_tokens.weight.dtype == torch.half
        return FLOAT16_SCALE if half else 1.0

    def in_lm_dtype(self, vectors: Tensor) -> Tensor:
        """The prompt's float32 vectors in the dtype of the LM."""
        unscaled = scale_gradient(vectors, 1 / self.gradient_scale)
        return unscaled.to(self.lm.decoder.embed_tokens.weight.dtype)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings with the prompt's own ``<s>``, scaled, plus ``positions``: (B, T, D)."""
        decoder = self.lm.decoder
        table = decoder.embed_tokens
        x = table(tokens) if self.label_map is None else self.label_map.embed(tokens, table)
        if self.prompt is not None:
            sep = self.in_lm_dtype(self.prompt.sep)
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
        """The prompt's keys and values in each layer, projected once for the whole batch."""
        layers, prompt = self.lm.decoder.layers, self.prompt
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
        """True where a token may look: the prefix, itself and what is before it: (T, P + T)."""
        prefix = 0 if self.prompt is None else self.prompt.length
        ones = self.lm.decoder.embed_tokens.weight.new_ones(length, prefix + length)
        return ones.bool().tril(diagonal=prefix)

    def mask(self, tokens: Tensor) -> Tensor:
        """True where a token of ``tokens``, (B, T), may look: (1, T, P + T); with an infix, which
        tokens before ``<s>`` do not see, (B, T, P + T).
        """
        mask = self.causal_mask(tokens.shape[1])
        if self.prompt is None or not self.prompt.infix:
            return mask.unsqueeze(0)
        of_tokens = torch.arange(mask.shape[1], device=mask.device) >= self.prompt.length
        from_sep = (tokens == SEP).cumsum(1) > 0  # (B, T)
        return mask & (from_sep.unsqueeze(2) | of_tokens)

    def block(
        self, layer: TransformerDecoderLayer, x: Tensor, past: Any, mask: Any,
        read_at: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """One stock pre-norm layer: (B, T, D), or, at the positions ``read_at`` alone, (B, Q, D).
        ``past`` joins the keys and values before those of ``x`` to them: ``KeysValues``, the
        cache's ``Buffer``, or None.
        """
        attention = layer.self_attn
        normed = layer.self_attn_layer_norm(x)
        keys = heads_of(layer, attention.k_proj(normed))  # (B, H, T, D/H)
        values = heads_of(layer, attention.v_proj(normed))
        if read_at is not None:
            index = read_at.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x, normed = x.gather(1, index), normed.gather(1, index)
        query = heads_of(layer, attention.q_proj(normed))  # (B, H, Q, D/H)
        dropout = attention.dropout_module.p if attention.training else 0.0
        attended = attention.out_proj(attend(query, keys, values, past, mask, dropout))
        return feed_forward(layer, x + layer.dropout_module(attended))

    def logits(self, x: Tensor) -> Tensor:
        """The stock final layer norm and output projection: (..., V) float32."""
        decoder = self.lm.decoder
        return decoder.output_layer(decoder.layer_norm(x)).float()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What trains alone: the prompt under its published names, or the fine-tuned LM."""
        if self.prompt is None:
            return self.lm.state_dict()
        prompt = self.prompt
        state = prompt.published_state()
        if prompt.projected:  # beside it the trained numbers, from which a run resumes
            state = in_input_space(prompt, self.lm.decoder.layers).published_state()
            state |= {KEYS: prompt.keys.detach().clone(), VALUES: prompt.values.detach().clone()}
        if self.label_map is not None:
            state[MAP] = self.label_map.weight.detach().clone()
        return state

    def load_state_dict(self, state_dict: dict[str, Tensor], **_: Any) -> None:
        """Counterpart of ``state_dict``, strict in any case."""
        if self.prompt is None:
            self.lm.load_state_dict(state_dict, strict=True)
            return
        self.prompt.load_published_state(state_dict, "checkpoint")
        if self.prompt.projected:
            self.prompt.keys.data.copy_(state_dict[KEYS])
            self.prompt.values.data.copy_(state_dict[VALUES])
        if self.label_map is not None:
            self.label_map.load(state_dict, "checkpoint")


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; its gradient is multiplied by ``factor`` on the way back."""
    x = x.view_as(x)
    if factor != 1 and x.requires_grad:
        x.register_hook(lambda gradient: gradient * factor)
    return x


def heads_of(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """(B, T, D) -> (B, H, T, D/H)."""
    return x.unflatten(-1, (layer.nh, -1)).transpose(1, 2)


def mask_at(mask: Tensor, read_at: Tensor) -> Tensor:
    """The rows of ``mask``, (1 or B, T, S), at ``read_at``, (B, Q): (B, 1, Q, S)."""
    mask = mask.expand(len(read_at), -1, -1)
    return mask.gather(1, read_at.unsqueeze(2).expand(-1, -1, mask.shape[2])).unsqueeze(1)


@torch.inference_mode()
def attention_on_prompt(model: PromptLanguageModel, rows: Sequence[Tensor]) -> Tensor:
    """The share of attention on each prompt position at the ``<s>`` of ``rows``, ``</s> units <s>``
    each: the mean over rows, (L, H, P). The rest of 1 falls on tokens.
    """
    layers = model.lm.decoder.layers
    shares = torch.zeros(len(layers), layers[0].nh, model.prompt.length)
    for row in rows:
        tokens = row[None].to(model.lm.decoder.embed_tokens.weight.device)
        x = model.embed(tokens, model.positions(len(row)))  # (1, T, D)
        for index, (layer, prefix) in enumerate(zip(layers, model.prefixes())):
            normed = layer.self_attn_layer_norm(x)
            query = heads_of(layer, layer.self_attn.q_proj(normed[:, -1:]))  # (1, H, 1, D/H)
            keys = heads_of(layer, layer.self_attn.k_proj(normed))
            keys, _ = prefix.join(keys, keys)  # (1, H, P + T, D/H)
            logits = (query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5).float()
            shares[index] += logits.softmax(-1)[0, :, 0, : model.prompt.length].cpu()  # (H, P)
            x = model.block(layer, x, prefix, model.mask(tokens).unsqueeze(1))
    return shares / len(rows)
