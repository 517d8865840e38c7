"""What a prompt's run is to be: checked flags, as fairseq takes them, and the card that says so."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.binaries import SOURCES
from ulm_prompt.prompt_data.prompt_record import PromptRecord, TrainingRun, read_record
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import check_data_bin, load_verbal
from ulm_prompt.scoring.scores import described_labels
from ulm_prompt.training.recipe import Recipe, fairseq_flags, load_recipe

OF_PROMPTS = ("space", "init", "init_scale", "prompt_dropout", "value_lr_scale")  # knobs


class Run(NamedTuple):
    """A checked run: what fairseq is told, and what its card will say."""

    flags: list[object]
    card: PromptRecord


def choose_recipe(args: argparse.Namespace, pair: Pair) -> tuple[str, Recipe]:
    """The recipe's name and its values after the task's and the command line's changes."""
    name = args.recipe or ("fine_tune" if args.fine_tune else pair.config.recipe)
    if args.fine_tune != (name == "fine_tune"):
        raise UserError(
            f"--recipe {name}: --fine_tune takes the recipe fine_tune, and only it does"
        )
    if args.fine_tune:
        knobs = {knob.split("=", 1)[0] for knob in args.set}
        given = ["--prefix_prompt_length"] * (args.prefix_prompt_length is not None)
        given += [f"--set {knob}" for knob in OF_PROMPTS if knob in knobs]
        if given:
            raise UserError(f"{given[0]}: says how a prompt is trained; --fine_tune has none")
    own = [f"{key}={value}" for key, value in pair.config.train.items()]
    asked = [f"dtype={args.dtype}"] if args.dtype else []
    recipe = load_recipe(name, [*own, *args.set, *asked])
    if recipe.lm_dropout and not args.fine_tune:
        raise UserError(f"lm_dropout={recipe.lm_dropout}: for --fine_tune; a prompt's LM is frozen")
    if recipe.verbalizer == "learnable" and args.fine_tune:
        raise UserError("verbalizer=learnable: stands beside a prompt; leave --fine_tune out")
    if recipe.verbalizer == "learnable" and not pair.config.labels_per_utterance:
        raise UserError(
            f"verbalizer=learnable: needs a fixed number of labels an utterance, {pair.task} has "
            "none; take verbalizer=fixed"
        )
    return name, recipe


def plan(args: argparse.Namespace, pair: Pair, save_dir: Path) -> PromptRecord:
    """What the run that these flags ask for would say of itself, its LM left out. Raises
    ``UserError`` for flags, text or binaries that cannot be trained on.
    """
    workspace = Workspace(args.workspace)
    recipe_name, recipe = choose_recipe(args, pair)
    length = args.prefix_prompt_length
    if length is None:
        length = pair.config.prefix_prompt_length
    if length < 1:
        raise UserError(f"--prefix_prompt_length {length}: expected at least 1")
    method, verbal = load_verbal(workspace, pair)
    check_data_bin(workspace, pair)
    data_bin = workspace.data_bin(pair.unit_model, pair.task)

    from pipeline.runs import provenance

    earlier = read_record(save_dir)
    if recipe.dtype == "auto" and earlier is not None:  # a run goes on in the dtype it began in
        recipe.dtype = earlier.training.get("dtype", "auto")
    return PromptRecord(
        task=pair.task,
        unit_model=pair.unit_model,
        prefix_prompt_length=0 if args.fine_tune else length,
        fine_tune=args.fine_tune,
        lm_fingerprint="",
        lm_parameters=0,
        verbalizer=method,
        verbal=verbal,
        recipe=recipe_name,
        training=dataclasses.asdict(recipe),
        labels_per_utterance=pair.config.labels_per_utterance,
        labels=described_labels(workspace, pair, verbal),
        made_by=provenance(),
        run=TrainingRun(data=read_json(data_bin / SOURCES, "ulm_prompt/fairseq_preprocess.py")),
    )


def prepare(args: argparse.Namespace, pair: Pair, save_dir: Path) -> Run:
    """Check all that can be checked without training; write nothing."""
    workspace = Workspace(args.workspace)
    card = plan(args, pair, save_dir)

    from ulm_prompt.prompt_lm.lm import load_unit_lm
    from ulm_prompt.prompt_lm.precision import dtype_to_train_in

    recipe = Recipe(**card.training)
    recipe.dtype = dtype_to_train_in(recipe.dtype, args.fine_tune)
    lm = lm_folder(workspace, pair.unit_model)
    unit_lm = load_unit_lm(lm)
    card = dataclasses.replace(
        card,
        lm_fingerprint=unit_lm.fingerprint,
        lm_parameters=unit_lm.parameters,
        training=dataclasses.asdict(recipe),
    )
    flags = [
        str(workspace.data_bin(pair.unit_model, pair.task)),
        "--task", "unit_prompt",
        "--lm", lm,
        "--arch", "prompt_lm",
        "--criterion", "label_cross_entropy",
        *(["--fine-tune"] if card.fine_tune else
          ["--prefix-prompt-length", card.prefix_prompt_length]),
        *fairseq_flags(recipe, args.fine_tune),
    ]  # fmt: skip
    if recipe.verbalizer == "learnable":
        flags += ["--label-units", " ".join(card.verbal.values())]
        flags += ["--labels-per-utterance", pair.config.labels_per_utterance]
    return Run(flags, card)
