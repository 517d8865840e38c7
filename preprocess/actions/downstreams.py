"""The downstreams, and the flags by which every stage that reads audio chooses them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

from pipeline.config import load_config, load_yaml
from pipeline.devices import Ranks, add_device
from pipeline.errors import UserError
from pipeline.runs import add_quiet
from pipeline.unit_models import find_unit_model
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.actions.audio_run import Shard
from preprocess.preprocessor import Preprocessor

HERE = Path(__file__).resolve().parents[1]
OFFLINE = "mfcc100"  # a unit model that needs no download


def downstreams() -> list[str]:
    """Every folder of ``preprocess/`` with a config.yaml."""
    return sorted(path.parent.name for path in HERE.glob("*/config.yaml"))


def load_downstreams(arguments: argparse.Namespace, after_manifest: bool) -> list[Preprocessor]:
    """The named downstreams. Without names: those whose corpus or, ``after_manifest``, whose
    manifest exists; where none does, all of them, which then say what is missing.
    """
    names = arguments.downstream or downstreams()
    roots = [override for override in arguments.set if override.startswith("datarc.root_path=")]
    if roots and len(names) > 1:
        raise UserError(f"--set {roots[-1]}: one corpus' folder; name its --downstream, it alone")
    notes: dict[str, None] = {}  # each is printed once
    tasks = [load_downstream(name, arguments, notes.setdefault) for name in names]
    for note in notes:
        print(note)
    if arguments.downstream:
        return tasks
    ready = [task for task in tasks if (task.manifest if after_manifest else task.root).is_dir()]
    absent = [task.downstream for task in tasks if task not in ready]
    if ready and absent:
        what = "manifest" if after_manifest else "corpus"
        print(f"left out, without a {what}: {', '.join(absent)}")
    return ready or tasks


def load_downstream(
    name: str, arguments: argparse.Namespace, say: Callable[[str], object] = print
) -> Preprocessor:
    """The named task. Raises ``UserError`` for an unknown name or a bad config."""
    if name not in downstreams():
        raise UserError(f"--downstream {name}: unknown; there is {', '.join(downstreams())}")
    reader = _reader(name)
    flags = {"taskrc.unit_model": arguments.unit_model, "fairseqrc.dtype": arguments.dtype}
    overrides = [*arguments.set, *(f"{key}={given}" for key, given in flags.items() if given)]
    path = arguments.config or HERE / name / "config.yaml"
    config = load_config(reader.config_class, path, overrides)
    workspace = Workspace(arguments.workspace.resolve())
    model = config.taskrc.unit_model
    encoder = find_unit_model(model, workspace).checkpoint
    is_default = not any(override.startswith("taskrc.unit_model=") for override in overrides)
    if is_default and encoder and encoder.wheel and not encoder.path.is_file():
        what = f"is not here, so {OFFLINE} makes the units, which understands far less"
        get = f"get it by python pretrained_models/download.py {model}, or choose with --unit_model"
        say(f"{model}: {encoder.path.name} {what}; {get}")
        config.taskrc.unit_model = OFFLINE
    return reader(name, config, workspace, arguments.skip_bad, arguments.device)


def _reader(name: str) -> type[Preprocessor]:
    """The class that reads a downstream's corpus: its own, or its ``reader``'s, or the table's."""
    folder = name
    if not (HERE / name / "preprocessor.py").exists():
        datarc = load_yaml(HERE / name / "config.yaml").get("datarc") or {}
        folder = datarc.get("reader") or "table"
    if not (HERE / folder / "preprocessor.py").exists():
        raise UserError(f"{name}/config.yaml: datarc.reader {folder}: has no preprocessor.py")
    module = importlib.import_module(f"preprocess.{folder}.preprocessor")
    own = [value for value in vars(module).values() if isinstance(value, type)]
    own = [kind for kind in own if kind.__module__ == module.__name__]
    readers = [kind for kind in own if issubclass(kind, Preprocessor)]
    if len(readers) != 1:
        found = f"{len(readers)} subclasses of Preprocessor"
        raise UserError(f"{module.__file__}: expected one subclass of Preprocessor, found {found}")
    return readers[0]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every stage that reads a downstream's audio."""
    names = f"one or more of: {', '.join(downstreams())} (default: all whose corpus exists)"
    parser.add_argument("--downstream", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--unit_model", help="the same as --set taskrc.unit_model=NAME")
    dtype = "of the readers' products: float32, bfloat16, tf32 (the same as fairseqrc.dtype)"
    parser.add_argument("--dtype", help=dtype)
    parser.add_argument("--config", type=Path, help="instead of <downstream>/config.yaml")
    setting = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", **setting, help="override the config")
    skip = "leave out audio that cannot be used, instead of failing at the end"
    parser.add_argument("--skip_bad", action="store_true", help=skip)
    parser.add_argument("--num_shards", type=int, metavar="N", help="divide the work into N shards")
    parser.add_argument("--shard", type=int, metavar="K", help="do this one, 0 to N - 1")
    add_device(parser)
    add_quiet(parser)
    where = "default: the repository"
    parser.add_argument("--workspace", type=Path, default=REPOSITORY, help=where)


def shard_of(arguments: argparse.Namespace, here: Ranks) -> Shard | None:
    """The shard that the flags ask for, if any. Raises ``UserError`` for one that cannot be."""
    if arguments.shard is None and arguments.num_shards is None:
        return None
    if here.world > 1:
        raise UserError("--num_shards --shard and torchrun: both share the work; use one of them")
    if arguments.shard is None or arguments.num_shards is None:
        raise UserError("--num_shards and --shard: give both")
    index, count = arguments.shard, arguments.num_shards
    if not 0 <= index < count:
        raise UserError(f"--shard {index}: expected 0 to {count - 1} (--num_shards {count})")
    return Shard(index, count)
