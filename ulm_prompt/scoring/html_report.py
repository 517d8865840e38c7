"""A page of a sample file, whole in one HTML file: scores, learning curve, confusions, and rows
that one can listen to, beside those of other runs.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import one_line
from pipeline.files import holding, writing
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair
from ulm_prompt.scoring.class_report import class_report, probability_of, report_names
from ulm_prompt.scoring.comparison import comparison_lines, trained_run
from ulm_prompt.scoring.pictures import MOST_NAMED, OTHER
from ulm_prompt.scoring.sample_file import BOS, read_samples, within_path
from ulm_prompt.scoring.scores import Label, is_baseline, score_lines, train_curve, valid_curve

MEGABYTES = 20  # of audio that a page holds
WIDTH, HEIGHT = 640, 220  # of the curve's plane
Rows = list[dict[str, Any]]


def write_page(
    path: Path,
    workspace: Workspace,
    scored: Mapping[Path, Mapping[str, Any]],
    megabytes: float | None = None,
) -> dict[str, str]:
    """Write the page of the sample file ``path``. ``scored``: scores and comparison of every sample
    file of this call; those of the same task stand beside it. ``megabytes``: the audio that the
    page may hold, the most confident mistakes first (None: all audio is linked).

    Returns the page's name, and lines that say what audio and which runs it has. Raises
    ``UserError`` where the rows that were decoded are not in the workspace.
    """
    pair, names = report_names(path, workspace, "--html")
    rows = _rows(path, names, pair.config.is_sequence)
    report = {"classes": [], "slots": {}} if pair.config.is_sequence else class_report(path, names)
    others, beside = [], []
    for other in scored:
        other_pair, other_names = report_names(other, workspace, "--html")
        if other != path and other_pair.task == pair.task:
            beside.append(_beside(rows, _rows(other, other_names, pair.config.is_sequence)))
            others.append(other)
    page = path.with_suffix(".html")
    audio = _add_audio(rows, workspace, pair, page, megabytes)
    columns = {other: dict(_cells(scored[other])) for other in (path, *others)}
    context = {
        "title": f"{pair.task}, {pair.unit_model}: {_name(path)}",
        "runs": [_name(run) for run in columns],
        "scores": {
            name: [cells.get(name, ("", "")) for cells in columns.values()]
            for name in dict.fromkeys(name for cells in columns.values() for name in cells)
        },
        "beside": comparison_lines(scored[path]),
        "curve": _curve(path, workspace, pair),
        "audio": audio,
        "classes": report["classes"],
        "others": [(_name(other), facts) for other, facts in zip(others, beside)],
        "data": {
            "rows": rows,
            "slots": list(report["slots"]),
            "classes": [score["name"] for score in report["classes"]],
            "other": OTHER,
            "most": MOST_NAMED,
            "runs": [_name(other) for other in others],
            "answers": [facts and facts.pop("answers") for facts in beside],
        },
    }
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html.j2")
    with holding(page), writing(page, "wb") as handle:
        handle.write(template.render(context).encode("utf-8", "replace"))
    return {"page": str(page), "audio": audio}


def _name(path: Path) -> str:
    return one_line(f"{path.parent.name.removeprefix('samples_')}/{path.stem[len('samples_') :]}")


def _rows(path: Path, names: Mapping[str, Label], is_text: bool) -> Rows:
    """What the page holds of each utterance. Labels are names, a text is one of them."""

    def told(units: str) -> list[str]:
        labels = [names[unit].name if unit in names else "?" for unit in units.split()]
        if not is_text:
            return labels
        return ["".join(label if len(label) == 1 else f"[{label}]" for label in labels)]

    twin, samples, rows = within_path(path), list(read_samples(path)), []
    for sample in samples:
        facts = {
            "file": str(sample.get("file_name", "")),
            "units": str(sample.get("src", "")).removesuffix(f" {BOS}"),
        }
        labels = {"spoken": told(sample["label"]), "answer": told(sample["predict"])}
        is_right = sample["label"] == sample["predict"]
        rows.append(facts | labels | {"right": is_right, "is_mistake": False, "probability": 0.0})
    has_scores = twin.exists() and not is_baseline(samples[0])
    for row, sample in zip(rows, read_samples(twin) if has_scores else ()):
        if sample["predict"]:
            shares = [math.exp(min(0, score)) for score in sample.get("label_scores") or []]
            row |= {
                "within": told(sample["predict"]),
                "is_mistake": sample["label"] != sample["predict"],
                "probability": probability_of(sample, twin),
                "shares": [] if is_text else shares,
            }
    return rows


def _beside(rows: Rows, others: Rows) -> dict[str, Any] | None:
    """How two runs' free answers differ; None where they are to other rows."""
    if [(row["file"], row["spoken"]) for row in rows] != [(r["file"], r["spoken"]) for r in others]:
        return None
    pairs = list(zip(rows, others))
    alone = sum(row["right"] > other["right"] for row, other in pairs)
    other_alone = sum(row["right"] < other["right"] for row, other in pairs)
    return {
        "differ": sum(row["answer"] != other["answer"] for row, other in pairs),
        "alone": alone,
        "other_alone": other_alone,
        "p": mcnemar(alone, other_alone),
        "answers": [other["answer"] for other in others],
    }


