"""The downstreams: a folder beside this file each, with config.yaml, and preprocessor.py unless a
table of recordings says it all.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.workspace import Workspace
from preprocess.preprocessor import Preprocessor

HERE = Path(__file__).resolve().parent


def downstreams() -> list[str]:
    """Every folder here that is a downstream."""
    return sorted(path.parent.name for path in HERE.glob("*/config.yaml"))


def chosen(arguments: argparse.Namespace) -> list[Preprocessor]:
    """The downstreams that are named, or all that have a corpus here. Raises ``UserError`` for
    none.
    """
    if arguments.downstream:
        return [load_downstream(name, arguments) for name in arguments.downstream]
    every = [load_downstream(name, arguments) for name in downstreams()]
    found = [task for task in every if task.root.is_dir() or task.manifest.is_dir()]
    if not found:
        roots = ", ".join(str(task.root) for task in every)
        raise UserError(
            f"no corpus found ({roots}); name one with --downstream and datarc.root_path"
        )
    return found


def load_downstream(name: str, arguments: argparse.Namespace) -> Preprocessor:
    """Build the named task's preprocessor from its config. Raises ``UserError`` for an unknown name
    or a bad config.
    """
    if name not in downstreams():
        raise UserError(f"--downstream {name}: unknown; there is {', '.join(downstreams())}")
    has_own = (HERE / name / "preprocessor.py").exists()
    module = importlib.import_module(f"preprocess.{name if has_own else 'table'}.preprocessor")
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
