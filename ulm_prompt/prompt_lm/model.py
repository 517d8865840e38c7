"""The prompted LM: a frozen stock LM whose tokens also attend to trainable keys and values.

The published code inserts P positions before the tokens (a prefix) or before ``<s>`` (an infix). In
every layer, it replaces the keys and values of these positions. Here only these keys and values
exist. The results are equal, and nothing is computed for the prompt's positions.

These functions use the prompt's keys and values. ``layer_prompts``, the masks, and for pictures
``attention_on_prompt`` are here. task.py: ``initialise``. prompt.py: ``project``, and ``_solve``
when a ``projected`` prompt is saved. Training on a CPU joins the keys of prompt and tokens in
layer_halves.py (``_joined``, ``_split``), if there are at most ``SHORT`` keys and no dropout in the
LM. Other training and valid use ``KeysValues.join``; decoding uses ``Buffer.join`` in cache.py.
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

from ulm_prompt.prompt_lm import prompt as prompts
from ulm_prompt.prompt_lm.layer_halves import attend, feed_forward
from ulm_prompt.prompt_lm.prompt import KEYS, MAP, VALUES, LabelMap, Prompt

# no postponed annotations here: fairseq reads the types of dataclass fields

SEP = 0  # fairseq's index of <s>
LM_DTYPES = ChoiceEnum(["float32", "bfloat16", "float16"])
FLOAT16_SCALE = 256.0  # float16 covers 6e-8 to 65,504; a target's gradient at logits is at most 1


class KeysValues(NamedTuple):
    """A prompt's keys and values in one layer: (1, H, P, D/H) each."""

    keys: Tensor
    values: Tensor

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Prepend the prompt's keys and values to the tokens' ones, (B, H, T, D/H) each."""
        past = (tensor.expand(len(keys), -1, -1, -1) for tensor in self)
        return tuple(torch.cat(pair, dim=2) for pair in zip(past, (keys, values)))


@dataclass
class PromptLanguageModelConfig(FairseqDataclass):
    prefix_prompt_length: int = field(default=3, metadata={"help": "P, prefix vectors per layer"})
    infix_prompt_length: int = field(default=0, metadata={"help": "P, infix vectors, if no prefix"})
    prompt_dropout: float = field(default=0.1, metadata={"help": "dropout on the prompt's vectors"})
    projected: bool = field(default=False, metadata={"help": "train after the k/v projections"})
    value_lr_scale: float = field(default=1.0, metadata={"help": "factor on the lr of values"})
    lm_dtype: LM_DTYPES = field(default="float32", metadata={"help": "dtype of the frozen LM"})
    fine_tune: bool = field(default=False, metadata={"help": "no prompt: train the whole LM"})
    label_units: str = field(default="", metadata={"help": "units of the labels for a label map"})
    labels_per_utterance: int = field(default=1, metadata={"help": "for the label map"})


@register_model("prompt_lm", dataclass=PromptLanguageModelConfig)
class PromptLanguageModel(BaseFairseqModel):
    """With a ``prompt``, the LM is frozen and the prompt trains. Without one, the whole LM trains
    (FT-LM). A ``label_map`` trains together with the prompt.
    """

    def __init__(
        self, lm: TransformerLanguageModel, prompt: Prompt | None, label_map: LabelMap | None = None
    ) -> None:
        super().__init__()
        self.prompt, self.label_map = prompt, label_map
        self.lm = lm  # after the prompt: DDP uses the dtype of the first parameter
        lm.requires_grad_(prompt is None).train(prompt is None)

    @classmethod
    def build_model(cls, cfg: PromptLanguageModelConfig, task: Any) -> "PromptLanguageModel":
        """Build a model on the LM of ``task``. The task sets the initial values of the prompt."""
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
        """Set the mode, but keep a frozen LM in evaluation mode: no dropout, as published. fairseq
        calls this twice per update, so modules are visited only if the mode changes.
        """
        if self.prompt is None or mode != self.training:
            super().train(mode)
            self.lm.train(mode and self.prompt is None)
        return self

    def forward(self, tokens: Tensor, read_at: Tensor) -> Tensor:
        """Return the logits, (B, Q, V), for the symbols after the positions ``read_at``, (B, Q).
        ``tokens``: (B, T), rows ``</s> units <s> labels``, padded on the right. The last layer
        computes only these positions.
        """
        x = self.embed(tokens, self.position_vectors(tokens.shape[1]))  # (B, T, D)
        layer_prompts = self.layer_prompts()
        mask = self.mask(tokens)  # (1 or B, T, P + T)
        body_mask = mask.unsqueeze(1)
        if tokens.is_cuda and len(mask) == 1:  # fused GPU kernels need the mask as this type
            from torch.nn.attention.bias import causal_lower_right  # takes a second to import

            body_mask = causal_lower_right(*mask.shape[1:])
        *body, last = self.lm.decoder.layers
        for layer, layer_prompt in zip(body, layer_prompts):
            x = self.block(layer, x, layer_prompt, body_mask)
        x = self.block(last, x, layer_prompts[-1], mask_at(mask, read_at), read_at)  # (B, Q, D)
        logits = scale_gradient(self.logits(x), self.gradient_scale)
        return self.apply_label_map(logits, torch.arange(read_at.shape[1], device=logits.device))

    def apply_label_map(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Apply the label map, if any, to (B, Q, V). ``positions``: (Q,), where 0 is ``<s>``."""
        return logits if self.label_map is None else self.label_map(logits, positions)

    @property
    def gradient_scale(self) -> float:
        """The factor on gradients between the logits and the prompt."""
        half = self.prompt is not None and self.lm.decoder.embed_tokens.weight.dtype == torch.half
        return FLOAT16_SCALE if half else 1.0

    def in_lm_dtype(self, vectors: Tensor) -> Tensor:
        """Convert the prompt's float32 vectors to the dtype of the LM."""
        unscaled = scale_gradient(vectors, 1 / self.gradient_scale)
        return unscaled.to(self.lm.decoder.embed_tokens.weight.dtype)

    def embed(self, tokens: Tensor, position_vectors: Tensor) -> Tensor:
        """Embed tokens, with the prompt's ``<s>``; scale, add ``position_vectors``: (B, T, D)."""
        decoder = self.lm.decoder
        table = decoder.embed_tokens
        x = table(tokens) if self.label_map is None else self.label_map.embed(tokens, table)
        if self.prompt is not None:
            sep = self.in_lm_dtype(self.prompt.sep)
            x = torch.where((tokens == SEP).unsqueeze(-1), sep, x)
        return decoder.dropout_module(decoder.embed_scale * x + position_vectors)

    def position_vectors(self, length: int) -> Tensor:
        """Return the sinusoidal vectors, (length, D). The prompt takes no positions."""
        table = self.lm.decoder.embed_positions
        first = table.padding_idx + 1
        if first + length > table.weights.shape[0]:
            table.weights = SinusoidalPositionalEmbedding.get_embedding(
                first + 2 * length, table.embedding_dim, table.padding_idx
            ).to(table.weights)
        return table.weights[first : first + length]

    def layer_prompts(self) -> list[KeysValues | None]:
        """Return the prompt's keys and values per layer, projected in the LM's present dtype."""
        layers, prompt = self.lm.decoder.layers, self.prompt
        if prompt is None:
            return [None] * len(layers)
        keys = self.in_lm_dtype(prompt.dropout(prompt.keys)).unsqueeze(1)  # (L, 1, P, D)
        values = self.in_lm_dtype(prompt.dropout(prompt.values)).unsqueeze(1)
        if not prompt.projected:
            keys, values = prompts.project(keys, values, layers)
        return [
            KeysValues(heads_of(layer, key), heads_of(layer, value))
            for layer, key, value in zip(layers, keys, values)
        ]

    def causal_mask(self, length: int) -> Tensor:
        """Return the mask, (T, P + T): a token attends to the prompt, earlier tokens and itself."""
        prompt_length = 0 if self.prompt is None else self.prompt.length
        ones = self.lm.decoder.embed_tokens.weight.new_ones(length, prompt_length + length)
        return ones.bool().tril(diagonal=prompt_length)

    def mask(self, tokens: Tensor) -> Tensor:
        """Return the mask of ``tokens``, (B, T), True where they attend: (1, T, P + T). With an
        infix, tokens before ``<s>`` do not attend to the prompt: (B, T, P + T).
        """
        mask = self.causal_mask(tokens.shape[1])
        if self.prompt is None or not self.prompt.infix:
            return mask.unsqueeze(0)
        is_token = torch.arange(mask.shape[1], device=mask.device) >= self.prompt.length  # (P + T,)
        from_sep = (tokens == SEP).cumsum(1) > 0  # (B, T)
        return mask & (from_sep.unsqueeze(2) | is_token)

    def block(
        self, layer: TransformerDecoderLayer, x: Tensor, past: Any, mask: Any,
        read_at: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute one stock pre-norm layer: (B, T, D), or (B, Q, D) at only the positions
        ``read_at``. ``past``: the keys and values before ``x``: ``KeysValues``, the cache's
        ``Buffer``, or None. Its ``join`` adds the keys and values of ``x``.
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
        """Apply the stock final layer norm and output projection: (..., V) float32."""
        decoder = self.lm.decoder
        return decoder.output_layer(decoder.layer_norm(x)).float()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return only what trains: the prompt under its published names, or the fine-tuned LM."""
        if self.prompt is None:
            return self.lm.state_dict()
        prompt = self.prompt
        state = prompt.published_state()
        if prompt.projected:  # also the trained tensors, from which a run resumes
            state = prompts.in_input_space(prompt, self.lm.decoder.layers).published_state()
            state |= {KEYS: prompt.keys.detach().clone(), VALUES: prompt.values.detach().clone()}
        if self.label_map is not None:
            state[MAP] = self.label_map.weight.detach().clone()
        return state

    def load_state_dict(self, state_dict: dict[str, Tensor], **_: Any) -> None:
        """Load the result of ``state_dict``. A prompt ignores the entries of an LM."""
        if self.prompt is None:
            self.lm.load_state_dict(state_dict, strict=True)
            return
        self.prompt.load_published_state(state_dict, "checkpoint")
        own = {KEYS: self.prompt.keys, VALUES: self.prompt.values} if self.prompt.projected else {}
        if self.label_map is not None:
            own[MAP] = self.label_map.weight
        prompts.copy_tensors(own, state_dict, "checkpoint")


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x``. The backward pass multiplies its gradient by ``factor``."""
    x = x.view_as(x)
    if factor != 1 and x.requires_grad:
        x.register_hook(lambda gradient: gradient * factor)
    return x


def heads_of(layer: TransformerDecoderLayer, x: Tensor) -> Tensor:
    """Split ``x`` into heads: (B, T, D) -> (B, H, T, D/H)."""
    return x.unflatten(-1, (layer.nh, -1)).transpose(1, 2)


def mask_at(mask: Tensor, read_at: Tensor) -> Tensor:
    """Return the rows of ``mask``, (1 or B, T, S), at ``read_at``, (B, Q): (B, 1, Q, S)."""
    mask = mask.expand(len(read_at), -1, -1)
    return mask.gather(1, read_at.unsqueeze(2).expand(-1, -1, mask.shape[2])).unsqueeze(1)


@torch.inference_mode()
def attention_on_prompt(model: PromptLanguageModel, rows: Sequence[Tensor]) -> Tensor:
    """Return the share of attention from ``<s>`` to each prompt position: the mean over ``rows``,
    (L, H, P). A row is ``</s> units <s>``. The rest of the attention goes to tokens.
    """
    layers = model.lm.decoder.layers
    shares = torch.zeros(len(layers), layers[0].nh, model.prompt.length)
    for row in rows:
        tokens = row[None].to(model.lm.decoder.embed_tokens.weight.device)
        x = model.embed(tokens, model.position_vectors(len(row)))  # (1, T, D)
        for index, (layer, layer_prompt) in enumerate(zip(layers, model.layer_prompts())):
            normed = layer.self_attn_layer_norm(x)
            query = heads_of(layer, layer.self_attn.q_proj(normed[:, -1:]))  # (1, H, 1, D/H)
            keys = heads_of(layer, layer.self_attn.k_proj(normed))
            keys, _ = layer_prompt.join(keys, keys)  # (1, H, P + T, D/H)
            logits = (query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5).float()
            shares[index] += logits.softmax(-1)[0, :, 0, : model.prompt.length].cpu()  # (H, P)
            x = model.block(layer, x, layer_prompt, model.mask(tokens).unsqueeze(1))
    return shares / len(rows)
