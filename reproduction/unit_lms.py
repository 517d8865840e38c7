"""What a cell needs to know of a unit LM, read once: the file of a large one takes seconds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple


class UnitLMFacts(NamedTuple):
    """What runs are tied to, and what a prompt's size depends on."""

    fingerprint: str
    symbols: int
    width: int
    layers: int


def unit_lm_facts(folder: Path) -> UnitLMFacts:
    """Of the LM in ``folder``. Raises ``UserError`` where it is missing or cannot be used."""
    times = (folder / name for name in ("checkpoint_best.pt", "dict.txt"))
    return _read(folder, tuple(path.stat().st_mtime_ns for path in times if path.is_file()))


@functools.cache
def _read(folder: Path, _times: tuple[int, ...]) -> UnitLMFacts:
    from ulm_prompt.prompt_lm.frozen_lm import load_unit_lm

    lm = load_unit_lm(folder)
    decoder = lm.model.decoder
    return UnitLMFacts(
        lm.fingerprint,
        len(lm.dictionary),
        decoder.embed_tokens.embedding_dim,
        len(decoder.layers),
    )
