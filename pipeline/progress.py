"""What a long stage shows while it works: a progress bar on a terminal, nothing with --quiet."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_quiet = False


def add_quiet(parser: argparse.ArgumentParser, prints_answers: bool = False) -> None:
    """Add the flag that turns progress bars and reports off. ``prints_answers``: the stage's
    standard output is its result, and stays.
    """
    said = "print answers and errors alone" if prints_answers else "print errors alone"
    parser.add_argument("--quiet", nargs=0, const=prints_answers, action=_Quiet, help=said)


class _Quiet(argparse.Action):
    """Takes effect where the flag is read, before anything is printed."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        global _quiet
        _quiet = True
        if not self.const:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm over ``items``, or of the ``total`` in ``options``, on standard error."""
    silent = True if _quiet else None  # None: only where standard error is no terminal
    return tqdm(items, disable=silent, mininterval=0.5, dynamic_ncols=True, **options)


def report(text: object) -> None:
    """Print to standard error what is neither answer nor error; nothing with --quiet."""
    if not _quiet:
        print(text, file=sys.stderr)
