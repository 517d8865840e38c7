"""Stage 1: audio -> units -> ``file|units|labels``, one action at a time.

generate_manifest: list the splits' audio and labels. learn_kmeans: fit the units' k-means (log-mel
has no released one). quantized: audio to units; a killed run goes on, torchrun shares the work over
processes, --num_shards and --shard over jobs that merge_shards joins. postprocess: merge runs and
join units with labels.

A downstream is a folder beside this file with config.yaml and preprocessor.py; your own needs no
change here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.config import load_config
from pipeline.errors import UserError, run
from pipeline.ranks import Ranks, process_group, ranks, speak_on_main_alone
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.learning import learn_kmeans
from preprocess.preprocessor import Preprocessor
from preprocess.quantizing import Shard, merge_shards, quantize, quantize_shard

HERE = Path(__file__).resolve().parent
NEXT = {
    "generate_manifest": "--action learn_kmeans (or quantized, where the k-means is there already)",
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
    shard = _shard(arguments, here)
    names = arguments.downstream or downstreams()
    preprocessors = [load_downstream(name, arguments) for name in names]
    if not arguments.downstream:
        preprocessors = those_at_hand(preprocessors, arguments.action)
    if arguments.action == "learn_kmeans":
        learn_kmeans(preprocessors)
    with process_group(here):
        for preprocessor in preprocessors:
            if arguments.action == "generate_manifest":
                preprocessor.generate_manifest()
            elif arguments.action == "quantized" and shard:
                quantize_shard(preprocessor, shard)
            elif arguments.action == "quantized":
                quantize(preprocessor, here, arguments.skip_bad)
            elif arguments.action == "merge_shards":
                merge_shards(preprocessor, arguments.skip_bad)
            elif arguments.action == "postprocess":
                preprocessor.postprocess()
    after = "--action merge_shards, after the last shard" if shard else NEXT[arguments.action]
    print(f"next: {after}")


def _shard(arguments: argparse.Namespace, here: Ranks) -> Shard | None:
    given = arguments.shard is not None or arguments.num_shards is not None
    if (given or here.world > 1) and arguments.action != "quantized":
        raise UserError("shards and torchrun are for --action quantized; this one runs alone")
    if not given:
        return None
    if here.world > 1:
        raise UserError("--num_shards --shard and torchrun: both share the work; use one of them")
    if arguments.shard is None or arguments.num_shards is None:
        raise UserError("--num_shards and --shard: give both")
    if not 0 <= arguments.shard < arguments.num_shards:
        raise UserError(
            f"--shard {arguments.shard}: expected 0 to {arguments.num_shards - 1} "
            f"(--num_shards {arguments.num_shards})"
        )
    return Shard(arguments.shard, arguments.num_shards)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--downstream",
        nargs="+",
        metavar="NAME",
        help=f"one or more of: {', '.join(downstreams())} (default: all whose corpus is there)",
    )
    parser.add_argument("--action", required=True, choices=list(NEXT))
    parser.add_argument("--unit_model", help="the same as --set taskrc.unit_model=NAME")
    parser.add_argument("--config", type=Path, help="instead of <downstream>/config.yaml")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override the config",
    )
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out audio that cannot be used, instead of failing at the end",
    )
    parser.add_argument(
        "--num_shards", type=int, metavar="N", help="quantized: divide the work into N shards"
    )
    parser.add_argument("--shard", type=int, metavar="K", help="quantized: do this one, 0 to N - 1")
    parser.add_argument(
        "--workspace", type=Path, default=REPOSITORY, help="default: the repository"
    )
    return parser.parse_args()


def downstreams() -> list[str]:
    """Every folder here that is a downstream."""
    return sorted(path.parent.name for path in HERE.glob("*/preprocessor.py"))


def those_at_hand(preprocessors: list[Preprocessor], action: str) -> list[Preprocessor]:
    """Those whose corpus, or after the first action whose manifest, is there; where none is, all of
    them, to be told what is missing.
    """

    def is_there(each: Preprocessor) -> bool:
        return (each.root if action == "generate_manifest" else each.manifest).is_dir()

    found = list(filter(is_there, preprocessors)) or preprocessors
    for each in preprocessors:
        if each not in found:
            each.say("passed over, its corpus is not there")
    return found


def load_downstream(name: str, arguments: argparse.Namespace) -> Preprocessor:
    """Build the named task's preprocessor from its config. Raises ``UserError`` for an unknown name
    or a bad config.
    """
    if name not in downstreams():
        raise UserError(f"--downstream {name}: unknown; there is {', '.join(downstreams())}")
    module = importlib.import_module(f"preprocess.{name}.preprocessor")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Preprocessor) and value is not Preprocessor
    ]
    if len(classes) != 1:
        raise UserError(
            f"{module.__file__}: expected one subclass of Preprocessor, found {len(classes)}"
        )
    overrides = list(arguments.set)
    if arguments.unit_model:
        overrides.append(f"taskrc.unit_model={arguments.unit_model}")
    path = arguments.config or HERE / name / "config.yaml"
    config = load_config(classes[0].config_class, path, overrides)
    return classes[0](name, config, Workspace(arguments.workspace.resolve()), arguments.skip_bad)


if __name__ == "__main__":
    run(main)
