"""Stage 2b: collect each task's labels into labelspace.json."""

from __future__ import annotations

import argparse

from pipeline.errors import run
from pipeline.files import holding
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection, find_pairs, print_next
from ulm_prompt.prompt_data.verbal import (
    LABELS_MADE_BY,
    TEXT_MADE_BY,
    prompt_texts,
    read_prompt_text,
    write_entry,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_selection(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    for pair in find_pairs(args):
        path = workspace.datasets(pair.unit_model) / "labelspace.json"
        with holding(path.parent):
            labels: set[str] = set()
            for text in prompt_texts(workspace, pair).values():
                for _, row_labels in read_prompt_text(text, TEXT_MADE_BY):
                    labels.update(row_labels.split())
            write_entry(path, pair.task, sorted(labels, key=int), LABELS_MADE_BY)
        print(f"{pair.task} {pair.unit_model}: {len(labels)} labels -> {path}")
    print_next(args, "ulm_prompt/verbalizer.py")


if __name__ == "__main__":
    run(main)
