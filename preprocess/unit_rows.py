"""Quantised units and the manifest's entries become rows ``file|units|labels``."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import text_lines
from pipeline.rows import Row
from preprocess.left_out import files_left_out
from preprocess.manifest import distinct, read_manifest
from preprocess.speech2unit.units import merge_runs

QUANTIZE = "preprocess/runner.py --action quantized"


def unit_rows(manifest: Path, quantized: Path, split: str, merge: bool) -> tuple[list[Row], int]:
    """A row for each entry of ``split`` whose audio was good, and how many have none.

    ``merge``: a run of the same unit becomes one. Raises ``UserError`` when the split was not
    quantised, or from another manifest, or no row is left.
    """
    _, entries = read_manifest(manifest / f"{split}.tsv")
    path = quantized / split
    lines = text_lines(path, f"this split is missing; run {QUANTIZE} first")
    columns = (line.rpartition("|") for line in lines if line)
    units = {file: its_units for file, _, its_units in columns}
    record = quantized / "provenance.json"
    left_out = files_left_out(record, QUANTIZE) if record.exists() else set()
    files = [entry.file for entry in distinct(entries)]
    if list(units) != [file for file in files if file not in left_out]:
        raise UserError(
            f"{path}: its {len(units)} files are not those of {manifest / split}.tsv; "
            f"the manifest has changed: run {QUANTIZE} again"
        )
    merged = merge_runs if merge else str
    rows = [
        Row(entry.file, merged(units[entry.file]), entry.labels)
        for entry in entries
        if entry.file in units
    ]
    if not rows:
        raise UserError(f"{path}: no usable file in this split; repair its audio")
    return rows, len(entries) - len(rows)
