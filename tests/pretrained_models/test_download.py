"""The script as a user calls it, against a server on localhost; a unit LM out of its archive."""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest import mock

import pytest

from pipeline.errors import UserError, run
from pipeline.files import holding
from pretrained_models.download import main
from pretrained_models.fetching.pretrained import unpack_lm
from tests.conftest import REPOSITORY, stage
from tests.pretrained_models.conftest import Remote, checkpoint_bytes, kmeans_bytes

SCRIPT = "pretrained_models/download.py"
GSLM = "/textless_nlp/gslm"
KMEANS, LM = f"{GSLM}/logmel/km50/km.bin", f"{GSLM}/logmel/lm_km50/logmel50_lm.tgz"
CENTRES, SPEECH = kmeans_bytes(1), checkpoint_bytes()


def tgz(path: Path | io.BytesIO, files: dict[str, bytes | tuple[bytes, str]], folder: str = ""):
    """Write ``path`` and return it. ``files``: content, or a member's type and link target."""
    target = {"name": path} if isinstance(path, Path) else {"fileobj": path}
    with tarfile.open(**target, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            if isinstance(content, tuple):
                (member.type, member.linkname), content = content, b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


LM_FILES = {"checkpoint_best.pt": b"weights" * 9000, "dict.txt": b"0 1\n"}
GOOD_LM = tgz(io.BytesIO(), LM_FILES, "logmel50_lm/").getvalue()
WHOLE = {"logmel50_km.bin": CENTRES} | {f"logmel50_lm/{n}": c for n, c in LM_FILES.items()}


@pytest.fixture
def mirror(remote: Remote) -> Remote:
    """Holds what logmel50 needs, and a wrong HuBERT."""
    remote.files = {
        KMEANS: CENTRES,
        LM: GOOD_LM,
        "/hubert/hubert_base_ls960.pt": b"not it",
        "/mine.pt": SPEECH,
    }
    return remote


def download(mirror: Remote, workspace: Path, *args: object, code: int = 0) -> str:
    """The script in this process: its start alone takes longer than all that it does here."""
    flags = ["--workspace", workspace, "--base_url", mirror.url, "--timeout", 5]
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [SCRIPT, *map(str, [*args, *flags])]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.raises(SystemExit) as leaving,
    ):
        run(main)
        sys.exit(0)
    assert leaving.value.code == code, printed.getvalue()
    return printed.getvalue()


def here(workspace: Path) -> dict[str, bytes]:
    folder = workspace / "pretrained_models"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "downloaded.json"
    }


def test_a_unit_model_comes_whole_and_once(mirror: Remote, tmp_path: Path) -> None:
    assert "logmel50     none                             missing    missing" in download(
        mirror, tmp_path, "--list"
    )
    printed = download(mirror, tmp_path, "logmel50")
    assert "next: python preprocess/runner.py" in printed
    assert here(tmp_path) == WHOLE
    assert len(mirror.requests) == 2
    printed = download(mirror, tmp_path, "logmel50", "logmel50")
    assert printed.count("here already") == 2
    assert len(mirror.requests) == 2, "nothing is asked for twice"
    assert "logmel50     none                             here       here" in download(
        mirror, tmp_path, "--list"
    )
    assert download(mirror, tmp_path, "logmel50", "--verify").count("verified") == 2


@pytest.mark.parametrize("name", WHOLE)
def test_verify_sees_a_flipped_bit(mirror: Remote, tmp_path: Path, name: str) -> None:
    download(mirror, tmp_path, "logmel50")
    path = tmp_path / "pretrained_models" / name
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert str(path) in download(mirror, tmp_path, "--verify", "logmel50", code=2)
    path.write_bytes(content[1:])
    assert str(path) in download(mirror, tmp_path, "logmel50", code=2), "without reading it whole"
    assert path.exists()


