"""What a run of train.py will be: its record, and what fairseq is told."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pipeline.errors import UserError
from pipeline.runs import provenance
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.label_names import named_labels
from ulm_prompt.prompt_data.prompt_record import PromptRecord, TrainingRun, ended, read_record
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import JOIN, check_data_bin, lm_hashes, load_verbal, verbal_path
from ulm_prompt.training import recipe as recipes
from ulm_prompt.training.recipe import Recipe, Settings

OF_PROMPTS = ("space", "init", "init_scale", "prompt_dropout", "value_lr_scale")  # knobs
LENGTHS = ("prefix_prompt_length", "infix_prompt_length")
NEVER = 10**9  # epochs


def choose_recipe(args: argparse.Namespace, pair: Pair) -> tuple[str, Recipe]:
    """The recipe's name, and its knobs with the changes of the task and the command line. Raises
    ``UserError`` for flags and knobs that contradict each other.
    """
    tuned, prefix, infix = args.fine_tune, args.prefix_prompt_length, args.infix_prompt_length
    name = args.recipe or ("fine_tune" if tuned else pair.config.recipe)
    of_task = [f"{key}={value}" for key, value in pair.config.train.items()]
    dtype = [f"dtype={args.dtype}"] if args.dtype else []
    recipe = recipes.load_recipe(name, [*of_task, *args.set, *dtype])
    changed = [override.split("=", 1)[0] for override in args.set]
    of_prompts = [f"--{name}" for name in LENGTHS if getattr(args, name)]
    of_prompts += [f"--set {knob}" for knob in changed if knob in OF_PROMPTS]
    learnable, text = recipe.verbalizer == "learnable", pair.config.is_sequence
    frozen = f"lm_dropout={recipe.lm_dropout}: for --fine_tune; a prompt's LM is frozen"
    recipes.refuse(
        {
            f"--recipe {name}: only --fine_tune has fine_tune": tuned != (name == "fine_tune"),
            f"{', '.join(of_prompts)}: says how a prompt is trained": tuned and of_prompts,
            frozen: recipe.lm_dropout and not tuned,
            "verbalizer=learnable: belongs to a prompt, --fine_tune has none": learnable and tuned,
            f"verbalizer=learnable: {pair.task} has no fixed number of labels": learnable and text,
            f"--infix_prompt_length {infix}: expected 0 or more": infix < 0,
            "--infix_prompt_length: with a prefix it is, as published, input vectors only; choose "
            "one": prefix and infix,
        }
    )
    return name, recipe


def plan(args: argparse.Namespace, pair: Pair, save_dir: Path) -> PromptRecord:
    """The card of the run that these flags ask for, without its LM. Raises ``UserError`` for flags,
    text or binaries that cannot be trained on.
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
    if recipe.dtype == "auto" and earlier is not None:  # a run resumes in the dtype it began in
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
    """Check all that can be checked without training, and write nothing. Returns the card of the
    run, and what fairseq is told of it beside the recipe: None when the run has ended.
    """
    workspace = Workspace(args.workspace)
    card = plan(args, pair, save_dir)
    lm = lm_folder(workspace, pair.unit_model)
    if done := ended(save_dir, card, lm_hashes(lm)):
        return done, None

    from ulm_prompt.prompt_lm.lm import load_unit_lm

    unit_lm = load_unit_lm(lm)
    dtype = recipes.dtype_to_train_in(card.training["dtype"], args.fine_tune, unit_lm.parameters)
    card = dataclasses.replace(
        card,
        **unit_lm.identity,
        training={**card.training, "dtype": dtype},
        run=dataclasses.replace(card.run, lm=lm_hashes(lm)),
    )
    return card, _prompt_settings(card, workspace.data_bin(pair.unit_model, pair.data_name), lm)


def _prompt_settings(card: PromptRecord, data_bin: Path, lm: Path) -> Settings:
    """What fairseq is told of a prompt's run beside the knobs that it knows by name."""
    knobs = Recipe(**card.training)
    settings = {
        **recipes.schedule_and_dtype(knobs, card.fine_tune),
        "task": {"_name": "unit_prompt", "data": str(data_bin), "lm": str(lm)},
        "model": {
            "_name": "prompt_lm",
            **{name: getattr(card, name) for name in (*LENGTHS, "fine_tune")},
            "projected": knobs.space == "projected",
            "lm_dtype": "float32" if card.fine_tune else knobs.dtype,
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
        settings["model"]["label_units"] = " ".join(card.verbal.values())
        settings["model"]["labels_per_utterance"] = card.labels_per_utterance
    if knobs.validate_every:  # and not after each epoch, of which a few shots make thousands
        interval = knobs.max_epoch or NEVER
        settings["dataset"]["validate_interval"] = interval
        settings["checkpoint"] |= {
            "save_interval": interval,
            "save_interval_updates": knobs.validate_every,
            "keep_interval_updates": 1,  # 0 would keep them all
        }
    return settings
