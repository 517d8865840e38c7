"""What a run of train.py or train_ulm.py will be, whether an earlier run is the same, and what it
leaves.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, write_json
from pipeline.runs import provenance
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.prompt_record import (
    BEST,
    LAST,
    PromptRecord,
    TrainingRun,
    ended,
    read_record,
)
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.prompt_data.verbal import check_data_bin, lm_hashes, load_verbal
from ulm_prompt.scoring.scores import named_labels
from ulm_prompt.training.recipe import Recipe, UnitLMRecipe, load_recipe

OF_PROMPTS = ("space", "init", "init_scale", "prompt_dropout", "value_lr_scale")  # knobs
NEVER = 10**9  # epochs
Settings = dict[str, dict[str, Any]]  # fairseq's group -> name -> value


def choose_recipe(args: argparse.Namespace, pair: Pair) -> tuple[str, Recipe]:
    """The recipe's name, and its knobs with the changes of the task and the command line.

    Raises ``UserError`` for flags and knobs that contradict each other.
    """
    name = args.recipe or ("fine_tune" if args.fine_tune else pair.config.recipe)
    if args.fine_tune != (name == "fine_tune"):
        raise UserError(
            f"--recipe {name}: --fine_tune takes the recipe fine_tune, and only it does"
        )
    if args.fine_tune:
        lengths = ("prefix_prompt_length", "infix_prompt_length")
        given = [f"--{name}" for name in lengths if getattr(args, name)]
        knobs = (override.split("=", 1)[0] for override in args.set)
        given += [f"--set {knob}" for knob in knobs if knob in OF_PROMPTS]
        if given:
            raise UserError(f"{given[0]}: says how a prompt is trained; --fine_tune has none")
    of_task = [f"{key}={value}" for key, value in pair.config.train.items()]
    dtype = [f"dtype={args.dtype}"] if args.dtype else []
    recipe = load_recipe(name, [*of_task, *args.set, *dtype])
    if recipe.lm_dropout and not args.fine_tune:
        raise UserError(f"lm_dropout={recipe.lm_dropout}: for --fine_tune; a prompt's LM is frozen")
    if recipe.verbalizer == "learnable":
        if args.fine_tune:
            raise UserError("verbalizer=learnable: belongs to a prompt; leave --fine_tune out")
        if pair.config.is_sequence:
            raise UserError(
                f"verbalizer=learnable: needs a fixed number of labels an utterance, {pair.task} "
                "has none; take verbalizer=fixed"
            )
    return name, recipe


def plan(args: argparse.Namespace, pair: Pair, save_dir: Path) -> PromptRecord:
    """The card of the run that these flags ask for, without its LM.

    Raises ``UserError`` for flags, text or binaries that cannot be trained on.
    """
    workspace = Workspace(args.workspace)
    recipe_name, recipe = choose_recipe(args, pair)
    prefix, infix = args.prefix_prompt_length, args.infix_prompt_length
    if prefix is None:
        prefix = 0 if infix else pair.config.prefix_prompt_length
    if infix < 0:
        raise UserError(f"--infix_prompt_length {infix}: expected 0 or more")
    if prefix < 1 and not infix:
        raise UserError(f"--prefix_prompt_length {prefix}: expected at least 1")
    if prefix and infix:
        raise UserError(
            f"--infix_prompt_length {infix}: a prefix and an infix together are, as published, "
            "input vectors only; leave one of them out"
        )
    method, verbal = load_verbal(workspace, pair)
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
        lm_parameters=0,
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
    from ulm_prompt.prompt_lm.precision import dtype_to_train_in

    unit_lm = load_unit_lm(lm)
    dtype = dtype_to_train_in(card.training["dtype"], args.fine_tune, unit_lm.parameters)
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
        **_schedule_and_dtype(knobs, card.fine_tune),
        "task": {"_name": "unit_prompt", "data": str(data_bin), "lm": str(lm)},
        "model": {
            "_name": "prompt_lm",
            "prefix_prompt_length": card.prefix_prompt_length,
            "infix_prompt_length": card.infix_prompt_length,
            "fine_tune": card.fine_tune,
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


def unit_lm_settings(recipe: UnitLMRecipe, data_bin: Path, begin_from: Path | None) -> Settings:
    """What fairseq is told of a unit LM's run beside the knobs that it knows by name: the stock
    model, with random weights or those of the LM in ``begin_from``.
    """
    width = recipe.decoder_embed_dim
    return {
        **_schedule_and_dtype(recipe, whole_lm=True),
        "task": {"_name": "unit_lm", "data": str(data_bin), "begin_from": str(begin_from or "")},
        "model": {
            "_name": "transformer_lm_big",
            "share_decoder_input_output_embed": True,
            "decoder_input_dim": width,
            "decoder_output_dim": width,
            "attention_dropout": recipe.dropout,
            "add_bos_token": False,  # fairseq's own language modelling task would say so
        },
        "criterion": {"_name": "unit_lm"},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)"},
    }


def _schedule_and_dtype(recipe: Recipe | UnitLMRecipe, whole_lm: bool) -> Settings:
    """``whole_lm``: fairseq trains the LM itself in the dtype, Adam in float32."""
    schedule: dict[str, Any] = {"_name": recipe.lr_schedule}
    if recipe.lr_schedule == "cosine":
        schedule["lr_period_updates"] = recipe.max_update - recipe.warmup_updates
    half = {"bf16": recipe.dtype == "bfloat16", "fp16": recipe.dtype == "float16"}
    return {"lr_scheduler": schedule, "common": half if whole_lm else {}}


# What a unit LM's run begins from, what it records, and what it leaves.

RUN = "run.json"  # beside LAST
OURS = "ulm.json"  # marks an LM that train_ulm.py made, and says how
NEW_RUN = "ulm_prompt/train_ulm.py with a new --date"


def check_begins_from(folder: Path, recipe: UnitLMRecipe) -> str:
    """Fingerprint of the LM in ``folder``. Raises ``UserError`` when its size is not the recipe's,
    or when it computes something else with such weights.
    """
    import torch

    from ulm_prompt.prompt_lm.lm import load_unit_lm

    lm = load_unit_lm(folder)
    decoder = lm.model.decoder
    layer = decoder.layers[0]
    for knob, size in {
        "decoder_layers": len(decoder.layers),
        "decoder_embed_dim": decoder.embed_tokens.embedding_dim,
        "decoder_ffn_embed_dim": layer.fc1.out_features,
        "decoder_attention_heads": layer.self_attn.num_heads,
    }.items():
        if size != (expected := getattr(recipe, knob)):
            raise UserError(
                f"--begin_from {folder}: an LM with {knob}={size}, but the config has {expected}; "
                f"choose its --config, or --set {knob}={size}"
            )
    for setting, as_ours in {
        "share_decoder_input_output_embed": decoder.share_input_output_embed,
        "no_scale_embedding": decoder.embed_scale != 1.0,
        "activation_fn": layer.activation_fn in (torch.nn.functional.relu, torch.relu),
    }.items():
        if not as_ours:
            raise UserError(f"--begin_from {folder}: another {setting} than the LMs trained here")
    return lm.fingerprint


def begun_in(save_dir: Path) -> str | None:
    """The dtype in which the unit LM's run in ``save_dir`` began; None without a run."""
    if not (save_dir / LAST).exists():
        return None
    recipe = read_json(save_dir / RUN, NEW_RUN).get("recipe")
    return recipe.get("dtype") if isinstance(recipe, dict) else None


