"""One URL to one file, over a network with cuts, stalls and wrong answers."""

from __future__ import annotations

import contextlib
import hashlib
import random
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrained_models.fetching import fetch as module
from pretrained_models.fetching.fetch import DownloadError, Expected, fetch
from tests.pretrained_models.conftest import Remote

CONTENT = random.Random(1).randbytes(600_000)
OTHER = random.Random(2).randbytes(600_000)  # the same length, other bytes
HASH = hashlib.sha256(CONTENT).hexdigest()
UNKNOWN, KNOWN = Expected(), Expected(HASH)
DATE = "Sat, 01 Jan 2022 00:00:00 GMT"


@pytest.fixture
def get(remote: Remote, tmp_path: Path):
    """A function that downloads /model.pt and returns the content."""
    remote.files["/model.pt"] = CONTENT

    def call(expected: Expected = UNKNOWN, timeout: float = 5.0) -> bytes:
        digest = fetch(f"{remote.url}/model.pt", tmp_path / "model.pt", expected, timeout)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]
        content = (tmp_path / "model.pt").read_bytes()
        assert digest == hashlib.sha256(content).hexdigest()
        return content

    return call


@pytest.mark.parametrize(
    ("always", "plan", "expected", "ranges"),
    [
        ({}, [{"cut": 200_000}], UNKNOWN, [None, "bytes=200000-"]),
        ({}, [{"stall": 200_000}], UNKNOWN, [None, "bytes=200000-"]),
        ({"chunked": True}, [{"cut": 200_000}], UNKNOWN, [None, "bytes=200000-"]),
        ({"etag": None, "date": DATE}, [{"cut": 200_000}], UNKNOWN, [None, "bytes=200000-"]),
        ({"ranges": False}, [{"cut": 200_000}], UNKNOWN, [None, "bytes=200000-"]),
        # without a hash or a mark of the version, a mix of two versions would go unnoticed
        ({"etag": None}, [{"cut": 200_000}], UNKNOWN, [None, None]),
        ({"etag": 'W/"weak"'}, [{"cut": 200_000}], UNKNOWN, [None, None]),
        ({"etag": None}, [{"cut": 200_000}], KNOWN, [None, "bytes=200000-"]),
        # the server sends another part than requested
        ({}, [{"cut": 200_000}, {"shift": -10}], UNKNOWN, [None, "bytes=200000-", None]),
        ({}, [{"cut": 200_000}, {"earlier": 10}], UNKNOWN, [None, "bytes=200000-", None]),
        ({}, [{"status": 500}, {"status": 429}, {"status": 416}], UNKNOWN, [None] * 4),
        ({}, [{"cut": 0}, {"reset": 0}, {"reset": 9}], UNKNOWN, [None, None, None, "bytes=9-"]),
        ({}, [{"cut": 9}, {"status": 416}], UNKNOWN, [None, "bytes=9-", None]),
        ({}, [{"status": 302, "location": "/model.pt"}], UNKNOWN, [None] * 2),
    ],
)
def test_a_transfer_resumes_if_it_can(
    remote: Remote, get, always: dict, plan: list[dict], expected: Expected, ranges: list
) -> None:
    remote.always, remote.plan = always, plan
    assert get(expected, timeout=0.5) == CONTENT
    assert remote.ranges() == ranges
    for _, headers in remote.requests:
        assert expected.sha256 or ("Range" in headers) == ("If-Range" in headers)


def test_a_later_call_resumes_only_the_same_url(
    remote: Remote, get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers may send the same ETag for different files."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    remote.files["/other.pt"] = OTHER
    remote.always = {"etag": '"1"'}
    for address in ("other.pt", "model.pt"):
        remote.plan = [{"cut": 200_000}, {"status": 503}]
        with pytest.raises(DownloadError, match="again to resume"):
            fetch(f"{remote.url}/{address}", tmp_path / "model.pt", UNKNOWN, 5.0)
    assert not (tmp_path / "model.pt").exists()
    assert get() == CONTENT
    assert remote.ranges() == [None, "bytes=200000-"] * 2 + ["bytes=200000-"]


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changes_between_attempts_is_never_mixed(
    remote: Remote, get, monkeypatch: pytest.MonkeyPatch, honours_if_range: bool
) -> None:
    def change(pause: float) -> None:
        remote.files["/model.pt"] = OTHER

    monkeypatch.setattr(module.time, "sleep", change)
    remote.always = {"if_range": honours_if_range}
    remote.plan = [{"cut": 200_000}]
    assert get() == OTHER


def test_a_part_without_readable_notes_is_not_trusted(get, tmp_path: Path) -> None:
    for notes in ("", '{"url": 3}'):
        (tmp_path / ".model.pt.part").write_bytes(OTHER[:1000])
        (tmp_path / ".model.pt.part.json").write_text(notes)
        assert get() == CONTENT


def test_never_from_https_to_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib alone would follow the redirect."""
    answer = SimpleNamespace(url="http://example.org/b", headers={}, status=200, close=print)
    monkeypatch.setattr(module.http, "urlopen", lambda *_, **__: contextlib.closing(answer))
    with pytest.raises(DownloadError, match="redirected to http://example.org/b, which is not"):
        fetch("https://example.org/a", tmp_path / "model.pt", KNOWN, 5.0)


@pytest.mark.parametrize(
    "always, expected, message",
    [
        ({"promise": 1000}, UNKNOWN, r"gave up after 6 attempts"),
        ({"empty": True}, UNKNOWN, r"is empty"),
        ({"kind": "text/html; charset=utf-8"}, UNKNOWN, r"web page"),
        ({"no_length": True}, UNKNOWN, r"does not say how long"),
        ({}, Expected(size=599_999), r"has 600,000 bytes, .* says 599,999"),
        ({}, Expected(hashlib.sha256(OTHER).hexdigest()), rf"has sha256 {HASH}, .* removed"),
        ({"status": 404}, UNKNOWN, r"answers 404 .* put it at \S+/model.pt"),
        ({"status": 503}, UNKNOWN, r"503 .*gave up after 6 attempts"),
        ({"status": 302, "location": "file:///etc/passwd"}, UNKNOWN, r"not allowed"),
    ],
)
def test_a_wrong_answer_leaves_no_file(
    remote: Remote, get, tmp_path: Path, always: dict, expected: Expected, message: str
) -> None:
    remote.always = always
    with pytest.raises(DownloadError, match=message) as error:
        get(expected)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.pt").exists()
    if always != {"promise": 1000}:  # the hidden part stays, to be resumed
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [250_000, 10])  # the part does not fit, or already its notes
def test_a_full_disk_keeps_what_was_received(
    remote: Remote, get, tmp_path: Path, room: int
) -> None:
    """A limit on file sizes simulates a full disk: it too fails in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError) as error:
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if room == 10:
        assert error.value.filename == str(tmp_path / ".model.pt.part.json")
    else:
        assert "after 250,000 bytes, which are kept" in str(error.value)
        assert "make room" in str(error.value)
    assert get() == CONTENT
    assert remote.ranges() == [None, "bytes=250000-" if room > 10 else None]
