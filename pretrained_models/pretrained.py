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
from pipeline.files import sha256, write_json
from pipeline.locks import holding
from pipeline.unit_models import OWN, PretrainedFile
from pipeline.workspace import Workspace
from pretrained_models.archives import unpack_lm
from pretrained_models.fetch import Expected, fetch

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
            return "here" if known and file.url else "own"
        begun = file.download.with_name(f".{file.download.name}.part")
        return "partial" if file.url and begun.exists() else "missing"

    def get(self, file: PretrainedFile, timeout: float) -> str:
        """Make sure that ``file`` is here, and say what was done.

        Raises ``UserError`` for a file here that is not what it should be and while another process
        gets it, ``DownloadError`` as ``fetch`` does. Nothing that lies here is ever overwritten.
        """
        if file.url is None:
            if self.state(file) == "missing":
                raise UserError(f"{file.path}: not found; your {OWN} names it")
            return "here, your own"
        if self._has_come(file):
            return "here already"
        with holding(file.path):
            return self._get(file, timeout)

    def _has_come(self, file: PretrainedFile) -> bool:
        if self.state(file) != "here":
            return False
        for part in file.parts:
            if part.stat().st_size != self._expected(part, file).size:
                raise self._another(part, file, f"a file of {part.stat().st_size:,} bytes")
        return True

    def _get(self, file: PretrainedFile, timeout: float) -> str:
        if self._has_come(file):  # by a process that has just ended
            return "here already"
        state = self.state(file)
        if file.is_lm and state == "own":
            return "here, not from this script: kept"
        if file.is_lm:
            return self._get_lm(file, timeout)
        if state == "own":
            self._record(file.path, self._checked(file.path, file))
            return "was here, verified and recorded"
        expected = self._expected(file.path, file)
        self._record(file.path, fetch(file.url, file.path, expected, timeout))
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
        if file.path.exists() and any(file.path.iterdir()):
            raise UserError(
                f"{file.path}: there, but without checkpoint_best.pt and dict.txt; "
                "move the folder away and run this again"
            )
        archive = file.download
        by_hand = archive.exists()
        if by_hand:
            found = self._checked(archive, file)
        else:
            found = fetch(file.url, archive, self._expected(archive, file), timeout)
        try:
            unpack_lm(archive, file.path)
        except UserError:
            if not by_hand:  # it would be found again, and refused again
                archive.unlink()
            raise
        for path in (archive, *file.parts):
            self._record(path, found if path == archive else sha256(path))
        if by_hand:
            return f"unpacked from {archive.name}, which is no longer needed"
        archive.unlink()
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

    def _record(self, path: Path, digest: str) -> None:
        record = Record(sha256=digest, size=path.stat().st_size)
        with holding(self.records, wait=True):
            write_json(self.records, self._read() | {self._key(path): record})
