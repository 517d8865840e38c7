"""Stage 6: score the decoded samples. An answer is right if all label units are right. Texts get
scores of words, characters and slots.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, run
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.tasks import add_selection
from ulm_prompt.scoring.class_report import comparison, print_comparison, print_report, write_report
from ulm_prompt.scoring.scores import (
    ABOUT_DETECTION,
    COST,
    SHARES,
    sample_files,
    score_lines,
    scores_of,
    wilson,
    written,
)


def print_file(path: Path, scores: dict[str, float], details: dict[str, Any]) -> None:
    """Print one line per score, then the comparison, the report and the page in ``details``."""
    print(path)
    width = max(map(len, scores))
    for name, value, interval in score_lines(scores):
        print(f"  {name:<{width}}  {value}{f'  (95 %: {interval})' if interval else ''}")
    if COST in scores:
        target = details.get("target")
        print(f"  {ABOUT_DETECTION}{f', {target}' if target else ''}")
    print_comparison(details)
    if "classes" in details:
        print_report(details)
    if "page" in details:
        print("\n  page: {page} (audio: {audio})".format(**details))


def print_side_by_side(by_file: dict[Path, dict[str, float]]) -> None:
    """Print the numbered file names, then a table: one line per score, one column per file."""
    print()
    for number, path in enumerate(by_file, start=1):
        print(f"({number}) {path.parent.name}/{path.name}")
    names = dict.fromkeys(name for scores in by_file.values() for name in scores)
    rows = {"": [f"({number})" for number in range(1, len(by_file) + 1)]}
    for name in names:
        rows[name] = [written(name, s[name]) if name in s else "" for s in by_file.values()]
    for name, cells in rows.items():
        print(f"{name:24}" + "".join(f"{cell:>10}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    date = "the --sample_date of decoding"
    flag("--sample_date", type=name_part, required=True, nargs="+", help=date)
    add_selection(parser)
    report = "add classes, mistakes and a confusion matrix per slot (PNG)"
    flag("--report", action="store_true", help=report)
    flag("--mistakes", type=int, default=10, help="mistakes to list with --report (default: 10)")
    page = "write one HTML page per sample file: scores, curve, confusions, rows with audio"
    flag("--html", action="store_true", help=page)
    embedded = "embed up to MB of audio in the --html page (default: link all; flag alone: 20)"
    flag("--embed_audio", metavar="MB", nargs="?", type=float, const=20.0, help=embedded)
    flag("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    if args.embed_audio is not None and not (args.html and 0 < args.embed_audio <= 1000):
        raise UserError(f"--embed_audio {args.embed_audio:g}: expected up to 1000 MB, with --html")
    workspace = Workspace(args.workspace)
    by_file = {path: scores_of(path, workspace) for path in sample_files(args)}
    details = {path: comparison(path, workspace) for path in by_file}
    pages = {}
    if args.html:
        from ulm_prompt.scoring.html_report import write_pages

        scored = {path: scores | details[path] for path, scores in by_file.items()}
        pages = write_pages(scored, workspace, args.embed_audio)
    output = {}
    for path, scores in by_file.items():
        report = write_report(path, workspace, args.mistakes) if args.report else {}
        details[path] |= report | pages.get(path, {})
        count = int(scores["utterances"])
        intervals = {name: wilson(scores[name], count) for name in SHARES if name in scores}
        output[str(path)] = scores | {"intervals": intervals} | details[path]
    if args.json:
        print(json.dumps(output, indent=2, ensure_ascii=False))
        return
    for path, scores in by_file.items():
        print_file(path, scores, details[path])
    if len(by_file) > 1:
        print_side_by_side(by_file)


if __name__ == "__main__":
    run(main)
