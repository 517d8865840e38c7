"""The files of a manifest whose audio was bad when a run over it was told to go on (--skip_bad)."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json


def files_left_out(record: Path, command: str) -> set[str]:
    """Their names, by the ``provenance.json`` that ``command`` left. Raises ``UserError`` where
    they are no names.
    """
    names = read_json(record, command).get("left_out", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{record}: left_out is no list of names; run {command} again")
    return set(names)
