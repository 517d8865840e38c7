"""A report page of a sample file, as one HTML file: scores, learning curve, confusions, utterances
with audio, and a comparison with other runs.
"""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import one_line
from pipeline.files import holding, writing
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.scoring.class_report import (
    MOST_NAMED,
    OTHER,
    class_report,
    comparison_lines,
    read_named,
    trained_run,
)
from ulm_prompt.scoring.scores import score_lines

WIDTH, HEIGHT = 640, 220  # of the learning curve, in SVG units
Rows = list[dict[str, Any]]
Scored = Mapping[Path, Mapping[str, Any]]  # sample file -> its scores and comparison


def write_pages(
    scored: Scored, workspace: Workspace, megabytes: float | None = None
) -> dict[Path, dict[str, str]]:
    """Write a page next to each sample file. A page compares all sample files of a task.
    ``megabytes``: the most audio that a page may contain, the most confident mistakes first (None:
    link all audio). Returns for each sample file the path of its ``page`` and a count of its
    ``audio``. Raises ``UserError`` as ``read_named``.
    """
    files = {path: read_named(path, workspace, "--html") for path in scored}
    rows = {path: named.rows for path, (_, named) in files.items()}
    pages = {}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    for path, (pair, named) in files.items():
        other_paths = [file for file in files if file != path and files[file][0].task == pair.task]
        page = path.with_suffix(".html")
        audio = _add_audio(rows[path], workspace, pair, page, megabytes)
        data = {"rows": rows[path], "slots": named.slots, "other": OTHER, "most": MOST_NAMED}
        data["runs"] = [_name(other) for other in other_paths]
        data["answers"] = [[row["answer"] for row in rows[other]] for other in other_paths]
        columns = {_name(run): _cells(scored[run]) for run in (path, *other_paths)}
        text = environment.get_template("report.html.j2").render(
            title=f"{pair.task}, {pair.unit_model}: {_name(path)}",
            columns=columns,
            names=list(dict.fromkeys(name for cells in columns.values() for name in cells)),
            notes=comparison_lines(scored[path]),
            comparisons={_name(file): _compared(rows[path], rows[file]) for file in other_paths},
            curve=_curve(path, workspace, pair),
            classes=[] if pair.config.is_text else class_report(named)["classes"],
            audio=audio,
            data=data,
        )
        with holding(page), writing(page, "wb") as handle:
            handle.write(text.encode("utf-8", "replace"))
        pages[path] = {"page": str(page), "audio": audio}
    return pages


def _name(path: Path) -> str:
    return one_line(f"{path.parent.name.removeprefix('samples_')}/{path.stem[len('samples_') :]}")


def _compared(rows: Rows, other_rows: Rows) -> dict[str, Any] | None:
    """Return how the free answers of two runs differ, with McNemar's exact test of the rows that
    only one run has right. Returns None if the runs answered different rows.
    """
    from scipy.stats import binomtest  # takes half a second

    if [(r["file"], r["spoken"]) for r in rows] != [(r["file"], r["spoken"]) for r in other_rows]:
        return None
    pairs = list(zip(rows, other_rows))
    only_this = sum(row["right"] > other["right"] for row, other in pairs)
    only_other = sum(row["right"] < other["right"] for row, other in pairs)
    differ = sum(row["answer"] != other["answer"] for row, other in pairs)
    p = binomtest(only_this, only_this + only_other).pvalue if only_this + only_other else 1.0
    return {"differ": differ, "only_this": only_this, "only_other": only_other, "p": p}


def _cells(scored: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return name -> (value, interval) of each score and slot."""
    cells = {name: (value, interval) for name, value, interval in score_lines(scored)}
    slots = scored.get("slots") or {}
    return cells | {f"{slot} right": (f"{share:.2f} %", "") for slot, share in slots.items()}


def _curve(path: Path, workspace: Workspace, pair: Pair) -> dict[str, Any] | None:
    """Return accuracy over updates as SVG points; None if the run's log is unknown."""
    record, curves = trained_run(path, workspace, pair)
    if not curves:
        return None
    kept, lines = record.run.updates, {}
    last = max([1, kept, *curves["valid"], *curves["train"]])
    for name, curve in curves.items():
        points = [(at, scores["accuracy"]) for at, scores in curve.items() if "accuracy" in scores]
        scaled = ((WIDTH * at / last, HEIGHT * (1 - share / 100)) for at, share in points)
        lines[name] = " ".join(f"{x:.1f},{y:.1f}" for x, y in scaled)
    return {"lines": lines, "last": last, "kept": kept, "at": WIDTH * kept / last}


def _add_audio(
    rows: Rows, workspace: Workspace, pair: Pair, page: Path, megabytes: float | None
) -> str:
    """Set ``audio`` of each row to the address of its audio. Returns the counts as text."""
    manifest = workspace.downstream_data(pair.config.downstream) / "manifest"
    if not (manifest / "test.tsv").is_file():
        return f"{len(rows):,} rows without audio: {manifest / 'test.tsv'} does not exist"
    from preprocess.actions.manifest import distinct, read_manifest  # torch takes a second
    from preprocess.actions.stream import file_rates

    root, entries = read_manifest(manifest / "test.tsv")
    pieces, rates = {entry.file: entry for entry in distinct(entries)}, file_rates(manifest)
    counts, left = Counter(), 1e6 * (megabytes or 0)
    for row in sorted(rows, key=lambda row: (-row["is_mistake"], -row["probability"])):
        piece = pieces.get(row["file"])
        file = None if piece is None else (root / piece.path).absolute()
        if file is None or not file.is_file():
            counts["not found"] += 1
            continue
        embedded = _embedded(file, piece.start, piece.frames) if left > 0 else ""
        if len(embedded) > left:  # the page is full
            embedded, left = "", 0
        left -= len(embedded)
        counts["embedded" if embedded else "linked"] += 1
        address = file.as_uri()
        if file.is_relative_to(workspace.root.absolute()):  # the link also works after a move
            address = quote(os.fsencode(os.path.relpath(file, page.parent)))
        if piece.file != piece.path:  # the row is a part of the file
            times = (at / rates[piece.path] for at in (piece.start, piece.start + piece.frames))
            address += "#t={:.3f},{:.3f}".format(*times)
        row["audio"] = embedded or address
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def _embedded(file: Path, start: int, frames: int) -> str:
    """Return the samples that the prompt reads, as a data URL; an empty text for bad audio."""
    import soundfile

    from preprocess.speech2unit.audio import SAMPLE_RATE, BadAudio, read_audio

    flac = io.BytesIO()
    try:
        soundfile.write(flac, read_audio(file, start, frames).samples, SAMPLE_RATE, format="FLAC")
    except BadAudio:  # the page then links the file, which a browser may play
        return ""
    return f"data:audio/flac;base64,{base64.b64encode(flac.getvalue()).decode()}"
