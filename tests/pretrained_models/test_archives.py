"""A unit LM out of an archive that may be anything."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pretrained_models.fetching.archives import unpack_lm

LM = {"checkpoint_best.pt": b"weights" * 5000, "dict.txt": b"0 1\n1 1\n"}


def tgz(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def lm(folder: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    return [plain(folder + name, content) for name, content in LM.items()]


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def claiming(name: str, size: int) -> bytes:
    """A header alone."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(archive: Path, folder: Path, limit: int = 10**6) -> str:
    """The LM that lies there stays, and nothing else appears."""
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_text("old")
    before = tree(archive.parent)
    with pytest.raises(UserError) as error:
        unpack_lm(archive, folder, limit)
    assert tree(archive.parent) == before
    assert "\n" not in str(error.value) and str(archive) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("folder", ["", "hubert100_lm/", "./", "./hubert100_lm/"])
def test_the_released_layouts(tmp_path: Path, folder: str) -> None:
    extra = [special("hubert100_lm", tarfile.DIRTYPE), plain(f"{folder}README", b"hello")]
    archive = tgz(tmp_path / "lm.tgz", [*extra, *lm(folder)])
    old = tmp_path / "hubert100_lm"
    old.mkdir()
    (old / "half").touch()
    unpack_lm(archive, old)
    assert tree(old) == dict(sorted(LM.items()))
    assert {path.name for path in tmp_path.iterdir()} == {"lm.tgz", "hubert100_lm"}


@pytest.mark.parametrize(
    "members, reason",
    [
        ([plain("/tmp/dict.txt", b"x")], "leads out"),
        ([plain("../dict.txt", b"x")], "leads out"),
        ([plain("a/../../dict.txt", b"x")], "leads out"),
        ([plain("a\\..\\dict.txt", b"x")], "leads out"),
        ([special("..", tarfile.DIRTYPE)], "leads out"),
        ([special("x", tarfile.SYMTYPE, "/etc/passwd")], "link"),
        ([special("dict.txt", tarfile.SYMTYPE, "/etc/passwd")], "link"),
        ([special("dict.txt", tarfile.LNKTYPE, "checkpoint_best.pt")], "link"),
        ([special("x", tarfile.FIFOTYPE)], "link"),
        ([special("x", tarfile.CHRTYPE)], "link"),
        ([special("x", tarfile.BLKTYPE)], "link"),
        ([plain("dict.txt", b"x")], "twice"),
        ([plain("other/dict.txt", b"x")], "twice"),
        ([plain(str(number), b"") for number in range(1001)], "more than 1000 files"),
        ([plain("big", bytes(10**6))], "more than 1,000,000 bytes"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_members_that_no_lm_has(tmp_path: Path, members: list, reason: str, first: bool) -> None:
    whole = [*members, *lm()] if first else [*lm(), *members]
    assert reason in refused(tgz(tmp_path / "lm.tgz", whole), tmp_path / "lm")


@pytest.mark.parametrize("name", LM)
def test_both_files_must_be_in_it(tmp_path: Path, name: str) -> None:
    archive = tgz(tmp_path / "lm.tgz", [plain(name, LM[name])])
    (absent,) = LM.keys() - {name}
    assert f"no {absent}" in refused(archive, tmp_path / "lm")


@pytest.mark.parametrize(
    "content, reason",
    [
        (claiming("dict.txt", 10**12) + bytes(10_000), "claims 1,000,000,000,000 bytes"),
        (claiming("other", 10**12) + bytes(10_000), "more than 1,000,000 bytes"),
        (b"".join(claiming(n, 0) for n in "abc") + claiming("back", -1536), "backwards"),
        (special("././@LongLink", tarfile.GNUTYPE_LONGNAME)[0].tobuf() * 3000, "recursion"),
    ],
    ids=["too large", "other too large", "negative", "a long chain"],
)
def test_headers_that_lie(tmp_path: Path, content: bytes, reason: str) -> None:
    archive = tmp_path / "lm.tgz"
    archive.write_bytes(gzip.compress(content))
    assert reason in refused(archive, tmp_path / "lm")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_cannot_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    """tarfile reads such a header's content at once, whatever its size."""
    import tracemalloc

    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 200_000_000
    archive = tmp_path / "lm.tgz"
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        stream.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(200):
            stream.write(bytes(1_000_000))
    tracemalloc.start()
    refused(archive, tmp_path / "lm", limit=10**12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_cut_short_anywhere(tmp_path: Path) -> None:
    whole = tgz(tmp_path / "whole.tgz", lm("hubert100_lm/")).read_bytes()
    archive = tmp_path / "lm.tgz"
    for length in range(0, len(whole), 7):
        archive.write_bytes(whole[:length])
        refused(archive, tmp_path / "lm")


def test_a_damaged_bit_does_not_pass(tmp_path: Path) -> None:
    """gzip's checksum stands behind the tar's end, where tarfile never looks."""
    raw = gzip.decompress(tgz(tmp_path / "whole.tgz", lm()).read_bytes())
    archive = tmp_path / "lm.tgz"
    archive.write_bytes(gzip.compress(raw)[:-8] + bytes(8))
    assert "damaged" in refused(archive, tmp_path / "lm")


names = st.lists(
    st.one_of(st.sampled_from(["..", ".", "", "/", "dict.txt", "~"]), st.text(max_size=8)),
    min_size=1,
    max_size=5,
).map("/".join)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            names, st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE]), names
        ),
        max_size=3,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@example([("../../evil", tarfile.REGTYPE, "")], tarfile.PAX_FORMAT)
def test_nothing_is_ever_written_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list, form: int
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    inside = outside / "a" / "b"
    inside.mkdir(parents=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogatepass") as tar:
        for name, kind, target in members:
            member, content = plain(name, b"evil" if kind == tarfile.REGTYPE else b"")
            member.type, member.linkname = kind, target
            tar.addfile(member, io.BytesIO(content))
        for member, content in lm():
            tar.addfile(member, io.BytesIO(content))
    archive = inside / "lm.tgz"
    archive.write_bytes(gzip.compress(stream.getvalue()))
    before = tree(outside)
    try:
        unpack_lm(archive, inside / "lm")
    except UserError:
        assert tree(outside) == before
    else:
        new = {name: content for name, content in tree(outside).items() if name not in before}
        expected = {"a/b/lm": None} | {f"a/b/lm/{name}": content for name, content in LM.items()}
        assert new == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 511), st.binary(min_size=1, max_size=12)), max_size=6))
@example([(124, bytes([255] * 12))])
def test_any_header_ends_in_an_lm_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    header = bytearray(plain("other", b"x")[0].tobuf())
    for position, value in changes:
        header[position : position + len(value)] = value
    del header[512:]
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # or nobody reads on
    rest = b"".join(member.tobuf() + content.ljust(35328, b"\0") for member, content in lm())
    archive = folder / "lm.tgz"
    archive.write_bytes(gzip.compress(bytes(header) + bytes(512) + rest + bytes(1024)))
    try:
        unpack_lm(archive, folder / "lm", 10**7)
    except UserError:
        assert list(folder.iterdir()) == [archive]
    else:
        assert set(tree(folder / "lm")) == set(LM)
