"""One URL into one file: resumed where it was cut, checked before it gets its name."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Iterator
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib import request as http
from urllib.error import HTTPError, URLError

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.files import sha256, write_json

# A file that is still coming, and what is known of its whole.


class Partial:
    """The beginning of a file, ``.NAME.part``, and beside it what the server said of the whole."""

    def __init__(self, final: Path, url: str, handle: BinaryIO) -> None:
        self.final = final
        self.path = Path(handle.name)
        self.url = url
        self.handle = handle
        self.resumed = False
        self._notes = self.path.with_name(f"{self.path.name}.json")
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            self.validator, self.total = notes["validator"], notes["total"]
            known = notes["url"] == url
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            self.discard()

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: Path, url: str) -> Iterator[Partial]:
        """The partial file of ``path``, held against other processes."""
        part = path.with_name(f".{path.name.removeprefix('.')}.part")
        with open(part, "ab", buffering=0) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(handle.fileno()), part.stat()):
                    raise FileNotFoundError  # the other process has just finished and renamed it
            except (BlockingIOError, FileNotFoundError):
                raise UserError(f"{path}: another process is downloading it; wait for it") from None
            try:
                yield cls(path, url, handle)
            finally:
                if part.exists() and not part.stat().st_size:  # nothing came: leave no trace
                    part.with_name(f"{part.name}.json").unlink(missing_ok=True)
                    part.unlink()

    @property
    def name(self) -> str:
        return self.final.name.removeprefix(".")

    @property
    def length(self) -> int:
        return os.fstat(self.handle.fileno()).st_size

    def discard(self) -> None:
        """Forget what came so far."""
        self.start(None, None)

    def start(self, validator: str | None, total: int | None) -> None:
        """Begin the file anew; ``validator`` is the server's mark of this version of it."""
        self.handle.truncate(0)
        self.resumed = False
        self.validator, self.total = validator, total
        write_json(self._notes, {"url": self.url, "validator": validator, "total": total})

    def publish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self.handle.fileno())
        self._notes.unlink(missing_ok=True)  # after the other, a kill between would leave them
        self.path.replace(self.final)


ATTEMPTS = 6  # in a row without a byte gained
PAUSE = 1.0  # seconds before the second attempt; doubles each time
_PIECE = 1 << 18
_PASSING = {408, 429, 500, 502, 503, 504}  # statuses worth another attempt


class DownloadError(OSError):
    """The network, the server or the disk failed; what came so far is kept unless it is wrong."""


class Expected(NamedTuple):
    """What the file must be, as far as it is known, and who says so."""

    sha256: str | None = None
    size: int | None = None
    source: str = "registry.yaml"


class _Interrupted(Exception):
    """This attempt came to nothing, or not to the end; another may."""


