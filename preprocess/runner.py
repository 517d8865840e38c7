"""Stage 1: audio -> units -> ``file|units|labels``, one action at a time.

generate_manifest: list the splits' audio and labels. learn_kmeans: fit the units' k-means (log-mel
has no released one). quantized: audio to units. postprocess: merge runs and join units with labels.

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
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.learning import learn_kmeans
from preprocess.preprocessor import Preprocessor

HERE = Path(__file__).resolve().parent
NEXT = {
    "generate_manifest": "--action learn_kmeans (or quantized, where the k-means is there already)",
    "learn_kmeans": "--action quantized",
    "quantized": "--action postprocess",
    "postprocess": "ulm_prompt/make_data.py",
}


def main() -> None:
    """Run one action on the named downstreams."""
    arguments = parse_arguments()
    names = arguments.downstream or downstreams()
    preprocessors = [load_downstream(name, arguments) for name in names]
    if arguments.action == "learn_kmeans":
        learn_kmeans(preprocessors)
    for preprocessor in preprocessors:
        if arguments.action == "generate_manifest":
            preprocessor.generate_manifest()
        elif arguments.action == "quantized":
            preprocessor.quantize()
        elif arguments.action == "postprocess":
            preprocessor.postprocess()
    print(f"next: {NEXT[arguments.action]}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--downstream",
        nargs="+",
        metavar="NAME",
        help=f"one or more of: {', '.join(downstreams())} (default: all of them)",
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
        "--workspace", type=Path, default=REPOSITORY, help="default: the repository"
    )
    return parser.parse_args()


def downstreams() -> list[str]:
    """Every folder here that is a downstream."""
    return sorted(path.parent.name for path in HERE.glob("*/preprocessor.py"))


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
    return classes[0](name, config, Workspace(arguments.workspace.resolve()))


if __name__ == "__main__":
    run(main)
