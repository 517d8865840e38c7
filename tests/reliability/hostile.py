"""Files that a stranger may send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError


class Runs:
    """Loading its pickle makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


def refused(load: Callable[[], object]) -> str:
    """The one line with which ``load`` refuses its file."""
    with pytest.raises(UserError) as error:
        load()
    message = str(error.value)
    assert message.isprintable() and len(message) < 800, message
    return message
