"""YAML configs with a schema: unknown keys and wrong types are refused, ``--set key=value``
overrides.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from pipeline.errors import UserError
from pipeline.files import text_lines, writing

Schema = TypeVar("Schema")


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read ``path`` into the dataclass ``schema``; ``overrides`` are ``dotted.key=value`` strings.

    Raises ``UserError`` for a missing file, broken YAML, a key that the schema lacks, or a value of
    the wrong type.
    """
    text = "\n".join(text_lines(path, "config not found"))
    for override in overrides:
        if "=" not in override:
            raise UserError(
                f"--set {override}: expected key=value, for example --set datarc.root_path=/data"
            )
    try:
        layers = [
            OmegaConf.structured(schema),
            OmegaConf.load(io.StringIO(text)),
            OmegaConf.from_dotlist(list(overrides)),
        ]
        return OmegaConf.to_object(OmegaConf.merge(*layers))
    except Exception as error:  # on odd text yaml and omegaconf raise nearly anything
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        key = getattr(error, "full_key", None)
        raise UserError(
            f"{path}{' with --set' if overrides else ''}: {key + ': ' if key else ''}{reason}"
        ) from None


def save_config(config: object, path: Path) -> None:
    """Write the resolved config beside the output that it made."""
    with writing(path) as handle:
        handle.write(OmegaConf.to_yaml(OmegaConf.structured(config)))
