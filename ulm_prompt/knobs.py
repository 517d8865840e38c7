"""What the knobs of a recipe may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UserError


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
