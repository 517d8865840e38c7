"""Download one URL to one file: under a temporary name, then check and rename it. Resume a cut."""

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

ATTEMPTS = 6  # in a row without a new byte
PAUSE = 1.0  # seconds before the second attempt; doubles each time
_PIECE = 1 << 18  # bytes
_RETRIED = {408, 416, 429, 500, 502, 503, 504}  # statuses worth another attempt


class DownloadError(OSError):
    """A failure of network, server or disk. The received bytes are kept unless they are wrong."""


class Expected(NamedTuple):
    """The known hash and size of a file, and the source of this knowledge."""

    sha256: str | None = None
    size: int | None = None
    source: str = "registry.yaml"


class _Partial:
    """The received beginning of a file, ``.NAME.part``, and the server's mark of the version."""

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
        """Remove the received bytes and the mark."""
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
    """Download ``url`` to ``path`` and return the SHA-256. The caller holds the lock of ``path``.

    If no hash is known, ``check`` reads the file before it is renamed, and raises ``UserError``
    for another kind of file. A transfer that is cut, or stalls for ``timeout`` seconds, resumes in
    this call or a later one. It starts from the beginning if the server cannot resume or has
    another version. Raises ``DownloadError`` if the server cannot be reached, all attempts fail,
    the content is wrong (and removed), or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(path, url)
    if partial.length:
        print(f"{path.name}: resumes after {partial.length:,} bytes", flush=True)
    attempts_left, longest = ATTEMPTS, partial.length
    while reason := _attempt(partial, expected, timeout):
        attempts_left = ATTEMPTS if partial.length > longest else attempts_left - 1
        longest = max(longest, partial.length)
        if not attempts_left:
            remedy = "run the same command again to resume"
            raise partial.error(f"{reason}; gave up after {ATTEMPTS} attempts; {remedy}")
        print(f"{partial.name}: {reason}; trying again", flush=True)
        time.sleep(PAUSE * 2 ** max(0, ATTEMPTS - attempts_left - 1))
    digest = sha256(partial.path)
    try:
        if expected.sha256 is None:
            check(partial.path)
        elif digest != expected.sha256:
            raise UserError(f"has sha256 {digest}, but {expected.source} says {expected.sha256}")
    except UserError as error:
        partial.forget()
        reason = str(error).removeprefix(f"{partial.path}: ")
        raise partial.error(f"{reason}; removed what was received") from None
    partial.notes.unlink()  # first: if the process is killed now, no notes stay behind
    partial.path.replace(path)
    return digest


def _attempt(partial: _Partial, expected: Expected, timeout: float) -> str | None:
    """Request the file or the missing rest, and append the response. Returns None if the file is
    complete, else the reason for another attempt.
    """
    target = partial.final.with_name(partial.name)
    by_hand = f"get it elsewhere, put it at {target} and run this again"
    headers = {"User-Agent": "SpeechPrompt", "Accept-Encoding": "identity"}
    if not (partial.validator or expected.sha256):
        partial.forget()  # a rest that belongs to another version would go unnoticed
    if partial.length:
        headers["Range"] = f"bytes={partial.length}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    try:
        request = http.Request(partial.url, headers=headers)
        with http.urlopen(request, timeout=timeout) as response:
            total = _check_headers(response, partial, expected)
            return _receive(response, partial, total)
    except HTTPError as error:
        error.close()
        reason = f"the server answers {error.code} {error.reason}"
        if error.code == 416:
            partial.forget()
        if error.code in _RETRIED:
            return reason
        raise partial.error(f"{reason}; {by_hand}") from None
    except URLError as error:
        reason = f"no connection ({error.reason})"
        if partial.length:
            return reason
        raise partial.error(f"{reason}; check the network, or {by_hand}") from None
    except ValueError as error:  # a bad IP address in brackets
        raise partial.error(f"not a valid address ({error})") from None
    except (OSError, HTTPException) as error:
        if isinstance(error, DownloadError) or getattr(error, "filename", None):  # a local file's
            raise
        reason = str(error) or type(error).__name__
        return f"cut after {partial.length:,} bytes ({reason})"


def _check_headers(response: HTTPResponse, partial: _Partial, expected: Expected) -> int | None:
    """Check from the response headers that the body is what was requested. Returns the length of
    the complete file, or None if the server does not send a length.
    """
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity")
    allowed = ("https:",) if partial.url.startswith("https:") else ("https:", "http:")
    if not response.url.startswith(allowed):
        raise partial.error(f"redirected to {response.url}, which is not allowed")
    if headers.get_content_type() == "text/html":
        raise partial.error("expected a file, found a web page (a proxy's login page?)")
    # some servers report the gzip compression of an archive as an encoding
    if encoding != "identity" and not partial.name.endswith(".tgz"):
        raise partial.error(f"expected no encoding, found {encoding}")
    etag = headers.get("ETag", "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    total, is_rest = response.length or expected.size, response.status == 206
    if is_rest:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        start, total = map(int, match.groups()) if match else (-1, -1)
        fits = start == partial.length and response.length in (None, total - start)
        if not (fits and validator in (None, partial.validator)):
            partial.forget()
            raise HTTPException("the server sent another part; starting from the beginning")
    if response.length == 0:
        raise partial.error("is empty")
    if total is None and not (response.chunked or expected.sha256):
        raise partial.error("the server does not say how long the file is: cannot check it")
    if None not in (total, expected.size) and total != expected.size:
        partial.forget()
        raise partial.error(f"has {total:,} bytes, but {expected.source} says {expected.size:,}")
    if not is_rest:
        partial.forget()
        partial.validator = validator
        write_json(partial.notes, {"url": partial.url, "validator": validator})
    return total


def _receive(response: HTTPResponse, partial: _Partial, total: int | None) -> str | None:
    """Append the body of the response to the file. Returns as ``_attempt`` does."""
    begin = partial.length
    bar = progress_bar(total=total, initial=begin, desc=partial.name, unit="B", unit_scale=True)
    with bar, open(partial.path, "ab", buffering=0) as handle:
        while piece := response.read1(_PIECE):
            bar.update(len(piece))
            try:
                while piece:  # on a nearly full disk, write() may store only a part
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
