"""Stage 2a: quantised rows -> prompt text, one line ``units <s> labels`` per row."""

from __future__ import annotations

import argparse

from pipeline.errors import UserError, run
from pipeline.files import holding, read_json, sha256, write_json, writing
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs, print_next
from ulm_prompt.prompt_data.verbal import SEPARATOR, SOURCES, prompt_texts, row_hashes


def check_manifest(workspace: Workspace, pair: Pair) -> None:
    """Raise ``UserError`` if the manifests have changed since the rows were made from them."""
    downstream, unit_model = pair.config.downstream, pair.unit_model
    data, stage = workspace.downstream_data(downstream), "preprocess/runner.py"
    record = data / unit_model / "provenance.json"
    recorded = read_json(record, stage).get("manifest") if record.is_file() else None
    for split in SPLITS if isinstance(recorded, dict) else ():
        manifest = data / "manifest" / f"{split}.tsv"
        if manifest.is_file() and recorded.get(split) != sha256(manifest):
            raise UserError(
                f"{record.parent}: stale, {manifest} has changed since; run {stage} --downstream "
                f"{downstream} --unit_model {unit_model} --action quantized, then postprocess"
            )


def make_split(workspace: Workspace, pair: Pair, split: str) -> int:
    """Write one split's prompt text and return its number of rows. Raises ``UserError`` for a row
    with a wrong number of labels, unless the task allows any number.
    """
    expected = pair.config.labels_per_utterance
    source = workspace.rows(pair.config.downstream, pair.unit_model, split)
    count = 0
    with writing(prompt_texts(workspace, pair)[split]) as handle:
        for count, row in enumerate(read_rows(source), start=1):
            labels = row.labels.count(" ") + 1
            if expected and labels != expected:
                problem = f"{pair.task} has {expected} label(s) per utterance, found {labels}"
                remedy = f"set labels_per_utterance in ulm_prompt/config/{pair.task}.yaml"
                raise UserError(f"{source}, line {count}: {problem}; {remedy}")
            handle.write(f"{row.units}{SEPARATOR}{row.labels}\n")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_selection(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    for pair in find_pairs(args):
        check_manifest(workspace, pair)
        with holding(workspace.datasets(pair.unit_model)):
            counts = {split: make_split(workspace, pair, split) for split in SPLITS}
            record = prompt_texts(workspace, pair)["train"].with_name(SOURCES)
            write_json(record, row_hashes(workspace, pair))
        rows = ", ".join(f"{split} {count:,}" for split, count in counts.items())
        print(f"{pair.task} {pair.unit_model}: {rows} rows -> data_prompt/")
    print_next(args, "ulm_prompt/gen_labelspace.py")


if __name__ == "__main__":
    run(main)
