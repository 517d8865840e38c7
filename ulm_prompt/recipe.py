"""How a prompt (or a whole LM) is trained: a named file in ulm_prompt/config/recipes/, as fairseq's
flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError
from ulm_prompt.tasks import CONFIG

SPACES = ("input", "projected")
SCHEDULES = ("fixed", "cosine", "inverse_sqrt")


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
    max_epoch: int = MISSING
    max_update: int = MISSING
    patience: int = MISSING
    best_by: str = MISSING
    seed: int = MISSING


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
    for name, choices in (("space", SPACES), ("lr_schedule", SCHEDULES)):
        if getattr(recipe, name) not in choices:
            found = getattr(recipe, name)
            raise UserError(f"recipe, {name}={found}: expected one of {', '.join(choices)}")
    if recipe.lr_schedule == "cosine" and not recipe.max_update:
        raise UserError("lr_schedule cosine: needs max_update, the update at which it ends")
    return recipe


def fairseq_flags(recipe: Recipe) -> list[str]:
    """The recipe as flags of fairseq-train."""
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
        "--max-epoch": recipe.max_epoch,
        "--max-update": recipe.max_update,
        "--patience": recipe.patience or -1,
        "--best-checkpoint-metric": recipe.best_by,
        "--seed": recipe.seed,
    }
    if recipe.lr_schedule == "cosine":
        flags["--lr-period-updates"] = recipe.max_update - recipe.warmup_updates
    words = [str(word) for flag in flags.items() for word in flag]
    words += ["--projected"] * (recipe.space == "projected")
    return words + ["--maximize-best-checkpoint-metric"] * (recipe.best_by == "accuracy")
