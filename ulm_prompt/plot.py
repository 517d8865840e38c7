"""Pictures of trained prompts: learning curves, the verbalizer's map, attention on the prompt.

curves: accuracy on valid over updates, of every run of --date. verbalizer: the LM's embeddings of
the units in two dimensions, with the labels that they stand for. attention: how much each layer and
head looks at the prompt where the first label is read, on test utterances.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs
from ulm_prompt.prompt_data.verbal import read_prompt_text, renamed_texts
from ulm_prompt.scoring.pictures import valid_curve
from ulm_prompt.scoring.scores import label_names


def all_logs(args: argparse.Namespace, pair: Pair) -> bool:
    """Whether every run of ``--date`` was one of this task and unit model."""
    logs = (Workspace(args.workspace).logs(pair.task, pair.unit_model, date) for date in args.date)
    return all((folder / "train.log").is_file() for folder in logs)


def plot_curves(args: argparse.Namespace, pair: Pair, folder: Path) -> Path:
    """Every run of ``--date`` in one picture."""
    workspace = Workspace(args.workspace)
    from ulm_prompt.scoring.pictures import draw_curves

    runs = {}
    for date in args.date:
        log = workspace.logs(pair.task, pair.unit_model, date) / "train.log"
        if not log.is_file():
            raise UserError(f"{log}: not found; train with ulm_prompt/train.py --date {date}")
        runs[date] = valid_curve(log)
    path = folder / f"curves_{pair.task}_{pair.unit_model}.png"
    draw_curves(runs, f"{pair.task}, {pair.unit_model}", path)
    return path


def plot_verbalizer(args: argparse.Namespace, pair: Pair, folder: Path) -> Path:
    """The units that stand for labels among all units."""
    workspace = Workspace(args.workspace)
    names = label_names(workspace, pair)

    from ulm_prompt.prompt_lm.lm import load_unit_lm
    from ulm_prompt.scoring.pictures import draw_verbalizer

    lm = load_unit_lm(lm_folder(workspace, pair.unit_model))
    weights = lm.model.decoder.embed_tokens.weight.detach().float().numpy()
    first = lm.dictionary.nspecial
    embeddings = {lm.dictionary[i]: weights[i] for i in range(first, len(lm.dictionary))}
    path = folder / f"verbalizer_{pair.task}_{pair.unit_model}.png"
    draw_verbalizer(embeddings, names, f"{pair.task}: labels on {pair.unit_model}'s units", path)
    return path


def plot_attention(args: argparse.Namespace, pair: Pair, folder: Path) -> Path:
    """The attention on one prompt."""
    if len(args.date) != 1:
        raise UserError(f"--date {' '.join(args.date)}: attention is one prompt's; name one run")
    workspace = Workspace(args.workspace)
    rows = read_prompt_text(renamed_texts(workspace, pair)["test"], "ulm_prompt/verbalizer.py")
    checkpoints = workspace.checkpoints(pair.task, pair.unit_model, args.date[0])
    if not (checkpoints / "checkpoint_best.pt").is_file():
        raise UserError(f"{checkpoints}: no prompt; train it with ulm_prompt/train.py")

    import torch

    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.model import attention_on_prompt
    from ulm_prompt.scoring.pictures import draw_attention

    model, lm = checkpoint.load(checkpoints, lm_folder(workspace, pair.unit_model))
    if model.prompt is None:
        raise UserError(f"{checkpoints}: a fine-tuned LM; it has no prompt to look at")
    texts = [f"</s> {units} <s>" for units, _ in rows][: args.utterances]
    tokens = [torch.tensor([lm.dictionary.index(word) for word in text.split()]) for text in texts]
    shares = attention_on_prompt(model, tokens).numpy()
    path = folder / f"attention_{pair.task}_{pair.unit_model}_{args.date[0]}.png"
    draw_attention(shares, f"{pair.task}, {pair.unit_model}: {len(tokens)} test utterances", path)
    return path


PLOTS = {"curves": plot_curves, "verbalizer": plot_verbalizer, "attention": plot_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=PLOTS)
    parser.add_argument("--date", nargs="+", default=[], help="runs of train.py")
    parser.add_argument(
        "--utterances", type=int, default=200, help="attention: test utterances (default: 200)"
    )
    add_selection(parser)
    args = parser.parse_args()
    if args.what != "verbalizer" and not args.date:
        raise UserError(f"plot.py {args.what}: name the run with --date")
    if args.utterances < 1:
        raise UserError(f"--utterances {args.utterances}: expected at least 1")
    folder = Workspace(args.workspace).root / "samples" / "plots"
    pairs = find_pairs(args, needs_lm=args.what != "curves")
    if args.what == "curves":
        pairs = [pair for pair in pairs if all_logs(args, pair)] or pairs
    for pair in pairs:
        print(f"{pair.task} {pair.unit_model} -> {PLOTS[args.what](args, pair, folder)}")


if __name__ == "__main__":
    run(main)
