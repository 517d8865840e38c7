"""Recipes say how a prompt or a unit LM is trained: files in ulm_prompt/config/{recipes,ulm}/.

published.yaml and gslm.yaml list every knob with its type and meaning. The other files list only
what they change. To add a knob, add a line there, and a field of the same name in the fairseq
dataclass of the code that uses it (task, model, loss, optimizer). Also add, if needed:

- for a field of another name: a line in ``_prompt_settings`` or ``unit_lm_settings``;
- its valid values: in ``CHOICES``, ``AT_LEAST`` or ``BELOW_ONE``;
- the value that old runs used, or they do not resume: in ``_UNRECORDED`` (prompt_record.py);
- if --fine_tune has no use for it: its name in ``PROMPT_KNOBS`` (prompt_run.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from pipeline.config import load_config, load_yaml
from pipeline.devices import choose_device
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
AT_LEAST = {  # 0 for all other numbers
    "decoder_embed_dim": 4,  # sinusoidal positions need 4
    **dict.fromkeys(("decoder_layers", "decoder_ffn_embed_dim", "decoder_attention_heads"), 1),
    **dict.fromkeys(("batch_size", "max_tokens", "tokens_per_sample", "update_freq"), 1),
}
BELOW_ONE = ("prompt_dropout", "lm_dropout", "dropout", "unit_noise")
_BETAS = re.compile(r"\(0?\.\d+, ?0?\.\d+\)")


def _schema(name: str, path: Path) -> type:
    """Return a dataclass of the knobs in ``path``, with their values as defaults and types."""
    knobs = [(knob, type(value), value) for knob, value in load_yaml(path).items()]
    # ranks that receive a recipe look for its class in this module
    return make_dataclass(name, knobs, namespace={"__module__": __name__})


Recipe = _schema("Recipe", CONFIG / "recipes" / "published.yaml")
UnitLMRecipe = _schema("UnitLMRecipe", CONFIG / "ulm" / "gslm.yaml")


def raise_first(problems: Mapping[str, object]) -> None:
    """Raise ``UserError`` with the first text in ``problems`` whose condition is true."""
    for problem, condition in problems.items():
        if condition:
            raise UserError(problem)


def load_recipe(name: str, overrides: Sequence[str], schema: type = Recipe) -> Any:
    """Read a ``Recipe`` of prompts or a ``UnitLMRecipe``. ``overrides`` are the task's ``train:``
    knobs, then the ``--set`` flags; the last value wins. Raises ``UserError`` for an unknown
    recipe, knob or value, and for values that contradict each other.
    """
    folder = CONFIG / ("recipes" if schema is Recipe else "ulm")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        flag = "recipe" if schema is Recipe else "--config"  # a task's config may set the recipe
        raise UserError(f"{flag} {name}: expected one of {', '.join(names)} ({folder})")
    recipe = load_config(schema, folder / f"{name}.yaml", overrides)
    for knob, value in vars(recipe).items():
        is_valid, expected = True, ""
        if knob in CHOICES:
            is_valid, expected = value in CHOICES[knob], f"one of {', '.join(CHOICES[knob])}"
        elif knob in BELOW_ONE:
            is_valid, expected = 0 <= value < 1, "0 or more, below 1"
        elif isinstance(value, (int, float)):  # refuses nan; numpy's seeds are below 2**32
            least = AT_LEAST.get(knob, 0)
            is_valid, expected = least <= value < 2**32, f"at least {least}, below 2**32"
        raise_first({f"recipe, {knob}={value}: expected {expected}": not is_valid})
    schedule, warmup, end = recipe.lr_schedule, recipe.warmup_updates, recipe.max_update
    knobs = vars(recipe)
    betas, topics = knobs.get("adam_betas", "(0.9, 0.98)"), knobs.get("topics")
    width, heads = knobs.get("decoder_embed_dim", 0), knobs.get("decoder_attention_heads", 1)
    problems = {
        f"adam_betas={betas}: expected a pair like (0.9, 0.98)": not _BETAS.fullmatch(betas),
        "warmup_updates=0: lr_schedule=inverse_sqrt needs at least 1": (
            schedule == "inverse_sqrt" and warmup < 1
        ),
        f"max_update={end}: lr_schedule=cosine needs more updates than warmup_updates={warmup}": (
            schedule == "cosine" and end <= warmup
        ),
        f"max_update={end}: expected at least 1": schema is UnitLMRecipe and end < 1,
        f"decoder_attention_heads={heads}: expected a divisor of decoder_embed_dim={width}": (
            width % heads
        ),
        f"topics={topics}: needs sample_break_mode=eos": (
            topics and recipe.sample_break_mode != "eos"
        ),
    }
    raise_first({f"recipe, {problem}": condition for problem, condition in problems.items()})
    return recipe


def dtype_to_train_in(name: str, whole_lm: bool, parameters: int) -> str:
    """Return the dtype that a recipe's ``dtype`` means on this machine. Prints it and the device.

    Raises ``UserError`` if fairseq cannot train the ``whole_lm`` in this dtype.
    """
    from ulm_prompt.prompt_lm.lm import choose_dtype

    device, why = choose_device()
    dtype, reason = choose_dtype(name, device, parameters)
    chosen = str(dtype).removeprefix("torch.")
    print(f"computes on {why}, in {chosen} ({reason})")
    if whole_lm and chosen == "float16" and device.type == "cpu":
        problem = "fairseq trains a whole LM in float16 only on a GPU; use bfloat16 or float32"
        raise UserError(f"dtype=float16: {problem}")
    return chosen


def schedule_and_dtype(recipe: Recipe | UnitLMRecipe, whole_lm: bool) -> Settings:
    """Return fairseq's settings of the schedule and the dtype. ``whole_lm``: the LM itself trains
    in the dtype, with Adam in float32.
    """
    schedule: dict[str, Any] = {"_name": recipe.lr_schedule}
    if recipe.lr_schedule == "cosine":
        schedule["lr_period_updates"] = recipe.max_update - recipe.warmup_updates
    half = {"bf16": recipe.dtype == "bfloat16", "fp16": recipe.dtype == "float16"}
    return {"lr_scheduler": schedule, "common": half if whole_lm else {}}
