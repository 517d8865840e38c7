"""Stage 2b: collect each task's labels into labelspace.json."""

from __future__ import annotations

import argparse

from pipeline.errors import run
from pipeline.files import holding
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data import verbal
from ulm_prompt.prompt_data.tasks import add_selection, find_pairs, print_next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_selection(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    for pair in find_pairs(args):
        path = workspace.datasets(pair.unit_model) / "labelspace.json"
        with holding(path.parent):
            labels: set[str] = set()
            for text in verbal.prompt_texts(workspace, pair).values():
                for _, row_labels in verbal.read_prompt_text(text, renamed=False):
                    labels.update(row_labels.split())
            verbal.write_entry(path, pair.task, sorted(labels, key=int), verbal.LABELS_MADE_BY)
        print(f"{pair.task} {pair.unit_model}: {len(labels)} labels -> {path}")
    print_next(args, "ulm_prompt/verbalizer.py")


if __name__ == "__main__":
    run(main)
