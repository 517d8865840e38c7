"""Large JSON objects a member at a time, read and written: memory holds one of a million."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError

PIECE = 1 << 20  # characters that are read at a time, at least
_SPACE = " \t\n\r"
_BEHIND = frozenset(_SPACE + ",:]}")  # what may stand behind a value


def write_members(handle: IO[str], members: Iterable[tuple[str, Any]]) -> None:
    """Write the object of ``members``, to the byte as ``pipeline.files.write_json`` writes it."""
    count = 0
    for count, (name, value) in enumerate(members, start=1):
        text = json.dumps({name: value}, indent=4, ensure_ascii=False)
        handle.write(("{" if count == 1 else ",") + text[1:-2])
    handle.write("\n}" if count else "{}")


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
    if window.peek() != "}":
        while True:
            name = window.value()
            if not isinstance(name, str):
                raise ValueError("a name is not a string")
            window.take(":")
            yield name, window.value()
            if window.peek() != ",":
                break
            window.take(",")
    window.take("}")
    if window.peek():
        raise ValueError("more text after it")


class _Window:
    """The part of a text that is being decoded. Raises ``ValueError`` for what is no JSON."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle = handle
        self._text, self._place = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _SPACE:
                    return self._text[self._place]
                self._place += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Go past one character."""
        if self.peek() != expected:
            raise ValueError(f"expected {expected!r}")
        self._place += 1

    def value(self) -> Any:
        """Go past a whole value, and return it."""
        self.peek()
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
