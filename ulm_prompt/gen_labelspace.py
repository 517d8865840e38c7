"""Stage 2b: collect each task's labels into labelspace.json."""

from __future__ import annotations

import argparse

from pipeline.errors import run
from pipeline.files import holding, read_json, write_json
from pipeline.rows import SPLITS
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs, in_paper_order
from ulm_prompt.prompt_data.verbal import read_prompt_text


def labels_of(workspace: Workspace, pair: Pair) -> list[str]:
    """Every label of the task's splits, in ascending order, as strings."""
    labels: set[str] = set()
    for split in SPLITS:
        text = workspace.prompt_text(pair.unit_model, pair.config.downstream, "data_prompt", split)
        for _, row_labels in read_prompt_text(text, "ulm_prompt/make_data.py"):
            labels.update(row_labels.split())
    return sorted(labels, key=int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_selection(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    for pair in find_pairs(args):
        path = workspace.datasets(pair.unit_model) / "labelspace.json"
        with holding(path.parent):
            labelspace = read_json(path, "gen_labelspace.py") if path.exists() else {}
            labelspace[pair.task] = labels_of(workspace, pair)
            write_json(path, in_paper_order(labelspace))
        print(f"{pair.task} {pair.unit_model}: {len(labelspace[pair.task])} labels -> {path}")
    print("next: python ulm_prompt/verbalizer.py")


if __name__ == "__main__":
    run(main)
