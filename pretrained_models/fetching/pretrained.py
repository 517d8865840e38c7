"""The files of unit models under <workspace>/pretrained_models/: what is here, what it should be,
and getting what is missing.

downloaded.json there records size and SHA-256 of each file at its first download: most released
files come without a published hash, and a later download is held to the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from pipeline.errors import UserError
from pipeline.files import holding, sha256, write_json
from pipeline.unit_models import OWN, PretrainedFile
from pipeline.workspace import Workspace
from pretrained_models.fetching.archives import unpack_lm
from pretrained_models.fetching.fetch import Expected, fetch
from pretrained_models.fetching.wheels import take_member

RECORDS = "downloaded.json"


class Record(TypedDict):
    """What a file was when it came."""

    sha256: str
    size: int


class PretrainedModels:
    """The folder and its records."""

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.root / "pretrained_models"
        self.records = self.folder / RECORDS

    def state(self, file: PretrainedFile) -> str:
        """In a word: ``here``, ``own`` (here, not from this script), ``partial`` or ``missing``."""
        if all(part.is_file() for part in file.parts):
            records = self._read()
            known = all(self._key(part) in records for part in file.parts)
            return "here" if file.ships or (known and file.is_released) else "own"
        begun = file.download.with_name(f".{file.download.name}.part")
        return "partial" if file.url and begun.exists() else "missing"

    def get(self, file: PretrainedFile, timeout: float) -> str:
        """Make sure that ``file`` is here, and say what was done.

        Raises ``UserError`` for a file here that is not what it should be and while another process
        gets it, ``DownloadError`` as ``fetch`` does. Nothing that lies here is ever overwritten.
        """
        if not (file.url or file.wheel):
            who = (
                "it ships with the repository: restore it" if file.ships else f"your {OWN} names it"
            )
            if self.state(file) == "missing":
                raise UserError(f"{file.path}: not found; {who}")
            return "here, ships with the repository" if file.ships else "here, your own"
        if self._has_come(file):
            _fetched(file).unlink(missing_ok=True)  # of a run that was cut off just then
            return "here already"
        with holding(file.path):
            return self._get(file, timeout)

    def _has_come(self, file: PretrainedFile) -> bool:
        if self.state(file) != "here":
            return False
        records = self._read()
        for part in file.parts:
            if part.stat().st_size != records[self._key(part)]["size"]:
                raise self._another(part, file, f"a file of {part.stat().st_size:,} bytes")
        return True

    def _get(self, file: PretrainedFile, timeout: float) -> str:
        if self._has_come(file):  # by a process that has just ended
            return "here already"
        state = self.state(file)
        if file.is_lm and state == "own" and not _fetched(file).exists():
            return "here, not from this script: kept"
        if file.is_lm:
            return self._get_lm(file, timeout)
        if state == "own":
            found = self._checked(file.path, file)
            self._record(file.path, Record(sha256=found, size=file.path.stat().st_size))
            return "was here, verified and recorded"
        expected = self._expected(file.path, file)
        if file.wheel:
            found = take_member(file.wheel, file.path, expected, timeout)
        else:
            found = fetch(file.url, file.path, expected, timeout)
        self._record(file.path, Record(sha256=found, size=file.path.stat().st_size))
        return "downloaded and verified" if expected.sha256 else "downloaded, its sha256 recorded"

    def verify(self, file: PretrainedFile) -> str:
        """Read ``file`` whole against what is known of it, and say how that went. Raises
        ``UserError`` when it is another.
        """
        if self.state(file) in ("missing", "partial"):
            return "not here"
        for part in file.parts:
            if self._expected(part, file).sha256 is None:
                return "here, nothing known to compare it with"
            self._checked(part, file)
        return "verified"

    def _get_lm(self, file: PretrainedFile, timeout: float) -> str:
        there = all(part.is_file() for part in file.parts)  # of a run that was cut off
        if not there and file.path.exists() and any(file.path.iterdir()):
            raise UserError(
                f"{file.path}: there, but without checkpoint_best.pt and dict.txt; "
                "move the folder away and run this again"
            )
        archive = file.download
        by_hand = archive.exists()
        source = archive if by_hand else _fetched(file)
        if by_hand:
            found = self._checked(archive, file)
        elif source.exists():
            found = sha256(source)
        else:
            found = fetch(file.url, source, self._expected(archive, file), timeout)
        try:
            if not there:
                unpack_lm(source, file.path)
        except UserError:
            if not by_hand:  # it would be found again, and refused again
                source.unlink()
            raise
        self._record(archive, Record(sha256=found, size=source.stat().st_size))
        for part in file.parts:
            self._record(part, Record(sha256=sha256(part), size=part.stat().st_size))
        if by_hand:
            return f"unpacked from {archive.name}, which is no longer needed"
        source.unlink(missing_ok=True)
        return "downloaded, verified and unpacked"

    def _checked(self, part: Path, file: PretrainedFile) -> str:
        """The file's SHA-256, held to what is known."""
        found = sha256(part)
        if self._expected(part, file).sha256 not in (None, found):
            raise self._another(part, file, found)
        return found

    def _another(self, part: Path, file: PretrainedFile, found: str) -> UserError:
        expected = self._expected(part, file)
        remedy = file.path if part in file.parts else part
        return UserError(
            f"{part}: expected sha256 {expected.sha256} ({expected.source}), found {found}; "
            f"remove {remedy} and run this again to download it"
        )

    def _expected(self, part: Path, file: PretrainedFile) -> Expected:
        """What is known of ``part``: the table speaks of what the url gives, before the record."""
        of_the_url = part == file.download
        if of_the_url and file.sha256:
            return Expected(file.sha256, file.size, "the table of unit models")
        record = self._read().get(self._key(part))
        if record is None:
            return Expected(None, file.size if of_the_url else None, "the table of unit models")
        return Expected(record["sha256"], record["size"], f"recorded in {RECORDS}")

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else ""

    def _read(self) -> dict[str, Record]:
        try:
            records = json.loads(self.records.read_text(encoding="utf-8"))
            for record in records.values():
                Record(sha256=bytes.fromhex(record["sha256"]).hex(), size=int(record["size"]))
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.records}: damaged ({error}); remove it: the next download writes it anew"
            ) from None
        return records

    def _record(self, path: Path, record: Record) -> None:
        with holding(self.records, wait=-1):
            write_json(self.records, self._read() | {self._key(path): record})


def _fetched(file: PretrainedFile) -> Path:
    """Where this script leaves an LM's archive until it is unpacked: one without the dot is a
    user's, and stays.
    """
    return file.download.with_name(f".{file.download.name}")