def mcnemar(one: int, other: int) -> float:
    """McNemar's two-sided exact p for rows that ``one`` run alone, or the ``other``, has right: the
    binomial probability of a split at least so uneven, were both equally good.
    """
    count = one + other
    tail = sum(math.comb(count, k) for k in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**count)


def _cells(scored: Mapping[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """Name, value and interval of each score and slot."""
    cells = [(name, cell) for name, *cell in score_lines(scored)]
    slots = scored.get("slots") or {}
    return cells + [(f"{slot} right", (f"{share:.2f} %", "")) for slot, share in slots.items()]


def _curve(path: Path, workspace: Workspace, pair: Pair) -> dict[str, Any] | None:
    """Accuracy over updates as points of a plane; None where the run's log is not known."""
    run = trained_run(path, workspace, pair)
    if run is None or not run[1].is_file():
        return None
    record, log = run
    points, lines, ends = {}, {}, {}
    kept = last = max(record.run.updates, 1)
    for name, curve in {"valid": valid_curve(log), "train": train_curve(log)}.items():
        points[name] = [(at, s["accuracy"]) for at, s in curve.items() if "accuracy" in s]
        last = max([last, *curve])
    for name, of_curve in points.items():
        if of_curve:
            plane = ((WIDTH * at / last, HEIGHT * (1 - share / 100)) for at, share in of_curve)
            lines[name] = " ".join(f"{x:.1f},{y:.1f}" for x, y in plane)
            ends[name] = f"{of_curve[-1][1]:.2f}"
    return {"lines": lines, "ends": ends, "last": last, "kept": kept, "at": WIDTH * kept / last}


def _add_audio(
    rows: Rows, workspace: Workspace, pair: Pair, page: Path, megabytes: float | None
) -> str:
    """Give rows the address of their audio as ``audio``; returns what became of it, counted."""
    manifest = workspace.downstream_data(pair.config.downstream) / "manifest"
    if not (manifest / "test.tsv").is_file():
        return f"{len(rows):,} rows without audio: {manifest / 'test.tsv'} does not exist"
    from preprocess.actions.manifest import distinct, read_manifest  # torch takes a second
    from preprocess.actions.stream import file_rates
    from preprocess.speech2unit.audio import BadAudio

    root, entries = read_manifest(manifest / "test.tsv")
    pieces, rates = {entry.file: entry for entry in distinct(entries)}, file_rates(manifest)
    counts = {"embedded": 0, "linked": 0, "not found": 0}
    left = 1e6 * (megabytes or 0)
    for row in sorted(rows, key=lambda row: (-row["is_mistake"], -row["probability"])):
        piece = pieces.get(row["file"])
        file = None if piece is None else (root / piece.path).absolute()
        if file is None or not file.is_file():
            counts["not found"] += 1
            continue
        if left > 0:
            try:
                embedded = _embedded(file, piece.start, piece.frames)
            except BadAudio:  # a browser may play it
                embedded = ""
            if 0 < len(embedded) <= left:
                row["audio"], left = embedded, left - len(embedded)
                counts["embedded"] += 1
                continue
            left = 0 if embedded else left
        row["audio"] = _link(file, workspace, page)
        if piece.file != piece.path:  # a part of the file
            times = (at / rates[piece.path] for at in (piece.start, piece.start + piece.frames))
            row["audio"] += "#t={:.3f},{:.3f}".format(*times)
        counts["linked"] += 1
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)


def _embedded(file: Path, start: int, frames: int) -> str:
    """What the prompt hears of a file, as an address that holds it. Raises ``BadAudio``."""
    import soundfile

    from preprocess.speech2unit.audio import read_audio
    from preprocess.speech2unit.features import SAMPLE_RATE

    whole = io.BytesIO()
    soundfile.write(whole, read_audio(file, start, frames).samples, SAMPLE_RATE, format="FLAC")
    return f"data:audio/flac;base64,{base64.b64encode(whole.getvalue()).decode()}"


def _link(file: Path, workspace: Workspace, page: Path) -> str:
    """The file's address: relative in the workspace, which may move as a whole."""
    if file.is_relative_to(workspace.root.absolute()):
        return quote(os.fsencode(os.path.relpath(file, page.parent)))
    return file.as_uri()
