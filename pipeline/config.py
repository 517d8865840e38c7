"""YAML configs with a schema: unknown keys and wrong types are refused, ``--set key=value``
overrides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

from pipeline.errors import UserError
from pipeline.files import text_lines, writing

Schema = TypeVar("Schema")
MOST_BYTES = 1 << 20  # of a config
MOST_DEEP = 32  # lists in lists; YAML's reader takes time with the square of it


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read ``path`` into the dataclass ``schema``; ``overrides`` are ``dotted.key=value`` strings.

    Raises ``UserError`` for a missing file, broken YAML or what ``load_yaml`` refuses, a key that
    the schema lacks, or a value of the wrong type.
    """
    for override in overrides:
        if "=" not in override:
            raise UserError(
                f"--set {override}: expected key=value, for example --set datarc.root_path=/data"
            )
    try:
        layers = [
            OmegaConf.structured(schema),
            load_yaml(path),
            OmegaConf.from_dotlist(list(overrides)),
        ]
        return OmegaConf.to_object(OmegaConf.merge(*layers))
    except UserError:
        raise
    except Exception as error:  # omegaconf raises nearly anything
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        key = getattr(error, "full_key", None)
        raise UserError(
            f"{path}{' with --set' if overrides else ''}: {key + ': ' if key else ''}{reason}"
        ) from None


def load_yaml(path: Path) -> DictConfig:
    """Read a YAML mapping of plain values.

    Raises ``UserError`` for a missing file and broken YAML, and for what a config has no use for
    and a stranger's may misuse: tags (``!!python/...``), aliases (a page of them stands for more
    than fits into memory), interpolations (``${oc.env:TOKEN}`` in an address would tell it).
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; expected a config")
        text = "\n".join(text_lines(path, "config not found"))
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEEP:
                raise UserError(f"{path}: more than {MOST_DEEP} lists in lists; expected a config")
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path}: alias *{event.anchor[:60]}: write the value out")
            if getattr(event, "tag", None) is not None:
                raise UserError(f"{path}: tag {event.tag[:60]}: expected plain values")
            if "${" in getattr(event, "value", ""):
                raise UserError(f"{path}: {event.value[:60]!r}: expected plain values, no ${{...}}")
        found = OmegaConf.create(text)
    except FileNotFoundError:
        raise UserError(f"{path}: config not found") from None
    except UserError:
        raise
    except Exception as error:  # on odd text PyYAML raises nearly anything
        raise UserError(f"{path}: {ascii(' '.join(str(error).split())[:200])[1:-1]}") from None
    if not isinstance(found, DictConfig):
        raise UserError(f"{path}: expected key: value lines, found a list or a single value")
    return found


def save_config(config: object, path: Path) -> None:
    """Write the resolved config beside the output that it made."""
    with writing(path) as handle:
        handle.write(OmegaConf.to_yaml(OmegaConf.structured(config)))
