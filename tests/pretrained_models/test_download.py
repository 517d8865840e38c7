"""The script as a user calls it, with a server on localhost; unpacking the archive of a unit LM."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pipeline.errors import run
from pipeline.files import holding
from pretrained_models.download import main
from tests.conftest import REPOSITORY, stage
from tests.pretrained_models.conftest import Remote, checkpoint_bytes, kmeans_bytes, tgz

SCRIPT = "pretrained_models/download.py"
GSLM = "/textless_nlp/gslm"
KMEANS, LM = f"{GSLM}/logmel/km50/km.bin", f"{GSLM}/logmel/lm_km50/logmel50_lm.tgz"
CENTRES, SPEECH = kmeans_bytes(1), checkpoint_bytes()
LM_FILES = {"checkpoint_best.pt": b"weights" * 9000, "dict.txt": b"0 1\n"}
GOOD_LM = tgz(LM_FILES, "logmel50_lm/")
WHOLE = {"logmel50_km.bin": CENTRES} | {f"logmel50_lm/{n}": c for n, c in LM_FILES.items()}


@pytest.fixture
def mirror(remote: Remote) -> Remote:
    """The server with the files of logmel50 and a speech checkpoint."""
    remote.files = {KMEANS: CENTRES, LM: GOOD_LM, "/mine.pt": SPEECH}
    return remote


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pretrained_models").mkdir()
    return tmp_path / "pretrained_models"


def download(mirror: Remote, workspace: Path, *args: object, code: int = 0) -> str:
    """Run the script in this process: starting a process would take longer than the work."""
    flags = ["--workspace", workspace, "--base_url", mirror.url, "--timeout", 5]
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [SCRIPT, *map(str, [*flags, *args])]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.raises(SystemExit) as end,
    ):
        run(main)
        sys.exit(0)
    assert end.value.code == code, printed.getvalue()
    return printed.getvalue()


def files_in(workspace: Path) -> dict[str, bytes]:
    folder = workspace / "pretrained_models"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "downloaded.json"
    }


def write_user_table(workspace: Path, checkpoint: str) -> None:
    model = "{feature_type: hubert, checkpoint: mine, layer: 6, clusters: 9}"
    (workspace / "pretrained_models" / "my_unit_models.yaml").write_text(
        f"checkpoints: {{mine: {{{checkpoint}}}}}\nunit_models: {{one: {model}, two: {model}}}\n"
    )


def test_a_unit_model_is_downloaded_completely_and_once(mirror: Remote, tmp_path: Path) -> None:
    row = "logmel50     none                             {0:10} {0}"
    printed = download(mirror, tmp_path, "--list")
    assert row.format("missing") in printed and "own: your file; to learn: by" in printed
    assert "next: python preprocess/runner.py" in download(mirror, tmp_path, "logmel50")
    assert files_in(tmp_path) == WHOLE
    assert download(mirror, tmp_path, "logmel50", "logmel50").count("already exists") == 2
    assert len(mirror.requests) == 2, "nothing is requested twice"
    assert row.format("here") in download(mirror, tmp_path, "--list")
    assert download(mirror, tmp_path, "logmel50", "--verify").count("verified") == 2


@pytest.mark.parametrize("name", WHOLE)
def test_verify_finds_a_flipped_bit(mirror: Remote, tmp_path: Path, name: str) -> None:
    download(mirror, tmp_path, "logmel50")
    path = tmp_path / "pretrained_models" / name
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert str(path) in download(mirror, tmp_path, "--verify", "logmel50", code=2)
    path.write_bytes(content[1:])
    assert str(path) in download(mirror, tmp_path, "logmel50", code=2), "by the size alone"
    assert path.exists()


@pytest.mark.parametrize(
    "url, lost", [(KMEANS, "logmel50_km.bin"), (LM, "logmel50_lm")], ids=["kmeans", "lm"]
)
def test_a_later_download_is_checked_against_the_first(
    mirror: Remote, tmp_path: Path, folder: Path, url: str, lost: str
) -> None:
    download(mirror, tmp_path, "logmel50")
    (folder / lost).rename(tmp_path / "lost")
    first = mirror.files[url]
    mirror.files[url] = b"something else of the same size"[: len(first)].ljust(len(first))
    printed = download(mirror, tmp_path, "logmel50", code=1)
    assert "downloaded.json" in printed and hashlib.sha256(first).hexdigest() in printed
    assert not (folder / lost).exists()
    assert not list(folder.glob(".*"))
    mirror.files[url] = first
    download(mirror, tmp_path, "logmel50")
    assert files_in(tmp_path) == WHOLE


def test_a_users_file_is_never_removed(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    (folder / "hubert_base_ls960.pt").write_bytes(b"another HuBERT")
    printed = download(mirror, tmp_path, "hubert50", "--only", "checkpoint", code=2)
    assert "1703cf8d" in printed and "remove" in printed
    (folder / "logmel50_km.bin").write_bytes(kmeans_bytes(2))
    (folder / "logmel50_lm.tgz").write_bytes(GOOD_LM)
    download(mirror, tmp_path, "logmel50")
    assert not mirror.requests
    assert files_in(tmp_path) == WHOLE | {
        "hubert_base_ls960.pt": b"another HuBERT",
        "logmel50_km.bin": kmeans_bytes(2),
        "logmel50_lm.tgz": GOOD_LM,
    }


def test_an_lm_from_the_user_is_kept(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    lm = folder / "logmel50_lm"
    lm.mkdir()
    (lm / "dict.txt").write_text("ours")
    assert "move the folder away" in download(mirror, tmp_path, "logmel50", "--only", "lm", code=2)
    (lm / "checkpoint_best.pt").write_text("ours")
    assert "kept" in download(mirror, tmp_path, "logmel50", "--only", "lm")
    assert set(files_in(tmp_path).values()) == {b"ours"}
    assert not mirror.requests


def test_a_killed_download_resumes(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    write_user_table(tmp_path, f"url: {mirror.url}/mine.pt")
    mirror.plan = [{"stall": 100_000}]
    command = [sys.executable, str(REPOSITORY / SCRIPT), "one", "--workspace", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = folder / ".mine.pt.part"
    assert mirror.stalled.wait(20)
    while not (part.exists() and part.stat().st_size == 100_000):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert "partial" in download(mirror, tmp_path, "--list", "one")
    download(mirror, tmp_path, "one", "two", "--only", "checkpoint")
    assert mirror.ranges() == [None, "bytes=100000-"], "and a shared file is downloaded once"
    assert (folder / "mine.pt").read_bytes() == SPEECH
    assert not part.exists()


def test_a_users_path_is_not_downloaded(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    write_user_table(tmp_path, "path: elsewhere/mine.pt")
    printed = download(mirror, tmp_path, "one", code=2)
    assert "elsewhere/mine.pt: not found; correct its path: in my_unit_models.yaml, or" in printed
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.pt").touch()
    assert "mine.pt: exists, your own" in download(mirror, tmp_path, "one")
    assert "mfcc100: nothing to download" in download(mirror, tmp_path, "mfcc100")
    assert not mirror.requests


def test_an_unknown_name_and_a_damaged_record(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    assert "hubert100, hubert200, cpc50" in stage(SCRIPT, "--workspace", tmp_path, code=2)
    assert "hubert1000: unknown" in download(mirror, tmp_path, "logmel50", "hubert1000", code=2)
    assert not mirror.requests, "names are checked first"
    for damage in ("{", "[]", '{"a": {"size": 3}}'):
        (folder / "downloaded.json").write_text(damage)
        assert "downloaded.json" in download(mirror, tmp_path, "logmel50", code=2)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://[::1:2:3:4:5:6:7:8:9]", "nowhere", "http://"]
)
def test_an_invalid_address(mirror: Remote, tmp_path: Path, url: str) -> None:
    code = 1 if url.endswith("9]") else 2
    printed = download(mirror, tmp_path, "logmel50", "--base_url", url, code=code)
    assert ("not a valid address" if code == 1 else "expected http") in printed
    assert printed.count("\n") == 1


def test_only_one_process_downloads_a_file(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    with holding(folder / "logmel50_km.bin"):
        printed = download(mirror, tmp_path, "logmel50", code=2)
    assert "another process is writing there" in printed
    assert not mirror.requests


def test_a_missing_network_is_one_line(tmp_path: Path, remote: Remote) -> None:
    remote.stop()
    printed = download(remote, tmp_path, "logmel50", code=1)
    path = tmp_path / "pretrained_models" / "logmel50_km.bin"
    assert remote.url + KMEANS in printed and str(path) in printed and printed.count("\n") == 1


@pytest.mark.parametrize("top", ["", "hubert100_lm/", "./", "./hubert100_lm/"])
def test_only_the_two_files_of_an_archive_are_written(
    mirror: Remote, tmp_path: Path, folder: Path, top: str
) -> None:
    others = {
        "../../evil": b"x",
        "/tmp/evil": b"x",
        "README": b"hello",
        "other/dict.txt": (tarfile.SYMTYPE, "../../evil"),
        "deep/er/checkpoint_best.pt": b"x",
        "checkpoint_best.pt": (tarfile.FIFOTYPE, ""),
    }
    mirror.files[LM] = tgz(others | {top + name: LM_FILES[name] for name in LM_FILES})
    download(mirror, tmp_path, "logmel50", "--only", "lm")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    lm = {f"pretrained_models/logmel50_lm/{name}" for name in LM_FILES}
    assert names == lm | {"pretrained_models/downloaded.json"}
    assert files_in(tmp_path) == {f"logmel50_lm/{name}": LM_FILES[name] for name in LM_FILES}


LINK = (tarfile.SYMTYPE, "/etc/passwd")


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        *((GOOD_LM[:length], "damaged or cut short") for length in (20, 60, len(GOOD_LM) - 100)),
        # gzip's checksum comes after the end of the tar; tarfile does not read it
        *((GOOD_LM[:length], "damaged or cut short") for length in (len(GOOD_LM) - 8, -1)),
        (GOOD_LM[:-8] + bytes(8), "damaged"),
        (tgz({"dict.txt": b"0 1\n"}), "no checkpoint_best.pt in it"),
        (tgz({"checkpoint_best.pt": b"a", "dict.txt": LINK}), "no dict.txt in it"),
    ],
    ids=range(8),
)
def test_a_bad_archive_leaves_no_file(
    mirror: Remote, tmp_path: Path, archive: bytes, reason: str
) -> None:
    mirror.files[LM] = archive
    printed = download(mirror, tmp_path, "logmel50", "--only", "lm", code=2)
    assert reason in printed and printed.count("\n") == 1
    assert not list(tmp_path.glob("pretrained_models/*"))


NOT_KMEANS = {
    "an error page": (b"<html>502 Bad Gateway</html>", "a web page"),
    "an error": (b"Access denied", "found something else"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "a part": (CENTRES[:-50], "found something else"),
    "not finite": (kmeans_bytes(np.nan), "not finite"),
}


@pytest.mark.parametrize("kind", NOT_KMEANS)
def test_unreadable_content_is_refused(mirror: Remote, tmp_path: Path, kind: str) -> None:
    """The status is 200, the content type is neutral, and no hash is known."""
    mirror.files[KMEANS], reason = NOT_KMEANS[kind]
    printed = download(mirror, tmp_path, "logmel50", "--only", "kmeans", code=1)
    assert mirror.url + KMEANS in printed and reason in printed and printed.count("\n") == 1
    assert "; removed what was received" in printed and ".part" not in printed
    assert files_in(tmp_path) == {}
    mirror.files[KMEANS] = CENTRES
    download(mirror, tmp_path, "logmel50", "--only", "kmeans")
    assert download(mirror, tmp_path, "logmel50", "--verify").count("verified") == 1


def test_existing_files_are_read_too(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    path = folder / "logmel50_km.bin"
    path.write_bytes(b"<html>")
    assert "a web page" in download(mirror, tmp_path, "logmel50", "--only", "kmeans", code=2)
    record = {"sha256": hashlib.sha256(b"<html>").hexdigest(), "size": 6}
    (folder / "downloaded.json").write_text(json.dumps({path.name: record}))
    assert "a web page" in download(mirror, tmp_path, "logmel50", "--verify", code=2)
    assert path.read_bytes() == b"<html>", "a user's file is never removed"


def test_a_checkpoint_without_a_hash_is_read(mirror: Remote, tmp_path: Path, folder: Path) -> None:
    write_user_table(tmp_path, f"url: {mirror.url}/mine.pt")
    mirror.files["/mine.pt"] = SPEECH[:-200]
    assert "damaged or not a torch" in download(mirror, tmp_path, "one", code=1)
    assert not list(folder.glob("*.pt"))


def test_an_encoding_is_refused_unless_the_file_is_a_tgz(mirror: Remote, tmp_path: Path) -> None:
    """Some servers report the gzip of a .tgz as an encoding."""
    mirror.files[KMEANS], mirror.always = gzip.compress(CENTRES), {"encoding": "gzip"}
    printed = download(mirror, tmp_path, "logmel50", "--only", "kmeans", code=1)
    assert "expected no encoding, found gzip" in printed and printed.count("\n") == 1
    assert files_in(tmp_path) == {} and not list(tmp_path.glob("pretrained_models/.*"))
    download(mirror, tmp_path, "logmel50", "--only", "lm")
    assert mirror.requests[-1][0] == LM
