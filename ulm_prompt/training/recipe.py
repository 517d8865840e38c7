"""How a prompt (or a whole LM) is trained: a named file in ulm_prompt/config/recipes/, as fairseq's
flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError
from ulm_prompt.prompt_data.tasks import CONFIG

# What the knobs of a recipe may be.


def check_knobs(
    recipe: Any,
    choices: Mapping[str, Sequence[str]],
    at_least: Mapping[str, float],
    shares: Sequence[str],
) -> None:
    """Raises ``UserError`` for a knob of ``recipe`` that is none of its ``choices``, is not
    ``at_least`` so large, or, one of ``shares``, is not from 0 to below 1; and for a
    schedule that its warm-up does not fit.
    """
    knobs = vars(recipe)
    for knob, known in choices.items():
        if knobs[knob] not in known:
            raise UserError(f"recipe, {knob}={knobs[knob]}: expected one of {', '.join(known)}")
    for knob, least in at_least.items():
        if not knobs[knob] >= least:  # nor nan
            raise UserError(f"recipe, {knob}={knobs[knob]}: expected at least {least}")
    for knob in shares:
        if not 0 <= knobs[knob] < 1:
            raise UserError(f"recipe, {knob}={knobs[knob]}: expected 0 or more, below 1")
    if recipe.lr_schedule == "inverse_sqrt" and recipe.warmup_updates < 1:
        raise UserError("recipe, warmup_updates=0: lr_schedule=inverse_sqrt needs at least 1")
    if recipe.lr_schedule == "cosine" and recipe.max_update <= recipe.warmup_updates:
        raise UserError(
            f"recipe, max_update={recipe.max_update}: the cosine schedule ends there, "
            f"after more than warmup_updates={recipe.warmup_updates}"
        )


SCHEDULES = ("fixed", "cosine", "inverse_sqrt")
DTYPES = ("float32", "bfloat16", "float16", "auto")
CHOICES = {
    "space": ("input", "projected"),
    "init": ("normal", "tokens", "quiet"),
    "loss_on": ("published", "answer"),
    "lr_schedule": SCHEDULES,
    "best_by": ("loss", "accuracy"),
    "verbalizer": ("fixed", "learnable"),
    "dtype": DTYPES,
}
AT_LEAST = {"batch_size": 1, "max_tokens": 1, "update_freq": 1, "max_epoch": 0, "max_update": 0,
            "patience": 0, "warmup_updates": 0, "lr": 0, "clip_norm": 0,
            "validate_every": 0, "shots": 0, "seed": 0}  # fmt: skip
SHARES = ("prompt_dropout", "lm_dropout", "unit_noise")
NEVER = 10**9  # epochs
_BETAS = re.compile(r"\(0?\.\d+, ?0?\.\d+\)")


@dataclass
class Recipe:
    """Every knob; the recipes' files say what each one means."""

    space: str = MISSING
    init: str = MISSING
    init_scale: float = MISSING
    prompt_dropout: float = MISSING
    lm_dropout: float = MISSING
    loss_on: str = MISSING
    lr: float = MISSING
    value_lr_scale: float = MISSING
    lr_schedule: str = MISSING
    warmup_updates: int = MISSING
    adam_betas: str = MISSING
    clip_norm: float = MISSING
    batch_size: int = MISSING
    max_tokens: int = MISSING
    skip_long: bool = MISSING
    update_freq: int = MISSING
    max_epoch: int = MISSING
    max_update: int = MISSING
    patience: int = MISSING
    best_by: str = MISSING
    validate_every: int = MISSING
    seed: int = MISSING
    dtype: str = MISSING
    shots: int = MISSING
    verbalizer: str = MISSING
    unit_noise: float = MISSING


def load_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """Read a recipe; ``overrides`` are the task's own ``train:`` knobs and ``--set`` flags, last
    one wins.

    Raises ``UserError`` for an unknown recipe, knob or value.
    """
    folder = CONFIG / "recipes"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"recipe {name}: expected one of {', '.join(names)} ({folder})")
    recipe = load_config(Recipe, folder / f"{name}.yaml", overrides)
    check_knobs(recipe, CHOICES, AT_LEAST, SHARES)
    if not _BETAS.fullmatch(recipe.adam_betas):
        raise UserError(f"recipe, adam_betas={recipe.adam_betas}: expected like (0.9, 0.98)")
    return recipe


def fairseq_flags(recipe: Recipe, fine_tune: bool) -> list[str]:
    """The recipe, its dtype decided, as flags of fairseq-train."""
    flags = {
        "--init": recipe.init,
        "--init-scale": recipe.init_scale,
        "--prompt-dropout": recipe.prompt_dropout,
        "--lm-dropout": recipe.lm_dropout,
        "--loss-on": recipe.loss_on,
        "--value-lr-scale": recipe.value_lr_scale,
        "--optimizer": "prompt_adam",
        "--adam-betas": recipe.adam_betas,
        "--lr": recipe.lr,
        "--lr-scheduler": recipe.lr_schedule,
        "--warmup-updates": recipe.warmup_updates,
        "--clip-norm": recipe.clip_norm,
        "--batch-size": recipe.batch_size,
        "--max-tokens": recipe.max_tokens,
        "--update-freq": recipe.update_freq,
        "--max-epoch": recipe.max_epoch,
        "--max-update": recipe.max_update,
        "--patience": recipe.patience or -1,
        "--best-checkpoint-metric": recipe.best_by,
        "--validate-interval-updates": recipe.validate_every,
        "--seed": recipe.seed,
        "--shots": recipe.shots,
        "--unit-noise": recipe.unit_noise,
    }
    if recipe.validate_every:  # and not after each epoch, of which a few shots make thousands
        flags |= {
            "--validate-interval": recipe.max_epoch or NEVER,
            "--save-interval": recipe.max_epoch or NEVER,
            "--save-interval-updates": recipe.validate_every,
            "--keep-interval-updates": 1,  # 0 would keep them all
        }
    if recipe.lr_schedule == "cosine":
        flags["--lr-period-updates"] = recipe.max_update - recipe.warmup_updates
    if not fine_tune:
        flags["--lm-dtype"] = recipe.dtype
    words = [str(word) for flag in flags.items() for word in flag]
    words += ["--skip-long"] * recipe.skip_long
    words += ["--projected"] * (recipe.space == "projected")
    if fine_tune:
        words += half_precision_flags(recipe.dtype)
    return words + ["--maximize-best-checkpoint-metric"] * (recipe.best_by == "accuracy")


def half_precision_flags(dtype: str) -> list[str]:
    """fairseq's own flag for training a whole model in ``dtype``, its Adam in float32."""
    return {"float32": [], "bfloat16": ["--bf16"], "float16": ["--fp16"]}[dtype]
