"""One URL into one file, over a network that cuts, stalls, changes its mind and lies."""

from __future__ import annotations

import hashlib
import random
import resource
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from urllib.request import Request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrained_models.fetching import fetch as module
from pretrained_models.fetching.fetch import DownloadError, Expected, fetch
from tests.pretrained_models.remote import Remote

CONTENT = random.Random(1).randbytes(600_000)
OTHER = random.Random(2).randbytes(600_000)  # the same length: only its bytes tell
HASH = hashlib.sha256(CONTENT).hexdigest()
UNKNOWN, KNOWN = Expected(), Expected(HASH)


@pytest.fixture
def get(remote: Remote, tmp_path: Path):
    """Fetch /model.pt; returns what it has become here."""
    remote.files["/model.pt"] = CONTENT

    def call(expected: Expected = UNKNOWN, timeout: float = 5.0) -> bytes:
        digest = fetch(f"{remote.url}/model.pt", tmp_path / "model.pt", expected, timeout)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]
        found = (tmp_path / "model.pt").read_bytes()
        assert digest == hashlib.sha256(found).hexdigest()
        return found

    return call


def test_a_cut_or_reset_transfer_goes_on_where_it_stopped(remote: Remote, get) -> None:
    remote.plan = [{"cut": 200_000}, {"reset": 100_000}]
    assert get() == CONTENT
    assert remote.ranges()[:2] == [None, "bytes=200000-"]
    assert all(headers.get("If-Range") for _, headers in remote.requests[1:])


def test_a_stall_is_a_cut(remote: Remote, get) -> None:
    remote.plan = [{"stall": 200_000}]
    assert get(timeout=0.3) == CONTENT
    assert remote.ranges() == [None, "bytes=200000-"]


