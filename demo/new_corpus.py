"""A corpus that the demo speaks or unpacks: whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replacing_folder, write_json


def at_least(least: int) -> Callable[[str], int]:
    """What a flag is read by: an integer that is no less."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {text}")
        return int(text)

    return integer


@contextlib.contextmanager
def new_corpus(folder: Path, about: dict[str, object]) -> Iterator[Path]:
    """Yield a folder to write into, which becomes ``folder`` at the end. ``about``: what
    demo.json there says of it.

    Raises ``UserError`` when the corpus exists already.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it or choose another --out")
    with replacing_folder(folder) as unfinished:
        yield unfinished
        write_json(unfinished / "demo.json", about)
    print(f"wrote {folder}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
