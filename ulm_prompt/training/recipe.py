"""How a prompt or a unit LM is trained: a named file in ulm_prompt/config/recipes/ or config/ulm/.

published.yaml and gslm.yaml say every knob, its type and its meaning. The other files hold what
differs from them. A new knob is a line there, and a field of that name in the fairseq dataclass of
the code that uses it (task, model, loss, optimizer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

from pipeline.config import load_config, load_yaml
from pipeline.errors import UserError
from ulm_prompt.prompt_data.tasks import CONFIG

Settings = dict[str, dict[str, Any]]  # fairseq's group -> name -> value
DTYPES = ("float32", "bfloat16", "float16", "auto")
CHOICES = {
    "space": ("input", "projected"),
    "init": ("normal", "tokens", "quiet"),
    "loss_on": ("published", "answer"),
    "lr_schedule": ("fixed", "cosine", "inverse_sqrt"),
    "best_by": ("loss", "accuracy"),
    "verbalizer": ("fixed", "learnable"),
    "sample_break_mode": ("eos", "none"),
    "dtype": DTYPES,
}
AT_LEAST = {  # every other number: 0
    "decoder_embed_dim": 4,  # for the sines of the positions
    **dict.fromkeys(("decoder_layers", "decoder_ffn_embed_dim", "decoder_attention_heads"), 1),
    **dict.fromkeys(("batch_size", "max_tokens", "tokens_per_sample", "update_freq"), 1),
}
BELOW_ONE = ("prompt_dropout", "lm_dropout", "dropout", "unit_noise")
_BETAS = re.compile(r"\(0?\.\d+, ?0?\.\d+\)")


def _schema(name: str, path: Path) -> type:
    """The dataclass ``name`` of the knobs in ``path``; the values there are defaults and types."""
    knobs = [(knob, type(value), value) for knob, value in load_yaml(path).items()]
    # its module: where ranks that are sent a recipe look for the class
    return make_dataclass(name, knobs, namespace={"__module__": __name__})


Recipe = _schema("Recipe", CONFIG / "recipes" / "published.yaml")
UnitLMRecipe = _schema("UnitLMRecipe", CONFIG / "ulm" / "gslm.yaml")


def load_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """Read a prompt's recipe. ``overrides`` are the task's ``train:`` knobs and ``--set`` flags; of
    two the later wins.

    Raises ``UserError`` for an unknown recipe, knob or value.
    """
    recipe = _load(Recipe, CONFIG / "recipes", name, overrides)
    if not _BETAS.fullmatch(recipe.adam_betas):
        raise UserError(f"recipe, adam_betas={recipe.adam_betas}: expected like (0.9, 0.98)")
    return recipe


def load_unit_lm_recipe(name: str, overrides: Sequence[str]) -> UnitLMRecipe:
    """Read a unit LM's recipe. ``overrides`` are ``--set`` flags. Raises ``UserError`` for an
    unknown recipe, knob or value.
    """
    recipe = _load(UnitLMRecipe, CONFIG / "ulm", name, overrides)
    if recipe.max_update < 1:
        raise UserError(f"recipe, max_update={recipe.max_update}: expected at least 1")
    if recipe.decoder_embed_dim % recipe.decoder_attention_heads:
        raise UserError(
            f"recipe, decoder_attention_heads={recipe.decoder_attention_heads}: expected a divisor "
            f"of decoder_embed_dim={recipe.decoder_embed_dim}"
        )
    if recipe.topics and recipe.sample_break_mode != "eos":
        raise UserError(f"recipe, topics={recipe.topics}: needs sample_break_mode=eos")
    return recipe


def _load(schema: type, folder: Path, name: str, overrides: Sequence[str]) -> Any:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"recipe {name}: expected one of {', '.join(names)} ({folder})")
    path = folder / f"{name}.yaml"
    known = [field.name for field in fields(schema)]
    set_knobs = [override.split("=")[0] for override in overrides if "=" in override]
    for knob in (*load_yaml(path), *set_knobs):
        if knob not in known:
            raise UserError(f"recipe {name}: no knob {knob}; there are {', '.join(known)}")
    recipe = load_config(schema, path, overrides)
    knobs = vars(recipe)
    for knob, value in knobs.items():
        least = AT_LEAST.get(knob, 0)
        if knob in CHOICES and value not in CHOICES[knob]:
            expected = f"expected one of {', '.join(CHOICES[knob])}"
        elif knob in BELOW_ONE and not 0 <= value < 1:
            expected = "expected 0 or more, below 1"
        elif (
            isinstance(value, (int, float)) and not least <= value < 2**32
        ):  # nor nan; numpy's seeds
            expected = f"expected at least {least}, below 2**32"
        else:
            continue
        raise UserError(f"recipe, {knob}={value}: {expected}")
    schedule, warmup, end = (knobs[k] for k in ("lr_schedule", "warmup_updates", "max_update"))
    if schedule == "inverse_sqrt" and warmup < 1:
        raise UserError("recipe, warmup_updates=0: lr_schedule=inverse_sqrt needs at least 1")
    if schedule == "cosine" and end <= warmup:
        raise UserError(
            f"recipe, max_update={end}: the cosine schedule ends there, after more than "
            f"warmup_updates={warmup}"
        )
    return recipe


def schedule_and_dtype(recipe: Recipe | UnitLMRecipe, whole_lm: bool) -> Settings:
    """fairseq's settings of both. ``whole_lm``: it trains the LM itself in the dtype, with Adam in
    float32.
    """
    schedule: dict[str, Any] = {"_name": recipe.lr_schedule}
    if recipe.lr_schedule == "cosine":
        schedule["lr_period_updates"] = recipe.max_update - recipe.warmup_updates
    half = {"bf16": recipe.dtype == "bfloat16", "fp16": recipe.dtype == "float16"}
    return {"lr_scheduler": schedule, "common": half if whole_lm else {}}
