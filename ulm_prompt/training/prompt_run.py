"""Plan a run of train.py: its record (prompt.json) and its settings for fairseq."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pipeline.errors import UserError
from pipeline.runs import provenance
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data import prompt_record
from ulm_prompt.prompt_data.label_names import named_labels
from ulm_prompt.prompt_data.prompt_record import PromptRecord, TrainingRun, read_record
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import JOIN, check_data_bin, lm_hashes, load_verbal, verbal_path
from ulm_prompt.training import recipe as recipes
from ulm_prompt.training.recipe import Recipe, Settings

PROMPT_KNOBS = ("space", "init", "init_scale", "prompt_dropout", "value_lr_scale")
LENGTHS = ("prefix_prompt_length", "infix_prompt_length")


def choose_recipe(args: argparse.Namespace, pair: Pair) -> tuple[str, Recipe]:
    """Return the recipe's name, and its knobs with the changes of the task and the command line.
    Raises ``UserError`` for flags and knobs that contradict each other.
    """
    tuned, prefix, infix = args.fine_tune, args.prefix_prompt_length, args.infix_prompt_length
    name = args.recipe or ("fine_tune" if tuned else pair.config.recipe)
    task_knobs = [f"{key}={value}" for key, value in pair.config.train.items()]
    dtype = [f"dtype={args.dtype}"] if args.dtype else []
    recipe = recipes.load_recipe(name, [*task_knobs, *args.set, *dtype])
    changed = [override.split("=", 1)[0] for override in args.set]
    prompt_flags = [f"--{name}" for name in LENGTHS if getattr(args, name)]
    prompt_flags += [f"--set {knob}" for knob in changed if knob in PROMPT_KNOBS]
    learnable, text = recipe.verbalizer == "learnable", pair.config.is_text
    frozen = f"lm_dropout={recipe.lm_dropout}: only for --fine_tune; a prompt's LM is frozen"
    recipes.raise_first(
        {
            f"--recipe {name}: use fine_tune with --fine_tune, and another recipe without it": (
                tuned != (name == "fine_tune")
            ),
            f"{', '.join(prompt_flags)}: --fine_tune trains no prompt": tuned and prompt_flags,
            frozen: recipe.lm_dropout and not tuned,
            "verbalizer=learnable: --fine_tune trains no prompt": learnable and tuned,
            f"verbalizer=learnable: {pair.task} has no fixed number of labels": learnable and text,
            f"--infix_prompt_length {infix}: expected 0 or more": infix < 0,
            # as published: then both are input vectors only
            "--infix_prompt_length: excludes a prefix; choose one": prefix and infix,
        }
    )
    return name, recipe


def plan(args: argparse.Namespace, pair: Pair, save_dir: Path) -> PromptRecord:
    """Return the record of the run, without the fields about the LM. Raises ``UserError`` for
    invalid flags, and for stale text or binaries.
    """
    workspace = Workspace(args.workspace)
    recipe_name, recipe = choose_recipe(args, pair)
    prefix, infix = args.prefix_prompt_length, args.infix_prompt_length
    if prefix is None:
        prefix = 0 if infix else pair.config.prefix_prompt_length
    if prefix < 1 and not infix:
        raise UserError(f"--prefix_prompt_length {prefix}: expected at least 1")
    method, verbal = load_verbal(workspace, pair)
    joint = [name for name in verbal.values() if JOIN in name]
    if joint and recipe.verbalizer == "fixed":
        raise UserError(
            f"{verbal_path(workspace, pair)}: {len(joint):,} of {len(verbal):,} labels have no "
            "unit of their own, which verbalizer=fixed needs; add --set verbalizer=learnable"
        )
    data = check_data_bin(workspace, pair)
    earlier = read_record(save_dir)
    if recipe.dtype == "auto" and earlier is not None:  # a run keeps its first dtype
        recipe.dtype = earlier.training.get("dtype", "auto")
    return PromptRecord(
        task=pair.task,
        unit_model=pair.unit_model,
        prefix_prompt_length=0 if args.fine_tune else prefix,
        infix_prompt_length=infix,
        fine_tune=args.fine_tune,
        lm_fingerprint="",
        verbalizer=method,
        verbal=verbal,
        recipe=recipe_name,
        training=vars(recipe),
        labels_per_utterance=pair.config.labels_per_utterance,
        labels={n: label._asdict() for n, label in named_labels(workspace, pair, verbal).items()},
        made_by=provenance(),
        run=TrainingRun(data),
    )


def prepare(
    args: argparse.Namespace, pair: Pair, save_dir: Path
) -> tuple[PromptRecord, Settings | None]:
    """Check everything that can be checked before training, and write nothing. Returns the record
    and fairseq's settings (without the knobs), or None as settings if the run has finished.
    """
    workspace = Workspace(args.workspace)
    record = plan(args, pair, save_dir)
    lm_dir = lm_folder(workspace, pair.unit_model)
    if done := prompt_record.finished_record(save_dir, record, lm_hashes(lm_dir)):
        return done, None

    from ulm_prompt.prompt_lm.lm import load_unit_lm

    unit_lm = load_unit_lm(lm_dir)
    dtype = recipes.dtype_to_train_in(record.training["dtype"], args.fine_tune, unit_lm.parameters)
    record = dataclasses.replace(
        record,
        **unit_lm.identity,
        training={**record.training, "dtype": dtype},
        run=dataclasses.replace(record.run, lm=lm_hashes(lm_dir)),
    )
    data_bin = workspace.data_bin(pair.unit_model, pair.data_name)
    return record, _prompt_settings(record, data_bin, lm_dir)


def _prompt_settings(record: PromptRecord, data_bin: Path, lm_dir: Path) -> Settings:
    """Return fairseq's settings for a run, except the knobs that fairseq knows by name."""
    knobs = Recipe(**record.training)
    settings = {
        **recipes.schedule_and_dtype(knobs, record.fine_tune),
        "task": {"_name": "unit_prompt", "data": str(data_bin), "lm": str(lm_dir)},
        "model": {
            "_name": "prompt_lm",
            **{name: getattr(record, name) for name in (*LENGTHS, "fine_tune")},
            "projected": knobs.space == "projected",
            "lm_dtype": "float32" if record.fine_tune else knobs.dtype,
        },
        "criterion": {"_name": "label_cross_entropy"},
        "optimizer": {"_name": "prompt_adam"},
        "dataset": {"validate_interval_updates": knobs.validate_every},
        "checkpoint": {
            "patience": knobs.patience or -1,
            "best_checkpoint_metric": knobs.best_by,
            "maximize_best_checkpoint_metric": knobs.best_by == "accuracy",
        },
    }
    if knobs.verbalizer == "learnable":
        settings["model"]["label_units"] = " ".join(record.verbal.values())
        settings["model"]["labels_per_utterance"] = record.labels_per_utterance
    if knobs.validate_every:  # not after each epoch: with few shots there are thousands
        interval = knobs.max_epoch or 10**9  # epochs: never
        settings["dataset"]["validate_interval"] = interval
        settings["checkpoint"] |= {
            "save_interval": interval,
            "save_interval_updates": knobs.validate_every,
            "keep_interval_updates": 1,  # 0 would keep them all
        }
    return settings
