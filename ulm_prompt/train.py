"""Stage 4: train a task's prompt on the frozen unit LM (or, with --fine_tune, the whole LM).

A second call with the same --date goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import read_json
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.binaries import SOURCES
from ulm_prompt.curves import valid_curve
from ulm_prompt.recipe import Recipe, fairseq_flags, load_recipe
from ulm_prompt.tasks import Pair, add_selection, find_pairs
from ulm_prompt.verbal import check_data_bin, load_verbal


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", required=True, help="names the run, for example 20221122")
    parser.add_argument("--prefix_prompt_length", type=int, help="P (default: the task's config)")
    parser.add_argument("--fine_tune", action="store_true", help="train the whole LM, no prompt")
    parser.add_argument("--recipe", help="a file in config/recipes/ (default: the task's config)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="knobs of the recipe"
    )
    add_selection(parser)
    return parser.parse_args()


def choose_recipe(args: argparse.Namespace, pair: Pair) -> tuple[str, Recipe]:
    """The recipe's name and its values after the task's and the command line's changes."""
    name = args.recipe or ("fine_tune" if args.fine_tune else pair.config.recipe)
    if args.fine_tune != (name == "fine_tune"):
        raise UserError(
            f"--recipe {name}: --fine_tune takes the recipe fine_tune, and only it does"
        )
    own = [f"{key}={value}" for key, value in pair.config.train.items()]
    return name, load_recipe(name, [*own, *args.set])


def train_pair(args: argparse.Namespace, pair: Pair) -> None:
    """Check all that can be checked without a model, then train one task on one unit model."""
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
    lm = lm_folder(workspace, pair.unit_model)
    save_dir = workspace.checkpoints(pair.task, pair.unit_model, args.date)

    from ulm_prompt.fairseq_run import train
    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.frozen_lm import load_unit_lm

    unit_lm = load_unit_lm(lm)
    card = checkpoint.Card(
        task=pair.task,
        unit_model=pair.unit_model,
        prefix_prompt_length=0 if args.fine_tune else length,
        fine_tune=args.fine_tune,
        lm_fingerprint=unit_lm.fingerprint,
        lm_parameters=sum(weight.numel() for weight in unit_lm.model.parameters()),
        verbalizer=method,
        verbal=verbal,
        recipe=recipe_name,
        training=dataclasses.asdict(recipe),
        data=read_json(data_bin / SOURCES, "ulm_prompt/fairseq_preprocess.py"),
    )
    checkpoint.begin(save_dir, card)
    flags = [
        str(data_bin),
        "--task", "unit_prompt",
        "--lm", lm,
        "--arch", "prompt_lm",
        "--prefix-prompt-length", length,
        "--criterion", "label_cross_entropy",
        *(["--fine-tune"] if args.fine_tune else []),
        *fairseq_flags(recipe),
    ]  # fmt: skip
    print(f"{pair.task} {pair.unit_model}: recipe {recipe_name} -> {save_dir}")
    logs = workspace.logs(pair.task, pair.unit_model, args.date)
    train(flags, save_dir, logs)
    card = checkpoint.finish(save_dir, card, valid_curve(logs / "train.log"), unit_lm.model)
    scores = ", ".join(f"{name} {value:.3f}" for name, value in card.valid.items())
    print(
        f"{pair.task} {pair.unit_model}: best at update {card.updates:,} of "
        f"{card.total_updates:,}; on valid, the labels before it given: {scores}"
    )


def main() -> None:
    args = parse()
    for pair in find_pairs(args, needs_lm=True):
        train_pair(args, pair)
    print(f"next: python ulm_prompt/sample.py --model_date {args.date} --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
