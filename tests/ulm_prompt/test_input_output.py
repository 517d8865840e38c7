"""The files that predict.py reads from its command line: words, folders, links and lists."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import UserError
from ulm_prompt.using.input_output import batches, check_sources, listed, stream


class Pipe(io.BytesIO):
    """Returns at most three bytes per read."""

    def read1(self, size: int = -1) -> bytes:
        return super().read1(3)


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.wav\nb c.wav\n", ["a.wav", "b c.wav"]),
        (b"a.wav\0b\nc.wav\0", ["a.wav", "b\nc.wav"]),  # find -print0
        (b"a.wav\0b.wav", ["a.wav", "b.wav"]),
        (b"a\r.wav\0", ["a\r.wav"]),
        (b"\xef\xbb\xbfa.wav\r\n\r\n  \n/caf\xe9.wav\r\n", ["a.wav", "/caf\udce9.wav"]),
        (b"\xef\xbb\xbfa.wav", ["a.wav"]),
        (b"a.wav\r", ["a.wav"]),
        (b" a .wav \n", [" a .wav "]),
        (b"", []),
    ],
)
def test_lists(source: type[io.BytesIO], content: bytes, names: list[str]) -> None:
    assert [str(path) for path in listed(source(content)) if path] == names
    with pytest.raises(UserError, match="UTF-16 text; save it as UTF-8"):
        list(listed(source("a.wav\r\n".encode("utf-16"))))


def test_a_name_is_yielded_as_soon_as_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that have arrived form one batch, up to the batch size."""
    reader, writer = os.pipe()
    with open(reader, "rb") as handle:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=handle))
        os.write(writer, b"a.wav\nb.w")
        arrived = batches(["first", "-", "last"], 2, Counter())
        assert next(arrived) == [Path("first"), Path("a.wav")]
        os.write(writer, b"av\n")
        assert next(arrived) == [Path("b.wav")]
        os.write(writer, b"c\nd\ne")
        os.close(writer)
        assert list(arrived) == [[Path("c"), Path("d")], [Path("e")], [Path("last")]]


def test_folders_follow_links_and_count_skipped_files(tmp_path: Path) -> None:
    inside, other = tmp_path / "in", tmp_path / "other"
    for name in ("in/B.WAV", "in/.hidden", "in/deep/a", "in/.git/c", "other/d.opus", "other/.x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in {
        inside / "file.wav": other / "d.opus",
        inside / "gone.wav": "nowhere",
        inside / "more": other,
        inside / "deep" / "up": inside,
        inside / "deep" / "itself": "itself",
        tmp_path / "link": inside,
    }.items():
        link.symlink_to(target)
    os.mkfifo(inside / "fifo.wav")
    skipped: Counter[str] = Counter()
    files = list(stream([str(tmp_path / "link")], skipped))
    assert [str(path.relative_to(tmp_path / "link")) for path in files] == [
        *("B.WAV", "fifo.wav", "file.wav", "gone.wav", "deep/a", "deep/itself", "more/d.opus")
    ]
    assert +skipped == {"hidden files": 2, "hidden folders": 1, "folders already read": 1}


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is reported like a file that cannot be read."""
    closed, scan = tmp_path / "closed", os.scandir
    closed.mkdir()
    (tmp_path / "a.wav").touch()

    def scandir(path: str) -> object:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(stream([str(tmp_path)], Counter())) == [tmp_path / "a.wav", closed]


def test_words_that_are_not_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before a pipe is opened: the open would wait for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.wav")
    reader, writer = os.pipe()
    for word in ("fifo.wav", "socket.wav", "/dev/null", f"/dev/fd/{reader}"):
        with pytest.raises(UserError, match=f"{word}: .*found a pipe or device; save it, or"):
            check_sources([word])
    os.close(reader)
    os.close(writer)
    monkeypatch.setattr(sys, "stdin", None)
    for words in ([], ["-"]):
        with pytest.raises(UserError, match="pipe in a list of files"):
            check_sources(words)
