"""Stage 3: renamed prompt text -> fairseq binaries."""

from __future__ import annotations

import argparse

from pipeline.errors import run
from pipeline.files import holding
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection, find_pairs, print_next
from ulm_prompt.prompt_data.verbal import binarize, has_data_bin, load_verbal, renamed_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_selection(parser, verbalizer=True)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    pairs = find_pairs(args, needs_lm=True)
    for pair in pairs:
        target = workspace.data_bin(pair.unit_model, pair.data_name)
        lm_dir = lm_folder(workspace, pair.unit_model)
        if has_data_bin(workspace, pair):
            print(f"{pair.task} {pair.unit_model}: {target} was made from this text and dict: kept")
            continue

        from ulm_prompt.prompt_lm.lm import load_dictionary  # imports fairseq, which takes seconds

        with holding(target):
            texts = renamed_texts(workspace, pair)
            names = load_verbal(workspace, pair)[1].values()
            counts = binarize(texts, load_dictionary(lm_dir), lm_dir / "dict.txt", target, names)
        rows = ", ".join(f"{split} {count:,}" for split, count in counts.items())
        print(f"{pair.task} {pair.unit_model}: {rows} rows -> {target}")
    print_next(args, "ulm_prompt/train.py", "--date", "DATE")


if __name__ == "__main__":
    run(main)
