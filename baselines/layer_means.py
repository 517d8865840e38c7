"""Audio -> the mean over time of every layer of the speech encoder, for train_downstream.py.

The script reads the audio of the manifests once, without a k-means. A killed run resumes. torchrun
shares the work between processes. --num_shards and --shard share it between jobs; --merge_shards
then joins the results.
"""

from __future__ import annotations

import argparse

from baselines.classifiers.means import LayerMeans
from pipeline.devices import process_group, ranks, speak_on_main_alone
from pipeline.errors import UserError, run
from preprocess.actions.downstreams import add_flags, load_downstreams, shard_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--merge_shards", action="store_true", help="join the results of the --shard jobs"
    )
    add_flags(parser)
    args = parser.parse_args()
    process_ranks = ranks()
    speak_on_main_alone(process_ranks)
    shard = shard_of(args, process_ranks)
    if args.merge_shards and (shard or process_ranks.world > 1):
        raise UserError("--merge_shards: run it without --shard and torchrun, after the last shard")
    with process_group(process_ranks):
        for preprocessor in load_downstreams(args, after_manifest=True):
            means = LayerMeans(preprocessor)
            if args.merge_shards:
                means.merge_shards(args.skip_bad)
            elif shard:
                means.run_shard(shard)
            else:
                means.run(process_ranks, args.skip_bad)
    next_step = "--merge_shards, after the last shard" if shard else "baselines/train_downstream.py"
    print(f"next: {next_step}")


if __name__ == "__main__":
    run(main)
