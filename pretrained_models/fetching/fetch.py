"""One URL into one file: resumed where it was cut, checked before it gets its name."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib import request as http
from urllib.error import HTTPError, URLError

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.runs import progress_bar

ATTEMPTS = 6  # in a row without a byte gained
PAUSE = 1.0  # seconds before the second attempt; doubles each time
_PIECE = 1 << 18
_PASSING = {408, 416, 429, 500, 502, 503, 504}  # statuses worth another attempt


class DownloadError(OSError):
    """The network, the server or the disk failed; what came so far is kept unless it is wrong."""


class Expected(NamedTuple):
    """What is known of the file, and who says so."""

    sha256: str | None = None
    size: int | None = None
    source: str = "registry.yaml"


class _Partial:
    """The beginning of a file, ``.NAME.part``, and beside it the server's mark of its version."""

    def __init__(self, final: Path, url: str) -> None:
        self.final, self.url, self.name = final, url, final.name.removeprefix(".")
        self.path = final.with_name(f".{self.name}.part")
        self.notes = self.path.with_name(f"{self.path.name}.json")
        notes = {}
        with contextlib.suppress(UserError):
            notes = read_json(self.notes, "")
        self.validator: str | None = notes.get("validator")
        if notes.get("url") != url:
            self.forget()

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def error(self, reason: str) -> DownloadError:
        return DownloadError(f"{self.name}: {self.url}: {reason}")

    def forget(self) -> None:
        """Remove what came."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.validator = None


def fetch(
    url: str,
    path: Path,
    expected: Expected,
    timeout: float,
    check: Callable[[Path], None] = lambda path: None,
) -> str:
    """Download ``url`` to ``path`` and return its SHA-256. The caller holds ``path``'s lock.

    Where no hash is known, ``check`` opens the whole file, before it gets its name, and raises
    ``UserError`` for another kind of file. A transfer that is cut, or stalls for ``timeout``
    seconds, resumes where it stopped, in this call or a later one, if the server can and its file
    is still the same; otherwise from the start. Raises ``DownloadError`` when the server cannot be
    reached, gives up, or sends something else (which is removed), and for a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(path, url)
    if partial.length:
        print(f"{path.name}: resumes after {partial.length:,} bytes", flush=True)
    left, best = ATTEMPTS, partial.length
    while reason := _attempt(partial, expected, timeout):
        left = ATTEMPTS if partial.length > best else left - 1
        best = max(best, partial.length)
        if not left:
            gave_up = f"gave up after {ATTEMPTS} attempts. The same command resumes here"
            raise partial.error(f"{reason}; {gave_up}")
        print(f"{partial.name}: {reason}; trying again", flush=True)
        time.sleep(PAUSE * 2 ** max(0, ATTEMPTS - left - 1))
    digest = sha256(partial.path)
    try:
        if expected.sha256 is None:
            check(partial.path)
        elif digest != expected.sha256:
            said = f"{expected.source} says {expected.sha256}"
            raise UserError(f"has sha256 {digest}, but {said}")
    except UserError as error:
        partial.forget()
        reason = str(error).removeprefix(f"{partial.path}: ")
        raise partial.error(f"{reason}; what came is removed") from None
    partial.notes.unlink()  # after the other, a kill between would leave them
    partial.path.replace(path)
    return digest


def _attempt(partial: _Partial, expected: Expected, timeout: float) -> str | None:
    """Ask for the file, or for the rest of it, and append what comes. Returns None for a whole
    file, or why another attempt may help.
    """
    target = partial.final.with_name(partial.name)
    by_hand = f"get it elsewhere, put it at {target} and run this again"
    headers = {"User-Agent": "SpeechPrompt", "Accept-Encoding": "identity"}
    if not (partial.validator or expected.sha256):
        partial.forget()  # nothing would show that the rest belongs to another version
    if partial.length:
        headers["Range"] = f"bytes={partial.length}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    try:
        request = http.Request(partial.url, headers=headers)
        with http.urlopen(request, timeout=timeout) as response:
            total = _check_head(response, partial, expected)
            return _receive(response, partial, total)
    except HTTPError as error:
        error.close()
        said = f"the server answers {error.code} {error.reason}"
        if error.code == 416:
            partial.forget()
        if error.code in _PASSING:
            return said
        raise partial.error(f"{said}; {by_hand}") from None
    except URLError as error:
        said = f"no connection ({error.reason})"
        if partial.length:
            return said
        raise partial.error(f"{said}; check the network, or {by_hand}") from None
    except DownloadError:
        raise
    except ValueError as error:  # an address in brackets that is none
        raise partial.error(f"no address ({error})") from None
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        return f"cut after {partial.length:,} bytes ({reason})"


def _check_head(response: HTTPResponse, partial: _Partial, expected: Expected) -> int | None:
    """Decide by the answer's head whether the body is what was asked for; returns the length of the
    whole file, None where the server does not know it.
    """
    head = response.headers
    encoding = head.get("Content-Encoding", "identity")
    allowed = ("https:",) if partial.url.startswith("https:") else ("https:", "http:")
    if not response.url.startswith(allowed):
        raise partial.error(f"redirected to {response.url}, which is not allowed")
    if head.get_content_type() == "text/html":
        raise partial.error("gives a web page (a proxy's log-in?), no file")
    # some servers call an archive's own gzip an encoding
    if encoding != "identity" and not partial.name.endswith(".tgz"):
        raise partial.error(f"comes in the encoding {encoding}, which was not asked for")
    etag = head.get("ETag", "")
    validator = etag if etag.startswith('"') else head.get("Last-Modified")
    total, is_rest = response.length or expected.size, response.status == 206
    if is_rest:
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", head.get("Content-Range", ""))
        start, total = map(int, part.groups()) if part else (-1, -1)
        fits = start == partial.length and response.length in (None, total - start)
        if not (fits and validator in (None, partial.validator)):
            partial.forget()
            raise HTTPException("the server's part does not fit what is here: from the start")
    if response.length == 0:
        raise partial.error("is empty")
    if total is None and not (response.chunked or expected.sha256):
        raise partial.error("does not say how long it is: nothing to check")
    if None not in (total, expected.size) and total != expected.size:
        partial.forget()
        said = f"{expected.source} says {expected.size:,}"
        raise partial.error(f"has {total:,} bytes, but {said}")
    if not is_rest:
        partial.forget()
        partial.validator = validator
        write_json(partial.notes, {"url": partial.url, "validator": validator})
    return total


def _receive(response: HTTPResponse, partial: _Partial, total: int | None) -> str | None:
    """Append the answer's body; returns as ``_attempt`` does."""
    begin = partial.length
    bar = progress_bar(total=total, initial=begin, desc=partial.name, unit="B", unit_scale=True)
    with bar, open(partial.path, "ab", buffering=0) as handle:
        while piece := response.read1(_PIECE):
            bar.update(len(piece))
            try:
                while piece:  # a nearly full disk takes a part
                    piece = piece[handle.write(piece) :]
            except OSError as error:
                raise partial.error(
                    f"{error.strerror} after {partial.length:,} bytes, which are kept in "
                    f"{partial.path}; make room and run the same command again"
                ) from None
        os.fsync(handle.fileno())
    if partial.length and total in (None, partial.length):
        return None
    return f"cut after {partial.length:,} of {total or 0:,} bytes"
