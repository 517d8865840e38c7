"""Stage 6: score the decoded samples. An answer is right when all its label units are; of texts,
the words, characters and slots are scored.
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


def print_file(path: Path, scores: dict[str, float], beside: dict[str, Any]) -> None:
    """A line a score, then what it is read ``beside``."""
    print(path)
    width = max(map(len, scores))
    for name, value, interval in score_lines(scores):
        print(f"  {name:<{width}}  {value}{f'  (95 %: {interval})' if interval else ''}")
    if COST in scores:
        target = beside.get("target")
        print(f"  {ABOUT_DETECTION}{f', {target}' if target else ''}")
    print_comparison(beside)
    if "classes" in beside:
        print_report(beside)
    if "page" in beside:
        print("\n  page: {page} (audio: {audio})".format(**beside))


def print_side_by_side(by_file: dict[Path, dict[str, float]]) -> None:
    """A line a score, a column a file; the files' names come first, numbered."""
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
    of_decoding = "the --sample_date of decoding"
    flag("--sample_date", type=name_part, required=True, nargs="+", help=of_decoding)
    add_selection(parser)
    report = "classes, mistakes, a confusion matrix of each slot (PNG)"
    flag("--report", action="store_true", help=report)
    flag("--mistakes", type=int, default=10, help="with --report: how many (default: 10)")
    page = "one HTML file a sample file: scores, curve, confusions, rows to listen to"
    flag("--html", action="store_true", help=page)
    embedded = "with --html: hold up to MB of audio in the page (default: link all; given: 20)"
    flag("--embed_audio", metavar="MB", nargs="?", type=float, const=20.0, help=embedded)
    flag("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    if args.embed_audio is not None and not (args.html and 0 < args.embed_audio <= 1000):
        raise UserError(f"--embed_audio {args.embed_audio:g}: expected up to 1000 MB, with --html")
    workspace = Workspace(args.workspace)
    by_file = {path: scores_of(path, workspace) for path in sample_files(args)}
    beside = {path: comparison(path, workspace) for path in by_file}
    pages = {}
    if args.html:
        from ulm_prompt.scoring.html_report import write_pages

        scored = {path: scores | beside[path] for path, scores in by_file.items()}
        pages = write_pages(scored, workspace, args.embed_audio)
    whole = {}
    for path, scores in by_file.items():
        report = write_report(path, workspace, args.mistakes) if args.report else {}
        beside[path] |= report | pages.get(path, {})
        count = int(scores["utterances"])
        intervals = {name: wilson(scores[name], count) for name in SHARES if name in scores}
        whole[str(path)] = scores | {"intervals": intervals} | beside[path]
    if args.json:
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    for path, scores in by_file.items():
        print_file(path, scores, beside[path])
    if len(by_file) > 1:
        print_side_by_side(by_file)


if __name__ == "__main__":
    run(main)
