"""How a unit LM is trained: a named file in ulm_prompt/config/ulm/, as fairseq's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError
from ulm_prompt.knobs import check_knobs
from ulm_prompt.recipe import DTYPES, SCHEDULES, half_precision_flags
from ulm_prompt.tasks import CONFIG


@dataclass
class UnitLMRecipe:
    """A file in config/ulm/; gslm.yaml says what each knob means."""

    decoder_layers: int = MISSING
    decoder_embed_dim: int = MISSING
    decoder_ffn_embed_dim: int = MISSING
    decoder_attention_heads: int = MISSING
    dropout: float = MISSING
    lr: float = MISSING
    lr_schedule: str = MISSING
    warmup_updates: int = MISSING
    clip_norm: float = MISSING
    tokens_per_sample: int = MISSING
    max_tokens: int = MISSING
    update_freq: int = MISSING
    max_update: int = MISSING
    sample_break_mode: str = MISSING
    topics: int = MISSING
    topic_weight: float = MISSING
    max_valid_utterances: int = MISSING
    seed: int = MISSING
    dtype: str = MISSING


CHOICES = {
    "lr_schedule": SCHEDULES,
    "sample_break_mode": ("eos", "none"),
    "dtype": DTYPES,
}
AT_LEAST = {
    "decoder_embed_dim": 4,  # for the sines of the positions
    **dict.fromkeys(("decoder_layers", "decoder_ffn_embed_dim", "decoder_attention_heads"), 1),
    **dict.fromkeys(("tokens_per_sample", "max_tokens", "update_freq", "max_update"), 1),
    **dict.fromkeys(("lr", "warmup_updates", "clip_norm", "topics", "topic_weight"), 0),
    **dict.fromkeys(("max_valid_utterances", "seed"), 0),
}


def load_unit_lm_recipe(name: str, overrides: Sequence[str]) -> UnitLMRecipe:
    """Read a recipe; ``overrides`` are ``--set`` flags. Raises ``UserError`` for an unknown recipe,
    knob or value.
    """
    recipe = load_config(UnitLMRecipe, CONFIG / "ulm" / f"{name}.yaml", overrides)
    check_knobs(recipe, CHOICES, AT_LEAST, ["dropout"])
    if recipe.decoder_embed_dim % recipe.decoder_attention_heads:
        raise UserError(
            f"recipe, decoder_attention_heads={recipe.decoder_attention_heads}: expected a divisor "
            f"of decoder_embed_dim={recipe.decoder_embed_dim}"
        )
    if recipe.topics and recipe.sample_break_mode != "eos":
        raise UserError(f"recipe, topics={recipe.topics}: needs sample_break_mode=eos")
    return recipe


def fairseq_flags(
    recipe: UnitLMRecipe, data_bin: Path, begin_from: Path | None = None
) -> list[object]:
    """The recipe as flags of fairseq-train: the stock model on our block task, with random weights
    or those of the LM in ``begin_from``.
    """
    schedule: list[object] = ["--lr-scheduler", recipe.lr_schedule]
    if recipe.lr_schedule == "cosine":
        schedule += ["--lr-period-updates", recipe.max_update - recipe.warmup_updates]
    begin = ["--begin-from", begin_from] if begin_from else []
    width = recipe.decoder_embed_dim
    return [
        data_bin,
        "--task", "unit_lm",
        "--arch", "transformer_lm_big",
        "--share-decoder-input-output-embed",
        "--decoder-layers", recipe.decoder_layers,
        "--decoder-embed-dim", width,
        "--decoder-input-dim", width,
        "--decoder-output-dim", width,
        "--decoder-ffn-embed-dim", recipe.decoder_ffn_embed_dim,
        "--decoder-attention-heads", recipe.decoder_attention_heads,
        "--dropout", recipe.dropout,
        "--attention-dropout", recipe.dropout,
        "--criterion", "unit_lm",
        "--topic-weight", recipe.topic_weight,
        "--optimizer", "adam",
        "--adam-betas", "(0.9, 0.98)",
        "--lr", recipe.lr,
        *schedule,
        "--warmup-updates", recipe.warmup_updates,
        "--clip-norm", recipe.clip_norm,
        "--tokens-per-sample", recipe.tokens_per_sample,
        "--sample-break-mode", recipe.sample_break_mode,
        "--max-tokens", recipe.max_tokens,
        "--update-freq", recipe.update_freq,
        "--max-update", recipe.max_update,
        "--seed", recipe.seed,
        *half_precision_flags(recipe.dtype),
        *begin,
    ]  # fmt: skip
