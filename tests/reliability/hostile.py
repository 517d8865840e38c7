"""Bad file contents: pickles that run code, damaged bytes, texts saved by a Windows editor."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import UserError


class Runs:
    """An object whose pickle creates the file ``canary`` when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


def refused(load: Callable[[], object]) -> str:
    """Return the one-line error with which ``load`` refuses a file."""
    with pytest.raises(UserError) as error:
        load()
    message = str(error.value)
    assert message.isprintable() and len(message) < 800, message
    return message


_ODD = (
    b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\u2028".encode(), b"\x1b[2J", b"\r",
    b"\n", b"\n\n", b"\t", b"  ", b"|", b",", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"null",
    b"-1", b"1.5", b"NaN", b"\\ud800", b"- ", b"${a}", b"!!int ''", b"!!python/name:os.system ",
    b"#", b" <s> ", b"</s>",
)  # fmt: skip
_ODD_JSON = (b"null", b"true", b"-1", b"1.5", b'""', b'"0"', b'"\\ud800"', b'"a\\nb"', b"[]", b"{}")
_VALUE = re.compile(rb'"[^"]*"|-?[\d.]+|null|true|false|\[\]|\{\}')


def damaged(good: bytes, is_json: bool = False) -> Iterator[bytes]:
    """Yield ``good`` 40 times with a random part replaced by odd bytes, equal in every run. If
    ``is_json``, also replace each key and value.
    """
    rng = random.Random(good)
    for _ in range(40):
        start = rng.randrange(len(good) + 1)
        end = start + rng.choice((0, 0, 1, 2, 10, len(good)))
        yield good[:start] + rng.choice(_ODD) + good[end:]
    for value in _VALUE.finditer(good) if is_json else ():
        yield good[: value.start()] + rng.choice(_ODD_JSON) + good[value.end() :]


def windows(path: Path) -> None:
    """Save a text as a Windows editor may: with a byte order mark, CRLF and no last line end."""
    lines = path.read_bytes().replace(b"\r\n", b"\n").removesuffix(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
