"""Stage 1: audio -> units -> ``file|units|labels``, one action at a time.

generate_manifest: list the audio and labels of each split. learn_kmeans: fit a k-means if none is
released, or for logmel. quantized: map audio to units; a killed run resumes; torchrun shares work
among processes, --num_shards and --shard among jobs. merge_shards: join the results of the jobs.
postprocess: merge repeated units, join units with labels. docs/own_task.md: add a downstream.
"""

from __future__ import annotations

import argparse

from pipeline.devices import process_group, ranks, speak_on_main_alone
from pipeline.errors import UserError, run
from pipeline.files import holding
from preprocess.actions.downstreams import add_flags, load_downstreams, shard_of
from preprocess.actions.quantize import Quantizing, learn_kmeans

NEXT = {
    "generate_manifest": "--action learn_kmeans (or quantized, if the k-means exists)",
    "learn_kmeans": "--action quantized",
    "quantized": "--action postprocess",
    "merge_shards": "--action postprocess",
    "postprocess": "ulm_prompt/make_data.py",
}


def main() -> None:
    """Run one action on the named downstreams."""
    arguments = parse_arguments()
    here = ranks()
    speak_on_main_alone(here)
    shard = shard_of(arguments, here)
    if (shard or here.world > 1) and arguments.action != "quantized":
        raise UserError(f"--action {arguments.action}: only quantized takes shards and torchrun")
    preprocessors = load_downstreams(arguments, arguments.action != "generate_manifest")
    if arguments.action == "learn_kmeans":
        with holding(preprocessors[0].learned_km_path):
            learn_kmeans(preprocessors)
    with process_group(here):
        for preprocessor in preprocessors:
            if arguments.action == "generate_manifest":
                with holding(preprocessor.manifest):
                    preprocessor.generate_manifest()
            elif arguments.action == "quantized" and shard:
                Quantizing(preprocessor).run_shard(shard)
            elif arguments.action == "quantized":
                Quantizing(preprocessor).run(here, arguments.skip_bad)
            elif arguments.action == "merge_shards":
                Quantizing(preprocessor).merge_shards(arguments.skip_bad)
            elif arguments.action == "postprocess":
                with holding(preprocessor.units):
                    preprocessor.postprocess()
    merge = "--action merge_shards, after the last shard"
    print(f"next: {merge if shard else NEXT[arguments.action]}")


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--action", required=True, choices=list(NEXT))
    add_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
