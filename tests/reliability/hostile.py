"""What strangers, editors and disks may make of a file: code, odd bytes, something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

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


# the same examples everywhere, as many as a loaded machine reads in a second or two
few = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_ODD = (
    b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\u2028".encode(), b"\x1b[2J", b"\r",
    b"\n", b"\n\n", b"\t", b"  ", b"|", b",", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"null",
    b"-1", b"1.5", b"NaN", b"\\ud800", b"- ", b"${a}", b"!!int ''", b"!!python/name:os.system ",
    b"#", b" <s> ", b"</s>",
)  # fmt: skip
_JSON = st.recursive(
    st.sampled_from([None, True, -1, 0, 1.5, "", "0", "\ud800", "a\nb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@st.composite
def contents(draw: st.DrawFn, good: bytes) -> bytes:
    """Any bytes, or ``good`` with one to three of its stretches replaced."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=60))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(good)))
        end = min(len(good), start + draw(st.sampled_from([0, 0, 1, 2, 10, len(good)])))
        good = good[:start] + draw(st.sampled_from(_ODD)) + good[end:]
    return good


@st.composite
def json_contents(draw: st.DrawFn, good: bytes) -> bytes:
    """The same, or ``good`` with one of its values replaced by any other."""
    if draw(st.booleans()):
        return draw(contents(good))
    return json.dumps(_changed(draw, json.loads(good))).encode()


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if not value or not isinstance(value, (dict, list)) or draw(st.integers(0, 3)) == 0:
        return draw(_JSON)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    copy = value.copy()
    copy[key] = _changed(draw, value[key])
    return copy


def windows(path: Path) -> None:
    """Save a text as an editor on Windows may: a byte order mark, CRLF, no last line end."""
    lines = path.read_bytes().replace(b"\r\n", b"\n").removesuffix(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
