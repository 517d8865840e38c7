"""Audio -> the mean over time of every layer of the speech model, what train_downstream.py reads.

One pass over the audio of the manifests, with no k-means. A killed run resumes. torchrun shares the
work over processes, --num_shards and --shard over jobs that --merge_shards joins, as for units.
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
        "--merge_shards", action="store_true", help="join what --shard jobs have computed"
    )
    add_flags(parser)
    args = parser.parse_args()
    here = ranks()
    speak_on_main_alone(here)
    shard = shard_of(args, here)
    if args.merge_shards and (shard or here.world > 1):
        raise UserError("--merge_shards: runs alone, after the last shard")
    with process_group(here):
        for task in load_downstreams(args, after_manifest=True):
            means = LayerMeans(task)
            if args.merge_shards:
                means.merge_shards(args.skip_bad)
            elif shard:
                means.run_shard(shard)
            else:
                means.run(here, args.skip_bad)
    after = "--merge_shards, after the last shard" if shard else "baselines/train_downstream.py"
    print(f"next: {after}")


if __name__ == "__main__":
    run(main)
