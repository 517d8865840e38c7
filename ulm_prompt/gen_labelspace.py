"""Stage 2b: collect each task's labels into labelspace.json."""

from __future__ import annotations

import argparse

from pipeline.errors import run
from pipeline.files import holding, read_json, write_json
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection, find_pairs, in_paper_order, print_next
from ulm_prompt.prompt_data.verbal import prompt_texts, read_prompt_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_selection(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    for pair in find_pairs(args):
        path = workspace.datasets(pair.unit_model) / "labelspace.json"
        with holding(path.parent):
            labelspace = read_json(path, "gen_labelspace.py") if path.exists() else {}
            labels: set[str] = set()
            for text in prompt_texts(workspace, pair).values():
                for _, row_labels in read_prompt_text(text, "ulm_prompt/make_data.py"):
                    labels.update(row_labels.split())
            labelspace[pair.task] = sorted(labels, key=int)
            write_json(path, in_paper_order(labelspace))
        print(f"{pair.task} {pair.unit_model}: {len(labelspace[pair.task])} labels -> {path}")
    print_next(args, "ulm_prompt/verbalizer.py")


if __name__ == "__main__":
    run(main)