def test_a_later_call_goes_on_too(
    remote: Remote, get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    remote.always = {"status": 503}
    remote.plan = [{"status": 200, "cut": 200_000}]
    with pytest.raises(DownloadError, match="resumes here"):
        get()
    assert not (tmp_path / "model.pt").exists()
    remote.always = {}
    assert get() == CONTENT
    assert remote.ranges()[-1] == "bytes=200000-"


def test_what_came_from_another_address_is_not_gone_on_with(
    remote: Remote, get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers may give one ETag to two files."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    remote.files["/other.pt"] = OTHER
    remote.always = {"etag": '"1"'}
    remote.plan = [{"cut": 200_000}, {"status": 503}]
    with pytest.raises(DownloadError):
        fetch(f"{remote.url}/other.pt", tmp_path / "model.pt", UNKNOWN, 5.0)
    assert get() == CONTENT
    assert remote.ranges()[-1] is None


def test_without_ranges_it_starts_again(remote: Remote, get) -> None:
    remote.always = {"ranges": False}
    remote.plan = [{"cut": 200_000}]
    assert get() == CONTENT


@pytest.mark.parametrize("mark", [{"etag": None}, {"etag": 'W/"weak"'}])
def test_a_part_is_resumed_only_where_a_mix_of_two_versions_would_show(
    remote: Remote, get, tmp_path: Path, mark: dict
) -> None:
    remote.always = mark
    remote.plan = [{"cut": 200_000}]
    assert get() == CONTENT
    assert remote.ranges() == [None, None], "neither ETag nor hash: from the start"
    (tmp_path / "model.pt").unlink()
    remote.plan = [{"cut": 200_000}]
    assert get(KNOWN) == CONTENT
    assert remote.ranges()[2:] == [None, "bytes=200000-"]


def test_the_date_serves_where_there_is_no_etag(remote: Remote, get) -> None:
    remote.always = {"etag": None, "date": "Sat, 01 Jan 2022 00:00:00 GMT"}
    remote.plan = [{"cut": 200_000}]
    assert get() == CONTENT
    assert remote.requests[1][1]["If-Range"] == "Sat, 01 Jan 2022 00:00:00 GMT"


@pytest.mark.parametrize("minds_if_range", [True, False])
def test_a_file_that_changes_between_attempts_is_never_mixed(
    remote: Remote, get, monkeypatch: pytest.MonkeyPatch, minds_if_range: bool
) -> None:
    def change(pause: float) -> None:
        remote.files["/model.pt"] = OTHER

    monkeypatch.setattr(module.time, "sleep", change)
    remote.always = {"if_range": minds_if_range}
    remote.plan = [{"cut": 200_000}]
    assert get() == OTHER


def test_two_halves_that_only_the_hash_tells_apart_are_fetched_again(remote: Remote, get) -> None:
    remote.files["/model.pt"] = OTHER
    remote.always = {"etag": None}
    remote.plan = [{"cut": 200_000}]

    class Changing(list):
        def append(self, item: object) -> None:
            super().append(item)
            if len(self) == 2:
                remote.files["/model.pt"] = CONTENT

    remote.requests = Changing()
    assert get(KNOWN) == CONTENT
    assert remote.ranges() == [None, "bytes=200000-", None]


@pytest.mark.parametrize(
    "always, expected, message",
    [
        ({"promise": 1000}, UNKNOWN, r"gave up after 6 attempts"),
        ({"empty": True}, UNKNOWN, r"is empty"),
        ({"kind": "text/html; charset=utf-8"}, UNKNOWN, r"web page"),
        ({"nameless": True}, UNKNOWN, r"does not say how long"),
        ({}, Expected(size=599_999), r"has 600,000 bytes, .* says 599,999"),
        ({}, Expected(hashlib.sha256(OTHER).hexdigest()), rf"has sha256 {HASH}, .* removed"),
        ({"status": 404}, UNKNOWN, r"answers 404 .* put it at \S+/model.pt"),
        ({"status": 503}, UNKNOWN, r"503 .*gave up after 6 attempts"),
        ({"status": 302, "location": "file:///etc/passwd"}, UNKNOWN, r"not allowed"),
        ({"status": 302, "location": "ftp://127.0.0.1/model.pt"}, UNKNOWN, r"not allowed"),
    ],
)
def test_what_is_wrong_leaves_nothing_that_looks_right(
    remote: Remote, get, tmp_path: Path, always: dict, expected: Expected, message: str
) -> None:
    remote.always = always
    with pytest.raises(DownloadError, match=message) as error:
        get(expected)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.pt").exists()
    if always != {"promise": 1000}:  # a cut file stays, hidden, to go on with
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [{"shift": -10}, {"earlier": 10}])
def test_a_part_other_than_the_one_asked_for_is_not_appended(
    remote: Remote, get, fault: dict
) -> None:
    remote.plan = [{"cut": 200_000}, fault]
    assert get() == CONTENT
    assert remote.ranges() == [None, "bytes=200000-", None]


def test_only_passing_troubles_are_tried_again(remote: Remote, get) -> None:
    remote.plan = [{"status": 500}, {"status": 429}]
    assert get() == CONTENT
    remote.requests.clear()
    remote.always = {"status": 404}
    with pytest.raises(DownloadError):
        get()
    assert len(remote.requests) == 1


def test_no_server_at_all_is_said_at_once(tmp_path: Path, remote: Remote) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "pretrained_models" / "model.pt"
    with pytest.raises(DownloadError) as error:
        fetch(f"http://127.0.0.1:{port}/model.pt", path, UNKNOWN, 5.0)
    for part in ("no connection", f"http://127.0.0.1:{port}/model.pt", f"put it at {path}"):
        assert part in str(error.value)
    assert not list(path.parent.iterdir())


def test_redirects_are_followed_but_not_from_https_to_http(remote: Remote, get) -> None:
    remote.plan = [{"status": 302, "location": "/model.pt"}]
    assert get() == CONTENT
    request = Request("https://example.org/model.pt")
    redirect = module._Redirects().redirect_request
    assert redirect(request, None, 302, "", {}, "https://example.org/b").full_url.endswith("/b")
    with pytest.raises(OSError, match="not allowed"):
        redirect(request, None, 302, "", {}, "http://example.org/b")


def test_a_chunked_answer_ends_where_it_says(remote: Remote, get) -> None:
    remote.always = {"chunked": True}
    remote.plan = [{"cut": 200_000}]
    assert get() == CONTENT


def test_a_full_disk_keeps_what_came(remote: Remote, get, tmp_path: Path) -> None:
    """Stands for it: a limit on the size of files, which fails in the middle of a write too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, before[1]))
    try:
        with pytest.raises(DownloadError, match="after 250,000 bytes, which are kept") as error:
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "make room" in str(error.value)
    assert get() == CONTENT
    assert remote.ranges() == [None, "bytes=250000-"]


def test_too_little_room_is_said_before_a_byte_is_written(
    remote: Remote, get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 599_999))
    with pytest.raises(DownloadError, match="600,000 bytes to come, 599,999 free"):
        get()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("notes", ["", "[]", '{"url": 3}', "null", "\x00"])
def test_a_part_without_readable_notes_is_not_trusted(
    remote: Remote, get, tmp_path: Path, notes: str
) -> None:
    (tmp_path / ".model.pt.part").write_bytes(OTHER[:1000])
    (tmp_path / ".model.pt.part.json").write_text(notes)
    assert get() == CONTENT


FAULTS = st.one_of(
    st.fixed_dictionaries({"cut": st.integers(0, 600_000)}),
    st.fixed_dictionaries({"reset": st.integers(0, 600_000)}),
    st.fixed_dictionaries({"cut": st.integers(0, 600_000), "etag": st.sampled_from([None, '"x"'])}),
    st.fixed_dictionaries({"promise": st.integers(0, 5)}),
    st.fixed_dictionaries({"shift": st.integers(-5, 5)}),
    st.fixed_dictionaries({"cut": st.integers(0, 600_000), "chunked": st.just(True)}),
    st.sampled_from([{"status": 503}, {"status": 416}, {"ranges": False}, {"kind": "text/html"}]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(FAULTS, max_size=5))
def test_whatever_the_faults_a_file_that_appears_is_right(
    remote: Remote, tmp_path_factory: pytest.TempPathFactory, plan: list[dict]
) -> None:
    folder = tmp_path_factory.mktemp("faults")
    remote.files["/model.pt"] = CONTENT
    remote.plan = list(plan)
    try:
        fetch(f"{remote.url}/model.pt", folder / "model.pt", UNKNOWN, 5.0)
    except DownloadError:
        assert not (folder / "model.pt").exists()
    else:
        assert (folder / "model.pt").read_bytes() == CONTENT
        assert len(list(folder.iterdir())) == 1