@pytest.mark.parametrize(
    "url, lost", [(KMEANS, "logmel50_km.bin"), (LM, "logmel50_lm")], ids=["kmeans", "lm"]
)
def test_a_later_download_is_held_to_the_first(
    mirror: Remote, tmp_path: Path, url: str, lost: str
) -> None:
    download(mirror, tmp_path, "logmel50")
    folder = tmp_path / "pretrained_models"
    (folder / lost).rename(tmp_path / "lost")
    first = mirror.files[url]
    mirror.files[url] = b"something else of the same size"[: len(first)].ljust(len(first))
    printed = download(mirror, tmp_path, "logmel50", code=1)
    assert "downloaded.json" in printed and hashlib.sha256(first).hexdigest() in printed
    assert not (folder / lost).exists()
    assert not list(folder.glob(".*"))
    mirror.files[url] = first
    download(mirror, tmp_path, "logmel50")
    assert here(tmp_path) == WHOLE


def test_what_a_user_put_there_is_checked_and_never_removed(mirror: Remote, tmp_path: Path) -> None:
    folder = tmp_path / "pretrained_models"
    folder.mkdir()
    (folder / "hubert_base_ls960.pt").write_bytes(b"another HuBERT")
    printed = download(mirror, tmp_path, "hubert50", "--only", "checkpoint", code=2)
    assert "1703cf8d" in printed and "remove" in printed
    (folder / "logmel50_km.bin").write_bytes(kmeans_bytes(2))
    (folder / "logmel50_lm.tgz").write_bytes(GOOD_LM)
    download(mirror, tmp_path, "logmel50")
    assert not mirror.requests
    assert here(tmp_path) == WHOLE | {
        "hubert_base_ls960.pt": b"another HuBERT",
        "logmel50_km.bin": kmeans_bytes(2),
        "logmel50_lm.tgz": GOOD_LM,
    }


def test_an_lm_that_was_trained_here_stays(mirror: Remote, tmp_path: Path) -> None:
    folder = tmp_path / "pretrained_models" / "logmel50_lm"
    folder.mkdir(parents=True)
    (folder / "dict.txt").write_text("ours")
    assert "move the folder away" in download(mirror, tmp_path, "logmel50", "--only", "lm", code=2)
    (folder / "checkpoint_best.pt").write_text("ours")
    assert "kept" in download(mirror, tmp_path, "logmel50", "--only", "lm")
    assert set(here(tmp_path).values()) == {b"ours"}
    assert not mirror.requests


def test_a_bad_archive_leaves_nothing(mirror: Remote, tmp_path: Path) -> None:
    mirror.files[LM] = GOOD_LM[:-100]
    assert "cut short" in download(mirror, tmp_path, "logmel50", "--only", "lm", code=2)
    assert not list(tmp_path.glob("pretrained_models/*"))


