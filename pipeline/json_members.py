"""Large JSON objects a member at a time, read and written: memory holds one of a million."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from json.decoder import WHITESPACE
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError
from pipeline.files import writing

PIECE = 1 << 20  # characters that are read at a time, at least
_BEHIND = frozenset(" \t\n\r,:]}")  # what may stand behind a value
_STEP = 4 * " "
_encode = json.JSONEncoder(ensure_ascii=False).encode


@contextlib.contextmanager
def writing_members(path: Path) -> Iterator[Callable[[str, Any], None]]:
    """Yield what adds a name and its value to the object in ``path``: the file, whole when the
    block ends, is to the byte what ``pipeline.files.write_json`` writes of them all.
    """
    count = 0
    with writing(path) as handle:

        def add(name: str, value: Any) -> None:
            nonlocal count
            begin = "," if count else "{"
            handle.write(f"{begin}\n{_STEP}{_encode(name)}: {_indented(value, _STEP)}")
            count += 1

        yield add
        handle.write("\n}" if count else "{}")


def _indented(value: Any, margin: str) -> str:
    """As json indents, which does so five times as slowly."""
    if not value or not isinstance(value, (dict, list)):
        return _encode(value)
    inner = margin + _STEP
    between = f",\n{inner}"
    if isinstance(value, list):
        return f"[\n{inner}{between.join(_indented(each, inner) for each in value)}\n{margin}]"
    members = (f"{_encode(name)}: {_indented(each, inner)}" for name, each in value.items())
    return f"{{\n{inner}{between.join(members)}\n{margin}}}"


def read_members(path: Path, made_by: str) -> Iterator[tuple[str, Any]]:
    """Stream name and value of each member of the object in ``path``; ``made_by`` is the command
    that makes it.

    Raises ``UserError`` for a missing file, and where it comes to what is no JSON.
    """
    try:
        handle = open(path, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run {made_by} first") from None
    count = 0
    with handle:
        try:
            for member in _members(_Window(handle)):
                count += 1
                yield member
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(
                f"{path}: not a JSON object, after {count:,} entries ({reason}); "
                f"run {made_by} again"
            ) from None


def _members(window: _Window) -> Iterator[tuple[str, Any]]:
    window.take("{")
    behind = window.take("}") if window.character() == "}" else ","
    while behind == ",":
        name = window.value()
        if not isinstance(name, str):
            raise ValueError("a name is not a string")
        window.take(":")
        yield name, window.value()
        behind = window.take(",", "}")
    if window.character():
        raise ValueError("more text after it")


class _Window:
    """The part of a text that is being decoded. Raises ``ValueError`` for what is no JSON."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle = handle
        self._text, self._place = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def character(self) -> str:
        """The next one that is no space; "" at the end."""
        while True:
            self._place = WHITESPACE.match(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def take(self, *expected: str) -> str:
        """Go past one character."""
        found = self.character()
        if found not in expected:
            raise ValueError(f"expected {' or '.join(map(repr, expected))}")
        self._place += 1
        return found

    def value(self) -> Any:
        """Go past a whole value, and return it."""
        self.character()
        while True:
            try:
                found, end = self._decode(self._text, self._place)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            cut_off = self._text[end : end + 1] not in _BEHIND  # a number may go on
            if not (cut_off and self._more()):
                self._place = end
                return found

    def _more(self) -> bool:
        """Read on, twice as much when that was not enough: in all, a text is decoded but twice."""
        rest = len(self._text) - self._place
        piece = self._handle.read(max(PIECE, rest))
        if piece:
            self._text, self._place = self._text[self._place :] + piece, 0
        return bool(piece)
