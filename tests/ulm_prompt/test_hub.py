"""Prompts by ``hf:USER/NAME``: pushed to a mock Hub, then loaded from the Hub and the cache."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.reliability.hostile import refused
from tests.ulm_prompt.spoken import export
from ulm_prompt.prompt_data.prompt_record import PromptRecord, read_record
from ulm_prompt.using import find_prompts
from ulm_prompt.using.find_prompts import find_prompt
from ulm_prompt.using.predictor import Predictor
from ulm_prompt.using.share import front_matter

NAME = "somebody/commands"
TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """A mock Hub in memory. ``commits``: repository -> list of (commit, files)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.metadata = ""  # the YAML that a client sent last for a check
        self.address = f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = dict(self.commits.get(name, []))
        sha = list(commits)[-1] if commits and revision == "main" else revision
        return (sha, commits[sha]) if sha in commits else None


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
            sha, files = self.server.files(name, revision) or ("", {})
            if file in files:
                etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
                return self.answer(files[file], ETag=etag, X_Repo_Commit=sha)
            return self.answer({}, 404, X_Error_Code="EntryNotFound")
        pattern = r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?"
        name, kind, revision = re.fullmatch(pattern, path).groups()
        if (commit := self.server.files(name, revision or "main")) is None:
            code = "RevisionNotFound" if self.server.commits.get(name) else "RepoNotFound"
            return self.answer({"error": code}, 404, X_Error_Code=code)
        sha, files = commit
        facts = {"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files]}
        tree = [{"type": "file", "path": file, "size": len(content), "oid": sha}
                for file, content in files.items()]  # fmt: skip
        return self.answer(tree if kind == "tree" else facts)

    do_HEAD = do_GET


def forget_huggingface_hub() -> None:
    """Remove the module: it reads the environment only when it is imported."""
    for module in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[module]
    find_prompts._downloaded.cache_clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in (("ENDPOINT", server.address), ("HOME", str(tmp_path / "hf")),
                            ("TOKEN", TOKEN), ("HUB_DISABLE_XET", "1"),
                            ("HUB_DISABLE_PROGRESS_BARS", "1")):  # fmt: skip
            monkeypatch.setenv(f"HF_{name}", value)
        forget_huggingface_hub()
        yield server
        server.shutdown()
    forget_huggingface_hub()


def test_a_pushed_prompt_is_found_and_answers(
    hub: Hub, spoken_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    printed = export(spoken_workspace, out, "--license", "CC-BY-4.0", "--push", NAME, task="KS")
    ((commit, files),) = hub.commits[NAME]
    assert f"pushed to hf:{NAME}, commit {commit}" in printed
    assert f"predict.py --prompt hf:{NAME} FILES" in printed
    assert files == {path.name: path.read_bytes() for path in out.iterdir()} and len(files) == 3
    assert f"--prompt hf:{NAME} clip.wav".encode() in files["README.md"]
    assert "license: cc-by-4.0" in hub.metadata and hub.address.encode() not in files["README.md"]

    hub.commits[NAME].append(
        ("0" * 40, {**files, "run_me.py": b"1 / 0", "checkpoint_best.pt": b""})
    )
    clips = sorted((spoken_workspace.root / "corpora").rglob("*.wav"))[:3]
    expected = Predictor.load([out], spoken_workspace.root)(clips)
    newest = Predictor.load([f"hf:{NAME}"], spoken_workspace.root)
    assert newest(clips) == expected
    folder = find_prompt(f"hf:{NAME}", spoken_workspace).parent
    assert folder.name == "0" * 40 and {path.name for path in folder.iterdir()} == set(files)
    pinned = f"hf:{NAME}@{commit}"
    assert find_prompt(pinned, spoken_workspace).parent.name == commit

    hub.shutdown()
    hub.server_close()  # from here on only the cache exists
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_huggingface_hub()
    assert find_prompt(f"hf:{NAME}", spoken_workspace).parent == folder
    message = refused(lambda: find_prompt("hf:somebody/else", spoken_workspace))
    assert message.startswith("--prompt hf:somebody/else: not in the cache, and the Hub cannot be")


def test_an_error_is_one_line(
    hub: Hub, spoken_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("hf:", "hf:name", "hf:a/b/c", "hf:../x", "hf:a b/c"):
        message = refused(lambda word=word: find_prompt(word, spoken_workspace))
        expected = "expected USER/NAME, with only letters, digits, _ . and -"
        assert message == f"--prompt {word}: {expected}"
    export(spoken_workspace, tmp_path / "out", "--push", NAME, task="KS")
    for word in ("hf:somebody/else", f"hf:{NAME}@{'9' * 40}"):
        message = refused(lambda word=word: find_prompt(word, spoken_workspace))
        assert f"--prompt {word}: no such repository or revision, or no permission" in message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    forget_huggingface_hub()
    with pytest.raises(UserError, match=r"--push .*out is complete\): no such .* log in \(hf auth"):
        export(spoken_workspace, tmp_path / "out", "--push", NAME, task="KS")
    assert read_record(tmp_path / "out").task == "KS"


def test_without_huggingface_hub(
    spoken_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    remedy = "huggingface_hub is not installed; run python -m pip install huggingface_hub"
    assert refused(lambda: find_prompt("hf:a/b", spoken_workspace)) == f"--prompt hf:a/b: {remedy}"
    with pytest.raises(UserError, match=f"--push a/b: {remedy}"):
        export(spoken_workspace, tmp_path / "out", "--push", "a/b", task="KS")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"license": "Of my own: §1"}, {"license": "other", "license_name": "of-my-own-1"}),
        ({"license": None}, {}),
        ({"labels_per_utterance": 0, "test": {"WER": 34.2}},
         {"pipeline_tag": "automatic-speech-recognition", "metrics": ["wer"]}),
        ({"license": "CC-BY-4.0", "test": {"utterances": 9, "accuracy": 93.54,
                                           "accuracy within labels": 95.0, "invalid answers": 1.0}},
         {"license": "cc-by-4.0", "metrics": ["accuracy"], "library_name": "speechprompt",
          "pipeline_tag": "audio-classification", "datasets": ["corpus"],
          "tags": ["speechprompt", "prompt-tuning", "speech", "hubert100"]}),
    ],
)  # fmt: skip
def test_the_facts_that_the_hub_reads(values: dict, expected: dict) -> None:
    """huggingface_hub can read the facts."""
    cards = pytest.importorskip("huggingface_hub").ModelCard
    known = {"labels_per_utterance": 1, "lm_fingerprint": "", **values}
    text = front_matter(PromptRecord("KS", "hubert100", 3, "freq", {}, **known), "corpus", "mine")
    facts = yaml.safe_load(text.split("---\n")[1])
    assert facts == facts | expected
    assert ("license" in facts) == ("license" in expected)
    assert ("model-index" in facts) == ("test" in values)
    results = cards(text + "# KS\n").data.eval_results or []
    names = ("accuracy", "accuracy within labels", "WER")
    scores = {name: value for name, value in values.get("test", {}).items() if name in names}
    assert {result.metric_name: result.metric_value for result in results} == scores
    assert {result.dataset_split for result in results} <= {"test"}