def test_a_killed_download_goes_on(mirror: Remote, tmp_path: Path) -> None:
    own_table(tmp_path, f"url: {mirror.url}/mine.pt")
    mirror.plan = [{"stall": 100_000}]
    command = [sys.executable, str(REPOSITORY / SCRIPT), "one", "--workspace", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / "pretrained_models" / ".mine.pt.part"
    assert mirror.stalled.wait(20)
    while not (part.exists() and part.stat().st_size == 100_000):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert "partial" in download(mirror, tmp_path, "--list", "one")
    download(mirror, tmp_path, "one", "two", "--only", "checkpoint")
    assert mirror.ranges() == [None, "bytes=100000-"], "and what two share comes once"
    assert (tmp_path / "pretrained_models" / "mine.pt").read_bytes() == SPEECH
    assert not part.exists()


def own_table(workspace: Path, checkpoint: str) -> None:
    model = "{feature_type: hubert, checkpoint: mine, layer: 6, clusters: 9}"
    folder = workspace / "pretrained_models"
    folder.mkdir(exist_ok=True)
    (folder / "my_unit_models.yaml").write_text(
        f"checkpoints: {{mine: {{{checkpoint}}}}}\nunit_models: {{one: {model}, two: {model}}}\n"
    )


def test_a_file_of_ones_own_is_never_downloaded(mirror: Remote, tmp_path: Path) -> None:
    own_table(tmp_path, "path: elsewhere/mine.pt")
    assert "elsewhere/mine.pt: not found" in download(mirror, tmp_path, "one", code=2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.pt").touch()
    assert "mine.pt: here, your own" in download(mirror, tmp_path, "one")
    assert "mfcc100: nothing to download" in download(mirror, tmp_path, "mfcc100")
    assert not mirror.requests


def test_what_the_user_typed_wrong(mirror: Remote, tmp_path: Path) -> None:
    assert "hubert100, hubert200, cpc50" in stage(SCRIPT, "--workspace", tmp_path, code=2)
    assert "hubert1000: unknown" in download(mirror, tmp_path, "logmel50", "hubert1000", code=2)
    assert not mirror.requests, "names are checked first"
    records = tmp_path / "pretrained_models" / "downloaded.json"
    records.parent.mkdir()
    for damage in ("{", "[]", '{"a": {"size": 3}}'):
        records.write_text(damage)
        assert str(records) in download(mirror, tmp_path, "logmel50", code=2)


def test_two_processes_do_not_get_one_file(mirror: Remote, tmp_path: Path) -> None:
    with holding(tmp_path / "pretrained_models" / "logmel50_km.bin"):
        printed = download(mirror, tmp_path, "logmel50", code=2)
    assert "another process is writing there" in printed
    assert not mirror.requests


def test_no_network_is_one_line(tmp_path: Path, remote: Remote) -> None:
    url = remote.url
    remote.stop()
    flags = ["--workspace", tmp_path, "--base_url", url]
    printed = stage(SCRIPT, "logmel50", *flags, code=1)
    assert printed.count("\n") == 1
    path = tmp_path / "pretrained_models" / "logmel50_km.bin"
    assert url + KMEANS in printed and str(path) in printed


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(archive: Path, folder: Path) -> str:
    """The LM_FILES in ``folder`` stays, and nothing else appears."""
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_text("old")
    before = tree(archive.parent)
    with pytest.raises(UserError) as error:
        unpack_lm(archive, folder)
    assert tree(archive.parent) == before
    assert "\n" not in str(error.value) and str(archive) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("folder", ["", "hubert100_lm/", "./", "./hubert100_lm/"])
def test_the_released_layouts(tmp_path: Path, folder: str) -> None:
    archive = tgz(tmp_path / "lm.tgz", {"README": b"hello", **LM_FILES}, folder)
    old = tmp_path / "hubert100_lm"
    old.mkdir()
    (old / "half").touch()
    unpack_lm(archive, old)
    assert tree(old) == LM_FILES
    assert {path.name for path in tmp_path.iterdir()} == {"lm.tgz", "hubert100_lm"}


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    others = {
        "../../evil": b"x",
        "/tmp/evil": b"x",
        "other/dict.txt": (tarfile.SYMTYPE, "../../evil"),
        "dict.txt": (tarfile.SYMTYPE, "/etc/passwd"),
        "checkpoint_best.pt": (tarfile.FIFOTYPE, ""),
    }
    released = {f"../{name}": content for name, content in LM_FILES.items()}
    unpack_lm(tgz(tmp_path / "lm.tgz", others | released), tmp_path / "a" / "b" / "lm")
    assert set(tree(tmp_path)) == {"lm.tgz", *(f"a/b/lm/{name}" for name in LM_FILES)}


@pytest.mark.parametrize("name", LM_FILES)
def test_both_files_must_be_in_it(tmp_path: Path, name: str) -> None:
    (absent,) = LM_FILES.keys() - {name}
    for files in ({}, {absent: (tarfile.SYMTYPE, "/etc/passwd")}):
        archive = tgz(tmp_path / "lm.tgz", {name: LM_FILES[name], **files})
        assert f"no {absent}" in refused(archive, tmp_path / "lm")


def test_cut_short_or_damaged(tmp_path: Path) -> None:
    """gzip's checksum is behind the tar's end, where tarfile never looks."""
    archive = tgz(tmp_path / "lm.tgz", LM_FILES)
    whole = archive.read_bytes()
    for length in range(0, len(whole), 23):
        archive.write_bytes(whole[:length])
        refused(archive, tmp_path / "lm")
    archive.write_bytes(whole[:-8] + bytes(8))
    assert "damaged" in refused(archive, tmp_path / "lm")
