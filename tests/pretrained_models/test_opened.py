"""A file whose hash nobody published is opened as its stage does, before it gets its name."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.unit_models import unit_models
from pipeline.workspace import Workspace
from pretrained_models.download import main
from pretrained_models.fetching.fetch import DownloadError
from tests.pretrained_models.conftest import Remote, kmeans_bytes
from tests.pretrained_models.test_download import (
    CENTRES,
    KMEANS,
    LM,
    SCRIPT,
    SPEECH,
    download,
    here,
    mirror,
    own_table,
)

__all__ = ["mirror"]  # a fixture

NO_KMEANS = {
    "an error page": (b"<html>502 Bad Gateway</html>", "a web page"),
    "an error": (b"Access denied", "found something else"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "a part": (CENTRES[:-50], "found something else"),
    "not finite": (kmeans_bytes(np.nan), "not finite"),
}


@pytest.mark.parametrize("what", NO_KMEANS)
def test_what_no_stage_could_read_gets_no_name(mirror: Remote, tmp_path: Path, what: str) -> None:
    """Its status is 200, its content type neutral, and no hash is known."""
    mirror.files[KMEANS], reason = NO_KMEANS[what]
    printed = download(mirror, tmp_path, "logmel50", "--only", "kmeans", code=1)
    assert mirror.url + KMEANS in printed and reason in printed and printed.count("\n") == 1
    assert "; what came is removed" in printed and ".part" not in printed
    assert here(tmp_path) == {}
    mirror.files[KMEANS] = CENTRES
    download(mirror, tmp_path, "logmel50", "--only", "kmeans")
    assert download(mirror, tmp_path, "logmel50", "--verify").count("verified") == 1


def test_what_was_there_or_recorded_is_opened_too(mirror: Remote, tmp_path: Path) -> None:
    path = tmp_path / "pretrained_models" / "logmel50_km.bin"
    path.parent.mkdir()
    path.write_bytes(b"<html>")
    assert "a web page" in download(mirror, tmp_path, "logmel50", "--only", "kmeans", code=2)
    record = {"sha256": hashlib.sha256(b"<html>").hexdigest(), "size": 6}
    path.with_name("downloaded.json").write_text(json.dumps({path.name: record}))
    assert "a web page" in download(mirror, tmp_path, "logmel50", "--verify", code=2)
    assert path.read_bytes() == b"<html>", "a user's file is never removed"


def test_a_checkpoint_without_a_hash_is_opened(mirror: Remote, tmp_path: Path) -> None:
    own_table(tmp_path, f"url: {mirror.url}/mine.pt")
    mirror.files["/mine.pt"] = SPEECH[:-200]
    assert "damaged or not a torch" in download(mirror, tmp_path, "one", code=1)
    assert not list(tmp_path.glob("pretrained_models/*.pt"))


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://[::1:2:3:4:5:6:7:8:9]", "nowhere", "http://"]
)
def test_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    words = [SCRIPT, "logmel50", "--workspace", str(tmp_path), "--base_url", url]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises((UserError, DownloadError), match=r"expected http|no address") as error:
        main()
    assert "\n" not in str(error.value)
    own_table(tmp_path, "url: 'http://[::1/mine.pt'")
    with pytest.raises(UserError, match="expected http"):
        unit_models(Workspace(tmp_path))


def test_encodings_are_refused_and_an_archives_own_is_not(mirror: Remote, tmp_path: Path) -> None:
    """Some servers say of a .tgz that it is encoded by gzip."""
    content = mirror.files[KMEANS]
    mirror.files[KMEANS], mirror.always = gzip.compress(content), {"encoding": "gzip"}
    printed = download(mirror, tmp_path, "logmel50", "--only", "kmeans", code=1)
    assert "comes in the encoding gzip" in printed and printed.count("\n") == 1
    assert here(tmp_path) == {} and not list(tmp_path.glob("pretrained_models/.*"))
    download(mirror, tmp_path, "logmel50", "--only", "lm")
    assert mirror.requests[-1][0] == LM
