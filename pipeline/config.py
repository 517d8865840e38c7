"""YAML configs with a schema. Unknown keys and values of a wrong type are errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from pipeline.errors import UserError, near
from pipeline.files import text_lines, writing

Schema = TypeVar("Schema")
_structured: Callable[[Any], DictConfig] = functools.cache(OmegaConf.structured)


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read ``path`` into the dataclass ``schema``; ``overrides`` are ``dotted.key=value`` strings.

    Raises ``UserError`` as ``load_yaml`` does, for an unknown key, or for a value of a wrong type.
    """
    for override in overrides:
        if "=" not in override:
            raise UserError(f"--set {override}: expected KEY=VALUE")
    config = load_yaml(path)
    try:
        layers = _structured(schema), config, OmegaConf.from_dotlist(list(overrides))
        return cast(Schema, OmegaConf.to_object(OmegaConf.merge(*layers)))
    except Exception as error:  # omegaconf raises many types
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        key = getattr(error, "full_key", None)
        if isinstance(error, ConfigKeyError) and is_dataclass(error.object_type):
            names = [field.name for field in fields(error.object_type)]
            unknown = str(key).rpartition(".")[2]
            reason = f"not known{near(unknown, names)}; expected one of {', '.join(names)}"
        raise UserError(
            f"{path}{' with --set' if overrides else ''}: {key + ': ' if key else ''}{reason}"
        ) from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values.

    Raises ``UserError`` if the file is missing, or contains broken YAML, a tag (``!!python/...``)
    or an interpolation: ``${oc.env:TOKEN}`` in a URL of a stranger's config would send the token.
    """
    text = "\n".join(text_lines(path, "config not found"))
    try:
        config = yaml.load(text, Loader=_Loader)
        config = {} if config is None else config
    except Exception as error:  # on invalid text PyYAML raises many types
        raise UserError(f"{path}: {ascii(' '.join(str(error).split())[:200])[1:-1]}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected key: value lines, found a list or a single value")
    if "${" in str(config):
        raise UserError(f"{path}: expected plain values, found ${{...}}")
    return config


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader that follows omegaconf: 1e-3 is a number, 2022-11-22 a text, no duplicate keys."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"duplicate key{node.start_mark}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    [*"-+.0123456789"],
)


def save_config(config: object, path: Path) -> None:
    """Write the resolved config to ``path``, next to the output of the stage."""
    with writing(path) as handle:
        handle.write(OmegaConf.to_yaml(OmegaConf.structured(config)))
