"""A stand-in for the Hugging Face Hub on this machine: repositories of small files, in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """``commits``: repository -> its commits, oldest first, each a name and its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.metadata = ""  # the YAML that a client had checked last
        self.address = f"http://127.0.0.1:{self.server_port}"

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits.get(name, [])
        if revision == "main":
            return commits[-1] if commits else None
        return {sha: (sha, files) for sha, files in commits}.get(revision)


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def absent(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/validate-yaml"):
            self.server.metadata = json.loads(body)["content"]
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            self.server.commits.setdefault(name, [])
            return self.answer({"url": f"{self.server.address}/{name}", "id": name})
        name = re.match(r"/api/models/([^/]+/[^/]+)/", self.path)[1]
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths
            ]})  # fmt: skip
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        sha = hashlib.sha1(body).hexdigest()
        self.server.commits[name].append((sha, files))
        url = f"{self.server.address}/{name}/commit/{sha}"
        return self.answer({"success": True, "commitOid": sha, "commitUrl": url})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            sha, files = self.server.revision(name, revision) or ("", {})
            if file not in files:
                return self.absent("EntryNotFound")
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            return self.answer(files[file], ETag=etag, X_Repo_Commit=sha)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        name, kind, revision = match.groups()
        if not self.server.commits.get(name):
            return self.absent("RepoNotFound")
        found = self.server.revision(name, revision or "main")
        if found is None:
            return self.absent("RevisionNotFound")
        sha, files = found
        if kind == "tree":
            return self.answer([
                {"type": "file", "path": file, "size": len(content), "oid": sha}
                for file, content in files.items()
            ])  # fmt: skip
        siblings = [{"rfilename": file} for file in files]
        return self.answer({"id": name, "sha": sha, "siblings": siblings})

    do_HEAD = do_GET


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers while the block runs."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