def check_same_run(
    save_dir: Path, recipe: UnitLMRecipe, texts: dict[str, Path], begins_from: str | None = None
) -> None:
    """Record what the run trains on, and the fingerprint of the LM that it begins from. Raises
    ``UserError`` when ``save_dir`` holds another run.
    """
    record = {
        "recipe": vars(recipe),
        "text": {split: sha256(text) for split, text in texts.items()},
        "begin_from": begins_from,
    }
    if (save_dir / LAST).exists():
        earlier = read_json(save_dir / RUN, NEW_RUN)
        if changed := [name for name, value in record.items() if earlier.get(name) != value]:
            raise UserError(
                f"{save_dir}: holds a run with another {changed[0]}; choose a new --date, "
                "or remove the folder"
            )
    write_json(save_dir / RUN, record)


def is_of_another_run(folder: Path, save_dir: Path) -> bool:
    """Whether ``folder`` holds an LM that train_ulm.py made from another checkpoint than the best
    one in ``save_dir``. By earlier versions' records that cannot be told: then it is another.
    """
    path, best = folder / OURS, save_dir / BEST
    recorded = read_json(path, NEW_RUN).get("checkpoint") if path.exists() else None
    return path.exists() and not (best.exists() and recorded == sha256(best))


def publish(checkpoint: Path, dictionary: Path, folder: Path) -> float:
    """Write the LM into ``folder`` in the released layout, without the optimizer's state, and by
    which ``checkpoint`` it was made. Returns its valid loss in bits.
    """
    from pipeline.torch_files import load_torch, save_torch

    state = load_torch(checkpoint)
    loss = state["extra_state"]["best"]
    with replacing_folder(folder) as fresh:
        shutil.copyfile(dictionary, fresh / "dict.txt")
        model = {"cfg": {"model": state["cfg"]["model"]}, "model": state["model"]}
        save_torch(model, fresh / "checkpoint_best.pt")
        record = {"valid_loss_bits": loss, "checkpoint": sha256(checkpoint), **provenance()}
        write_json(fresh / OURS, record)
    return loss
