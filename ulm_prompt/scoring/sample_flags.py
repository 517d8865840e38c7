"""The flags of sample.py that say how answers are searched for, and their checks."""

from __future__ import annotations

import argparse

from pipeline.errors import UserError
from ulm_prompt.prompt_data.tasks import MAX_LABELS


def add_search(parser: argparse.ArgumentParser) -> None:
    """The flags; their names are fairseq's where it has them."""
    flag = parser.add_argument_group("search", "the default is greedy, as published").add_argument
    flag("--batch_size", type=int, default=64, help="utterances at a time (default: 64)")
    flag(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: bfloat16 where it multiplies much faster, else float32",
    )
    flag(
        "--max_labels",
        type=int,
        help=f"cut an answer after so many (default: {MAX_LABELS}, or a quarter more than "
        "train's longest)",
    )
    flag(
        "--max_units",
        type=int,
        default=16_384,
        help="a row of more is not answered, and scored as wrong: memory grows with the square of "
        "its length (default: 16384)",
    )
    flag(
        "--within_labels",
        nargs="?",
        choices=("slots", "set", "trie"),
        help="the second file: at each place the labels that train has there (slots; the default "
        "of tasks with a fixed number of labels), or has anywhere (set; the default of texts), or "
        "only whole label sequences of train (trie)",
    )
    flag("--beam", type=int, default=1, help="hypotheses of beam search")
    flag("--lenpen", type=float, default=1.0, help="scores are divided by length ** LENPEN")
    flag("--sampling", action="store_true", help="draw the free answers")
    flag("--topk", "--sampling_topk", type=int, default=0, help="draw among the K likeliest")
    flag("--topp", "--sampling_topp", type=float, default=0.0, help="among the likeliest with P")
    flag("--temperature", type=float, default=1.0, help="above 1: flatter, below: sharper")
    flag("--seed", type=int, default=1, help="of the draws")


def check_search(args: argparse.Namespace) -> None:
    """Raises ``UserError`` for a value out of range, or a flag without the one it belongs to."""
    for name in ("batch_size", "beam", "max_labels", "max_units"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: expected at least 1")
    if not args.temperature > 0:
        raise UserError(f"--temperature {args.temperature}: expected more than 0")
    if args.topk < 0 or not 0 <= args.topp <= 1 or args.seed < 0:
        raise UserError("--topk, --topp, --seed: expected K >= 0, 0 <= P <= 1, a seed >= 0")
    if args.topk and args.topp:
        raise UserError("--topk and --topp: choose one")
    if args.sampling and args.beam > 1:
        raise UserError("--sampling and --beam: choose one")
    if (args.topk or args.topp) and not args.sampling:
        raise UserError("--topk and --topp belong to --sampling: add it")
    if args.temperature != 1 and not (args.sampling or args.beam > 1):
        raise UserError("--temperature changes no greedy answer: add --sampling or --beam")
    if args.lenpen != 1 and args.beam == 1:
        raise UserError("--lenpen belongs to --beam: add it")


def label_sets(kind: str | None, is_sequence: bool) -> str:
    """What the second answers are held to: what was asked for, or the task's own default."""
    return kind or ("set" if is_sequence else "slots")
