"""Which files predict.py is asked about: its words, folders, links and lists."""

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
    """Gives at most three bytes at a time."""

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


def test_a_name_comes_as_soon_as_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived is answered together, at most as many as are asked for."""
    reader, writer = os.pipe()
    with open(reader, "rb") as handle:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=handle))
        os.write(writer, b"a.wav\nb.w")
        found = batches(["first", "-", "last"], 2, Counter())
        assert next(found) == [Path("first"), Path("a.wav")]
        os.write(writer, b"av\n")
        assert next(found) == [Path("b.wav")]
        os.write(writer, b"c\nd\ne")
        os.close(writer)
        assert list(found) == [[Path("c"), Path("d")], [Path("e")], [Path("last")]]


def test_folders_follow_links_and_count_what_they_pass_over(tmp_path: Path) -> None:
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
    passed_over: Counter[str] = Counter()
    files = list(stream([str(tmp_path / "link")], passed_over))
    assert [str(path.relative_to(tmp_path / "link")) for path in files] == [
        *("B.WAV", "fifo.wav", "file.wav", "gone.wav", "deep/a", "deep/itself", "more/d.opus")
    ]
    assert +passed_over == {"hidden files": 2, "hidden folders": 1, "folders read already": 1}


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered as a file that cannot be used."""
    closed, scan = tmp_path / "closed", os.scandir
    closed.mkdir()
    (tmp_path / "a.wav").touch()

    def scandir(path: str) -> object:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(stream([str(tmp_path)], Counter())) == [tmp_path / "a.wav", closed]


def test_words_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything opens them: a pipe would wait for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.wav")
    reader, writer = os.pipe()
    for word in ("fifo.wav", "socket.wav", "/dev/null", f"/dev/fd/{reader}"):
        with pytest.raises(UserError, match=f"{word}: a pipe or device, .*; save it first, or"):
            check_sources([word])
    os.close(reader)
    os.close(writer)
    monkeypatch.setattr(sys, "stdin", None)
    for words in ([], ["-"]):
        with pytest.raises(UserError, match="pipe in a list of"):
            check_sources(words)