def fetch(url: str, path: Path, expected: Expected, timeout: float) -> str:
    """Download ``url`` to ``path`` and return its SHA-256.

    A transfer that is cut, or stalls for ``timeout`` seconds, goes on where it stopped, in this
    call or a later one, if the server can and the file there is still the same; otherwise from the
    start. Raises ``DownloadError`` when the server cannot be reached, gives up, or sends something
    else than ``expected`` (which is removed), and for a full disk; ``UserError`` while another
    process downloads the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with Partial.locked(path, url) as partial:
        if partial.length:
            print(f"{path.name}: goes on after {partial.length:,} bytes", flush=True)
        _complete(partial, expected, timeout)
        found = sha256(partial.path)
        if partial.resumed and expected.sha256 not in (None, found):
            print(f"{path.name}: its parts are of different files; from the start", flush=True)
            partial.discard()
            _complete(partial, expected, timeout)
            found = sha256(partial.path)
        if expected.sha256 not in (None, found):
            partial.discard()
            raise DownloadError(
                f"{path.name}: {url} has sha256 {found}, but {expected.source} says "
                f"{expected.sha256}; what came is removed"
            )
        partial.publish()
    return found


def _complete(partial: Partial, expected: Expected, timeout: float) -> None:
    """Repeat attempts until the partial file is as long as it should be."""
    left, best, reached = ATTEMPTS, partial.length, False
    while partial.total is None or partial.length != partial.total:
        try:
            with _answer(partial, expected, timeout, reached) as response:
                reached = True
                _receive(response, partial, expected)
        except _Interrupted as reason:
            reached = True
            left = ATTEMPTS if partial.length > best else left - 1
            best = max(best, partial.length)
            if not left:
                raise DownloadError(
                    f"{partial.name}: {partial.url}: {reason}; gave up after {ATTEMPTS} attempts. "
                    "The same command goes on from here"
                ) from None
            print(f"{partial.name}: {reason}; trying again", flush=True)
            time.sleep(PAUSE * 2 ** max(0, ATTEMPTS - left - 1))


def _answer(partial: Partial, expected: Expected, timeout: float, reached: bool) -> HTTPResponse:
    """Ask for the file, or for the rest of it, and return the answer once its head is in."""
    headers = {"User-Agent": "SpeechPrompt", "Accept-Encoding": "identity"}
    if partial.length and not (partial.validator or expected.sha256):
        partial.discard()  # nothing would show that the rest belongs to another version
    if partial.length:
        headers["Range"] = f"bytes={partial.length}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    try:
        return _opener().open(http.Request(partial.url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            partial.discard()
        elif error.code not in _PASSING:
            raise DownloadError(
                f"{partial.name}: {partial.url}: the server answers {error.code} {error.reason}; "
                f"{_by_hand(partial)}"
            ) from None
        raise _Interrupted(f"the server answers {error.code} {error.reason}") from None
    except URLError as error:
        cause = error.reason
        if not reached or isinstance(cause, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{partial.name}: no connection to {partial.url} ({cause}); check the network, or "
                f"{_by_hand(partial)}"
            ) from None
        raise _Interrupted(f"no connection ({cause})") from None
    except (OSError, HTTPException) as error:
        raise _Interrupted(f"no answer ({str(error) or type(error).__name__})") from None


def _by_hand(partial: Partial) -> str:
    return f"get it elsewhere, put it at {partial.final.with_name(partial.name)} and run this again"


def _receive(response: HTTPResponse, partial: Partial, expected: Expected) -> None:
    """Append the answer's body to the partial file, holding it to the length it promised."""
    end = _begin(response, partial)
    if end is None and expected.size:
        end = partial.total = expected.size
    if None not in (partial.total, expected.size) and partial.total != expected.size:
        offered = partial.total
        partial.discard()
        raise DownloadError(
            f"{partial.name}: {partial.url} has {offered:,} bytes, "
            f"but {expected.source} says {expected.size:,}"
        )
    if end == 0:
        raise DownloadError(f"{partial.name}: {partial.url} is empty")
    if end is None and not (response.chunked or expected.sha256):
        raise DownloadError(
            f"{partial.name}: {partial.url} does not say how long it is: nothing to check"
        )
    _check_room(partial, end)
    response.length = None  # counted here: a byte more than promised is asked for, to see a lie
    bar = tqdm(
        total=end,
        initial=partial.length,
        desc=partial.name,
        unit="B",
        unit_scale=True,
        disable=None,
    )
    with bar:
        position = partial.length
        while piece := _read(response, position, end):
            position += len(piece)
            if end is not None and position > end:
                partial.discard()
                raise DownloadError(
                    f"{partial.name}: {partial.url} sends more than the {end:,} bytes that it "
                    "promised; what came is removed"
                )
            _append(partial, piece)
            bar.update(len(piece))
    if end is not None and position < end:
        raise _Interrupted(f"cut after {position:,} of {end:,} bytes")
    if not position:
        raise _Interrupted("nothing came")
    if partial.total is None:
        partial.total = position


def _begin(response: HTTPResponse, partial: Partial) -> int | None:
    """Read the answer's head; return where in the file its body ends, None where it is not said."""
    if response.headers.get_content_type() == "text/html":
        raise DownloadError(
            f"{partial.name}: {partial.url} gives a web page (a proxy's log-in?), no file"
        )
    if response.status == 200:
        partial.start(_validator(response), response.length)
        return response.length
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    start, last = (int(found[1]), int(found[2])) if found else (-1, -1)
    total = int(found[3]) if found and found[3] != "*" else partial.total
    same = (
        response.status == 206
        and partial.length > 0
        and start == partial.length <= last < (total or 0)
        and total == partial.total
        and response.length in (None, last + 1 - start)
        and _validator(response) in (None, partial.validator)
    )
    if not same:
        partial.discard()
        raise _Interrupted("the server's part does not fit what is here: from the start")
    partial.resumed = True
    return last + 1


def _validator(response: HTTPResponse) -> str | None:
    """What If-Range may be given: a strong ETag, or the date."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _read(response: HTTPResponse, position: int, end: int | None) -> bytes:
    try:
        return response.read1(_PIECE if end is None else min(_PIECE, end + 1 - position))
    except (OSError, HTTPException) as error:
        if position == end:  # all is here; the server only keeps the connection open
            return b""
        raise _Interrupted(
            f"cut after {position:,} bytes ({str(error) or type(error).__name__})"
        ) from None


def _append(partial: Partial, piece: bytes) -> None:
    try:
        written = 0
        while written < len(piece):  # unbuffered: a nearly full disk takes a part
            written += partial.handle.write(piece[written:])
    except OSError as error:
        raise DownloadError(
            f"{partial.name}: {error.strerror} after {partial.length:,} bytes, which are kept in "
            f"{partial.path}; make room and run the same command again"
        ) from None


def _check_room(partial: Partial, end: int | None) -> None:
    missing = (end or 0) - partial.length
    free = shutil.disk_usage(partial.path.parent).free
    if missing > free:
        raise DownloadError(
            f"{partial.name}: {missing:,} bytes to come, {free:,} free in {partial.path.parent}; "
            "make room"
        )


class _Redirects(http.HTTPRedirectHandler):
    """Never from https down to http."""

    def redirect_request(
        self, req: http.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> http.Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> http.OpenerDirector:
    """http and https, proxies, redirects; no ftp:, file: or data:, wherever a redirect leads."""
    opener = http.OpenerDirector()
    for handler in (
        http.ProxyHandler(),
        http.HTTPHandler(),
        http.HTTPSHandler(),
        http.HTTPDefaultErrorHandler(),
        http.HTTPErrorProcessor(),
        http.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener
