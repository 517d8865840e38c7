"""A speech model's weights: what is asked for must be there, in the shape that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError


class Weights:
    """A checkpoint's tensors by name. What nobody asks for, a training criterion's say, is left."""

    def __init__(self, tensors: Mapping[str, Any], path: Path, device: torch.device) -> None:
        self._tensors = tensors
        self._path = path
        self._device = device

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Return one tensor, float32, on the device. Raises ``UserError`` where it is missing or
        misshapen.
        """
        tensor = self._tensors.get(name)
        found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else "nothing"
        if found != shape:
            raise UserError(
                f"{self._path}: expected the weight {name} {shape}, found {found}; "
                "the file is damaged or another model's, get it again"
            )
        return tensor.detach().to(self._device, torch.float32, copy=True)

    def take_all(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors called ``prefix`` + name, by name."""
        return {name: self.take(prefix + name, *shape) for name, shape in shapes.items()}

    def linear(self, name: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``name.weight`` (rows, columns) and ``name.bias`` (rows,)."""
        return self.take(f"{name}.weight", rows, columns), self.take(f"{name}.bias", rows)

    def norm(self, name: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``name.weight`` (size,) and ``name.bias`` (size,)."""
        return self.take(f"{name}.weight", size), self.take(f"{name}.bias", size)
