"""A corpus that the demo speaks: whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replacing_folder, write_json
from pipeline.rows import SPLITS


def at_least(least: int) -> Callable[[str], int]:
    """What a flag is read by: an integer that is no less."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {text}")
        return int(text)

    return integer


@contextlib.contextmanager
def new_corpus(folder: Path, seed: int, counts: Sequence[int]) -> Iterator[Path]:
    """Yield a folder to speak into, which becomes ``folder`` at the end. ``counts``: utterances of
    each split, recorded with the ``seed`` in spoken.json.

    Raises ``UserError`` when the corpus is there already.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it or choose another --out")
    with replacing_folder(folder) as unfinished:
        yield unfinished
        write_json(unfinished / "spoken.json", {"seed": seed, "utterances": counts})
    print(f"wrote {folder}: {' / '.join(map(str, counts))} utterances for {' / '.join(SPLITS)}")
