"""Draw pictures of trained prompts and of answers.

curves: accuracy and loss on train and valid over updates, for every run of --date. verbalizer: the
LM's unit embeddings in two dimensions, with the labels of the units. attention: the attention of
each layer and head on the prompt when the first label is predicted, on test utterances.
cer_by_length: CER over label length (the paper's figure), as PNG and CSV in the folder of the first
--sample_date.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from pipeline.errors import UserError, run
from pipeline.files import writing
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.prompt_record import BEST
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs
from ulm_prompt.prompt_data.verbal import label_names, read_prompt_text, renamed_texts
from ulm_prompt.scoring import pictures
from ulm_prompt.scoring.class_report import labels_of, most_frequent
from ulm_prompt.scoring.scores import curves_of, sample_files


def plot_curves(args: argparse.Namespace, workspace: Workspace, pair: Pair, path: Path) -> None:
    """Draw the curves of every run of ``--date`` in one picture."""
    runs = {}
    for date in args.date:
        log = workspace.logs(pair.task, pair.unit_model, date) / "train.log"
        if not log.is_file():
            raise UserError(f"{log}: not found; train with ulm_prompt/train.py --date {date}")
        runs[date] = curves_of(log)
    labels = labels_of(workspace, pair, "train", "valid")
    guess = most_frequent(*labels) if labels else None
    pictures.draw_curves(runs, guess, f"{pair.task}, {pair.unit_model}", path)


def plot_verbalizer(args: argparse.Namespace, workspace: Workspace, pair: Pair, path: Path) -> None:
    """Draw the embeddings of all units, with the labels."""
    names, lm_dir = label_names(workspace, pair), lm_folder(workspace, pair.unit_model)

    from ulm_prompt.prompt_lm.lm import load_dictionary, unit_embeddings

    dictionary = load_dictionary(lm_dir)
    units = dictionary.symbols[dictionary.nspecial :]
    embeddings = dict(zip(units, unit_embeddings(lm_dir, units)))
    title = f"{pair.task}: labels on {pair.unit_model}'s units"
    pictures.draw_verbalizer(embeddings, names, title, path)


def plot_attention(args: argparse.Namespace, workspace: Workspace, pair: Pair, path: Path) -> None:
    """Draw the attention on one prompt."""
    if len(args.date) != 1:
        raise UserError(f"--date {' '.join(args.date)}: attention needs one prompt; name one run")
    rows = read_prompt_text(renamed_texts(workspace, pair)["test"])
    checkpoints = workspace.checkpoints(pair.task, pair.unit_model, args.date[0])
    if not (checkpoints / BEST).is_file():
        raise UserError(f"{checkpoints}: no prompt; train it with ulm_prompt/train.py")

    import torch

    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.model import attention_on_prompt

    model, unit_lm = checkpoint.load(checkpoints, lm_folder(workspace, pair.unit_model))
    if model.prompt is None:
        raise UserError(f"{checkpoints}: expected a prompt, found a fine-tuned LM")
    texts = [f"</s> {units} <s>".split() for units, _ in rows][: args.utterances]
    tokens = [torch.tensor([unit_lm.dictionary.index(word) for word in text]) for text in texts]
    title = f"{pair.task}, {pair.unit_model}: {len(tokens)} test utterances"
    pictures.draw_attention(attention_on_prompt(model, tokens).numpy(), title, path)


def plot_cer_by_length(args: argparse.Namespace) -> None:
    """Draw one line per sample file of texts, and write the values as CSV."""
    from ulm_prompt.scoring.sequence_scores import Bin, bins_of_files

    paths = sample_files(args)
    folder, runs = paths[0].parent, bins_of_files(paths, Workspace(args.workspace), args.width)
    if not runs:
        raise UserError(f"{folder}: no samples of a task whose answers are texts, such as ASR")
    output = folder / "cer_by_length.csv"
    with writing(output) as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(["run", *Bin._fields])
        for name, bins in runs.items():
            table.writerows([name, *rest, f"{cer:.3f}"] for *rest, cer in bins)
    pictures.draw_cer_by_length(runs, output.with_suffix(".png"))
    print(f"{', '.join(runs)} -> {output} and .png")


PLOTS = {"curves": plot_curves, "verbalizer": plot_verbalizer, "attention": plot_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("what", choices=[*PLOTS, "cer_by_length"])
    flag("--date", type=name_part, nargs="+", default=[], help="the --date of training runs")
    date = "cer_by_length: the --sample_date of decoding"
    flag("--sample_date", type=name_part, nargs="+", default=[], help=date)
    flag("--utterances", type=int, default=200, help="attention: test utterances (default: 200)")
    flag("--width", type=int, default=20, help="cer_by_length: lengths per bin (default: 20)")
    add_selection(parser)
    args = parser.parse_args()
    for name in ("utterances", "width"):
        if (value := getattr(args, name)) < 1:
            raise UserError(f"--{name} {value}: expected at least 1")
    needed = {"verbalizer": None, "cer_by_length": "sample_date"}.get(args.what, "date")
    if needed and not getattr(args, needed):
        raise UserError(f"plot.py {args.what}: name the run with --{needed}")
    if args.what == "cer_by_length":
        plot_cer_by_length(args)
        return
    pairs, problems = find_pairs(args, needs_lm=args.what != "curves"), []
    run_name = f"_{args.date[0]}" if args.what == "attention" else ""
    for pair in pairs:
        name = f"{args.what}_{pair.task}_{pair.unit_model}{run_name}.png"
        path = args.workspace / "samples" / "plots" / name
        try:
            PLOTS[args.what](args, Workspace(args.workspace), pair, path)
            print(f"{pair.task} {pair.unit_model} -> {path}")
        except UserError as error:
            problems.append(error)
            if len(problems) == len(pairs):
                raise problems[0] from None
            print(f"{pair.task} {pair.unit_model}: skipped, {error}")


if __name__ == "__main__":
    run(main)
