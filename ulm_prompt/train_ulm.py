"""Stage 3: train a unit LM with fairseq, in the layout of the released ones:
pretrained_models/<unit_model>_lm/{checkpoint_best.pt,dict.txt}.

The text is the train units of every task quantised with this unit model, and the --text files (one
line of units per utterance). With --begin_from, training starts from another LM.
On several GPUs: torchrun --nproc_per_node N ulm_prompt/train_ulm.py ...
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from pipeline.config import save_config
from pipeline.devices import on_main, process_group, ranks, speak_on_main_alone
from pipeline.errors import run
from pipeline.files import holding, writing
from pipeline.runs import add_quiet
from pipeline.unit_models import find_unit_model
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.tasks import add_workspace, print_next
from ulm_prompt.prompt_data.ulm_text import task_units, write_dict, write_ulm_text
from ulm_prompt.prompt_data.verbal import binarize
from ulm_prompt.training import recipe as recipes
from ulm_prompt.training import ulm_run
from ulm_prompt.training.recipe import DTYPES, UnitLMRecipe


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--unit_model", type=name_part, required=True, help="e.g. hubert100")
    flag("--date", type=name_part, required=True, help="names the run; the same date resumes it")
    flag("--config", default="gslm", help="recipe: a file in config/ulm/ (default: gslm)")
    flag("--text", type=Path, nargs="+", default=[], help="additional unit text")
    flag("--valid_text", type=Path, nargs="+", default=[], help="additional unit text for valid")
    begin = "start from the LM in this folder (checkpoint_best.pt, dict.txt), not at random"
    flag("--begin_from", type=Path, metavar="FOLDER", help=begin)
    flag("--set", nargs="+", default=[], metavar="KEY=VALUE", help="knobs of the recipe")
    flag("--dtype", choices=DTYPES, help="short for --set dtype=...")
    add_workspace(parser)
    add_quiet(parser)
    return parser.parse_args()


def choose_recipe(args: argparse.Namespace, workspace: Workspace) -> UnitLMRecipe:
    """Check the settings and return the recipe. Write nothing."""
    dtype = [f"dtype={args.dtype}"] if args.dtype else []
    recipe = recipes.load_recipe(args.config, [*args.set, *dtype], UnitLMRecipe)
    folder, entry = workspace.lm(args.unit_model), find_unit_model(args.unit_model, workspace)
    is_elsewhere = entry.lm_folder != folder and not entry.lm.ships
    begins_there = args.begin_from and args.begin_from.resolve() == folder.resolve()
    is_foreign = not ((folder / ulm_run.OURS).exists() or has_no_lm(folder))
    recipes.raise_first(
        {
            f"{args.unit_model}: its LM is {entry.lm_folder}, which the other stages read; remove "
            "its lm: in my_unit_models.yaml, or use another --unit_model": is_elsewhere,
            f"{folder}: contains an LM that was not trained here; move it away first": is_foreign,
            f"--begin_from {folder}: the new LM goes there; move it away first": begins_there,
        }
    )
    if recipe.dtype == "auto":  # a run keeps its first dtype
        save_dir = workspace.checkpoints("ulm", args.unit_model, args.date)
        recipe.dtype = ulm_run.first_dtype(save_dir) or "auto"
    width = recipe.decoder_embed_dim
    weights = recipe.decoder_layers * width * (4 * width + 2 * recipe.decoder_ffn_embed_dim)
    recipe.dtype = recipes.dtype_to_train_in(recipe.dtype, whole_lm=True, parameters=weights)
    return recipe


def has_no_lm(folder: Path) -> bool:
    """Return whether ``folder`` is missing or has at most dict.txt, enough for stages 2 and 3."""
    return {path.name for path in folder.glob("*")} <= {"dict.txt"}


def prepare(
    args: argparse.Namespace, recipe: UnitLMRecipe, workspace: Workspace, save_dir: Path
) -> ulm_run.Settings:
    """Write the text and its binaries. Return fairseq's settings."""
    from ulm_prompt.prompt_lm.lm import load_dictionary

    begin_from = args.begin_from and args.begin_from.resolve()
    fingerprint = ulm_run.check_begins_from(begin_from, recipe) if begin_from else None
    texts = write_ulm_text(
        save_dir / "text",
        {"train": args.text, "valid": args.valid_text},
        {split: task_units(workspace, args.unit_model, split) for split in ("train", "valid")},
        *(recipe.topics, recipe.max_valid_utterances, recipe.seed),
    )
    ulm_run.record_run(save_dir, recipe, texts, fingerprint)
    dictionary, folder = save_dir / "dict.txt", workspace.lm(args.unit_model)
    existing = (begin_from or folder) / "dict.txt"
    if begin_from or has_no_lm(folder) and existing.is_file():
        if not begin_from:  # stages 2 and 3 used this dict
            print(f"{existing}: the LM uses these symbols")
        with writing(dictionary, "wb") as handle:
            handle.write(existing.read_bytes())
    elif not (save_dir / ulm_run.LAST).exists():  # a resumed run keeps its symbols
        write_dict(dictionary, texts)
    data_bin = workspace.data_bin(args.unit_model, "ulm")
    binarize(texts, load_dictionary(save_dir), dictionary, data_bin)
    save_config(recipe, save_dir / "config.yaml")
    return ulm_run.unit_lm_settings(recipe, data_bin, begin_from)


def main() -> None:
    args = parse()
    here = ranks()
    speak_on_main_alone(here)
    workspace = Workspace(args.workspace)
    save_dir = workspace.checkpoints("ulm", args.unit_model, args.date)
    folder = workspace.lm(args.unit_model)
    with process_group(here), contextlib.ExitStack() as stack:
        recipe = on_main(here, lambda: choose_recipe(args, workspace))
        for output in (save_dir, folder):  # all runs of a unit model write the same LM
            on_main(here, lambda output=output: stack.enter_context(holding(output)))
        if on_main(here, lambda: ulm_run.is_of_another_run(folder, save_dir)):
            print(
                f"{folder} already exists: kept, because prompts depend on it; to train another, "
                "remove it, or describe a second unit model (docs/own_task.md)"
            )
            return
        settings = on_main(here, lambda: prepare(args, recipe, workspace, save_dir))

        from ulm_prompt.training.fairseq_run import train

        logs = workspace.logs("ulm", args.unit_model, args.date)
        train(vars(recipe), settings, save_dir, logs, here)
        loss = on_main(here, lambda: ulm_run.publish(save_dir, folder))
    print(f"{args.unit_model}: LM with a valid loss of {loss:.3f} bits per unit -> {folder}")
    has_text = (workspace.datasets(args.unit_model) / "verbal.json").exists()
    print_next(args, f"ulm_prompt/{'fairseq_preprocess' if has_text else 'make_data'}.py")


if __name__ == "__main__":
    run(main)
