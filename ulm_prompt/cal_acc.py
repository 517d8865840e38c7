"""Stage 6: score the decoded samples. An answer is right when all its label units are; of texts,
the words, characters and slots are scored.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.errors import run
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection
from ulm_prompt.scoring.scores import COUNTS, SHARES, sample_files, scores_of, wilson


def written(name: str, value: float) -> str:
    """A score as it is printed."""
    return f"{value:,}" if name in COUNTS else f"{value:.2f} %"


def interval(name: str, scores: dict[str, float]) -> str:
    """The 95 % interval of a share, as it is printed; nothing for other scores."""
    if name not in SHARES:
        return ""
    low, high = wilson(scores[name], int(scores["utterances"]))
    return f"  (95 %: {low:.2f} to {high:.2f})"


def print_side_by_side(by_file: dict[Path, dict[str, float]]) -> None:
    """A line a score, a column a file; the files' names come first, numbered."""
    names = list(dict.fromkeys(name for scores in by_file.values() for name in scores))
    print()
    for number, path in enumerate(by_file, start=1):
        print(f"({number}) {path.parent.name}/{path.name}")
    print(f"{'':24}" + "".join(f"{f'({number})':>10}" for number in range(1, len(by_file) + 1)))
    for name in names:
        columns = (scores.get(name) for scores in by_file.values())
        cells = ("" if value is None else written(name, value) for value in columns)
        print(f"{name:24}" + "".join(f"{cell:>10}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sample_date", required=True, nargs="+", help="the --sample_date of decoding"
    )
    add_selection(parser)
    parser.add_argument(
        "--report", action="store_true", help="classes, slots, mistakes, a confusion matrix (PNG)"
    )
    parser.add_argument(
        "--mistakes", type=int, default=10, help="with --report: how many (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    by_file = {path: scores_of(path, workspace) for path in sample_files(args)}
    reports = {}
    if args.report:
        from ulm_prompt.scoring.class_report import print_report, write_report

        reports = {path: write_report(path, workspace, args.mistakes) for path in by_file}
    if args.json:
        whole = {}
        for path, scores in by_file.items():
            count = int(scores["utterances"])
            shares = {name: wilson(scores[name], count) for name in SHARES if name in scores}
            whole[str(path)] = scores | {"intervals": shares} | reports.get(path, {})
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    for path, scores in by_file.items():
        print(path)
        width = max(map(len, scores))
        for name, value in scores.items():
            print(f"  {name:<{width}}  {written(name, value)}{interval(name, scores)}")
        if args.report:
            print_report(reports[path])
    if len(by_file) > 1:
        print_side_by_side(by_file)


if __name__ == "__main__":
    run(main)
