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
        named = {sha: (sha, files) for sha, files in commits}
        return commits[-1] if commits and revision == "main" else named.get(revision)


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**headers, "Content_Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

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
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": file["path"], **plain} for file in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        contents = [line["value"] for line in lines if line["key"] == "file"]
        files = {value["path"]: base64.b64decode(value["content"]) for value in contents}
        sha = hashlib.sha1(body).hexdigest()
        self.server.commits[name].append((sha, files))
        url = f"{self.server.address}/{name}/commit/{sha}"
        return self.answer({"success": True, "commitOid": sha, "commitUrl": url})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            sha, files = self.server.revision(name, revision) or ("", {})
            if file in files:
                etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
                return self.answer(files[file], ETag=etag, X_Repo_Commit=sha)
            return self.answer({}, 404, X_Error_Code="EntryNotFound")
        pattern = r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?"
        name, kind, revision = re.fullmatch(pattern, path).groups()
        if (found := self.server.revision(name, revision or "main")) is None:
            code = "RevisionNotFound" if self.server.commits.get(name) else "RepoNotFound"
            return self.answer({"error": code}, 404, X_Error_Code=code)
        sha, files = found
        facts = {"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files]}
        tree = [{"type": "file", "path": file, "size": len(content), "oid": sha}
                for file, content in files.items()]  # fmt: skip
        return self.answer(tree if kind == "tree" else facts)

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
