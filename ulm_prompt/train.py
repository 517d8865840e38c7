"""Stage 4: train a task's prompt on the frozen unit LM (or, with --fine_tune, the whole LM).

A second call with the same --date goes on where the first one stopped. Several GPUs, or several
CPU processes: torchrun --nproc_per_node N ulm_prompt/train.py ...
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import read_json
from pipeline.locks import holding
from pipeline.ranks import Ranks, on_main, process_group, ranks, speak_on_main_alone
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.binaries import SOURCES
from ulm_prompt.curves import valid_curve
from ulm_prompt.recipe import DTYPES, Recipe, fairseq_flags, load_recipe
from ulm_prompt.tasks import Pair, add_selection, find_pairs
from ulm_prompt.verbal import check_data_bin, load_verbal

if TYPE_CHECKING:
    from ulm_prompt.prompt_lm.checkpoint import Card


class Run(NamedTuple):
    """A checked run: what fairseq is told, and what its card will say."""

    flags: list[object]
    card: Card


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", required=True, help="names the run, for example 20221122")
    parser.add_argument("--prefix_prompt_length", type=int, help="P (default: the task's config)")
    parser.add_argument("--fine_tune", action="store_true", help="train the whole LM, no prompt")
    parser.add_argument("--recipe", help="a file in config/recipes/ (default: the task's config)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="knobs of the recipe"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="knob dtype of the recipe, in short")
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
    asked = [f"dtype={args.dtype}"] if args.dtype else []
    recipe = load_recipe(name, [*own, *args.set, *asked])
    if recipe.verbalizer == "learnable" and args.fine_tune:
        raise UserError("verbalizer=learnable: stands beside a prompt; leave --fine_tune out")
    if recipe.verbalizer == "learnable" and not pair.config.labels_per_utterance:
        raise UserError(
            f"verbalizer=learnable: needs a fixed number of labels an utterance, {pair.task} has "
            "none; take verbalizer=fixed"
        )
    return name, recipe


def prepare(args: argparse.Namespace, pair: Pair, save_dir: Path) -> Run:
    """Check all that can be checked without training; write nothing."""
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

    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.frozen_lm import load_unit_lm
    from ulm_prompt.prompt_lm.precision import dtype_to_train_in

    earlier = checkpoint.read_card(save_dir)
    if recipe.dtype == "auto" and earlier is not None:  # a run goes on in the dtype it began in
        recipe.dtype = earlier.training.get("dtype", "auto")
    recipe.dtype = dtype_to_train_in(recipe.dtype, args.fine_tune)
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
        labels_per_utterance=pair.config.labels_per_utterance,
        data=read_json(data_bin / SOURCES, "ulm_prompt/fairseq_preprocess.py"),
    )
    flags = [
        str(data_bin),
        "--task", "unit_prompt",
        "--lm", lm,
        "--arch", "prompt_lm",
        "--prefix-prompt-length", length,
        "--criterion", "label_cross_entropy",
        *(["--fine-tune"] if args.fine_tune else []),
        *fairseq_flags(recipe, args.fine_tune),
    ]  # fmt: skip
    if recipe.verbalizer == "learnable":
        flags += ["--label-units", " ".join(verbal.values())]
        flags += ["--labels-per-utterance", pair.config.labels_per_utterance]
    return Run(flags, card)


def begin(card: Card, save_dir: Path) -> None:
    """Write the run's card, unless another run lies there."""
    from ulm_prompt.prompt_lm import checkpoint

    checkpoint.begin(save_dir, card)
    print(f"{card.task} {card.unit_model}: recipe {card.recipe} -> {save_dir}")


def train_pair(args: argparse.Namespace, pair: Pair, here: Ranks) -> None:
    """Train one task on one unit model, and complete its card."""
    workspace = Workspace(args.workspace)
    save_dir = workspace.checkpoints(pair.task, pair.unit_model, args.date)
    logs = workspace.logs(pair.task, pair.unit_model, args.date)
    run = on_main(here, lambda: prepare(args, pair, save_dir))
    with contextlib.ExitStack() as stack:
        on_main(here, lambda: stack.enter_context(holding(save_dir)))
        on_main(here, lambda: begin(run.card, save_dir))

        from ulm_prompt.fairseq_run import train

        train(run.flags, save_dir, logs, here)
        on_main(
            here, lambda: complete(run.card, save_dir, logs, lm_folder(workspace, pair.unit_model))
        )


def complete(card: Card, save_dir: Path, logs: Path, lm: Path) -> None:
    """Reduce the best checkpoint to the prompt and say how good it is."""
    from ulm_prompt.prompt_lm import checkpoint

    card = checkpoint.finish(save_dir, card, valid_curve(logs / "train.log"), lm)
    scores = ", ".join(f"{name} {value:.3f}" for name, value in card.valid.items())
    print(
        f"{card.task} {card.unit_model}: best at update {card.updates:,} of "
        f"{card.total_updates:,}; on valid, the labels before it given: {scores}"
    )


def main() -> None:
    args = parse()
    here = ranks()
    speak_on_main_alone(here)
    with process_group(here):
        for pair in on_main(here, lambda: find_pairs(args, needs_lm=True)):
            train_pair(args, pair, here)
    print(f"next: python ulm_prompt/sample.py --model_date {args.date} --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
