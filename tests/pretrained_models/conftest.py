"""A web server on localhost that imitates the faults of servers and networks."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from pretrained_models.fetching import fetch


def kmeans_bytes(number: float) -> bytes:
    """Return a k-means file with two centres."""
    content = io.BytesIO()
    np.savez(content, centres=np.full((2, 3), float(number)))
    return content.getvalue()


def checkpoint_bytes() -> bytes:
    """Return a torch file of slightly more than 240,000 bytes."""
    content = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(240_000, dtype=torch.uint8)}}, content)
    return content.getvalue()


def tgz(files: dict[str, bytes | tuple[bytes, str]], folder: str = "") -> bytes:
    """Return an archive. ``files``: per name, the content, or the member's type and link target."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            if isinstance(content, tuple):
                (member.type, member.linkname), content = content, b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


class Remote(ThreadingHTTPServer):
    """A server of ``files``. ``plan``: faults of the next answers; ``always``: of every answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.plan: list[dict[str, Any]] = []
        self.always: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.go_on.set()
        self.shutdown()
        self.server_close()

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [headers.get("Range") for _, headers in self.requests]


class _Handler(BaseHTTPRequestHandler):
    """Faults: status, location, ranges=False, if_range=False, etag=None, date, promise=+-N (wrong
    Content-Length), shift=N (wrong Content-Range), earlier=N (another part), cut, reset or stall
    after N bytes, chunked, empty, kind (Content-Type), encoding, no_length.
    """

    server: Remote
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        remote = self.server
        remote.requests.append((self.path, dict(self.headers)))
        fault = remote.always | (remote.plan.pop(0) if remote.plan else {})
        content = remote.files.get(self.path)
        status = fault.get("status") or (200 if content is not None else 404)
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if "location" in fault:
                self.send_header("Location", fault["location"])
            self.end_headers()
            return
        etag = fault.get("etag", f'"{hashlib.md5(content).hexdigest()}"')
        content = b"" if fault.get("empty") else content
        start = self._start(fault, etag, len(content))
        if 0 < len(content) <= start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", fault.get("kind", "application/octet-stream"))
        if start:
            shown = start + fault.get("shift", 0)
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        if etag:
            self.send_header("ETag", etag)
        if "encoding" in fault:
            self.send_header("Content-Encoding", fault["encoding"])
        if "date" in fault:
            self.send_header("Last-Modified", fault["date"])
        body = content[start:]
        if fault.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
        elif not fault.get("no_length"):
            self.send_header("Content-Length", str(len(body) + fault.get("promise", 0)))
        self.end_headers()
        self._send(fault, body)

    def _start(self, fault: dict[str, Any], etag: str | None, length: int) -> int:
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not requested or not fault.get("ranges", True):
            return 0
        condition = self.headers.get("If-Range")
        same = condition is None or condition in (etag, fault.get("date"))
        start = int(requested[1]) if same or not fault.get("if_range", True) else 0
        return start - fault.get("earlier", 0)

    def _send(self, fault: dict[str, Any], body: bytes) -> None:
        end = min([fault[name] for name in ("cut", "reset", "stall") if name in fault] or [1 << 60])
        part = body[:end]
        if fault.get("chunked") and part:
            part = b"%x\r\n%s\r\n" % (len(part), part) + (b"" if end < len(body) else b"0\r\n\r\n")
        try:
            self.wfile.write(part)
            self.wfile.flush()
        except OSError:  # the client has left
            pass
        if "stall" in fault:
            self.server.stalled.set()
            self.server.go_on.wait(20)
        if "reset" in fault:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """A server that is reached without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    server = Remote()
    yield server
    server.stop()
