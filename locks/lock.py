"""Write the lock files in this folder: one version of every package that setup.sh installs, with
the SHA-256 of each file on the index, for all platforms.

Run `make lock` after a pin in requirements*.txt has changed. Locked versions that still fit the
pins stay.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

UV = "uv==0.13.8"
FOLDER = Path(__file__).resolve().parent
HEADER = "# Made by `make lock` (locks/lock.py). {}\n"
DESCRIPTIONS = {
    "build": "Build tools for packages without a wheel.",
    "packages": "All packages for the stages and the tests, except torch and fairseq.",
    "torch": "PyPI's builds.",
    "torch-cpu": "PyTorch's own CPU build, which is not on PyPI (see lock.py).",
    "cuda": "Dependencies of PyPI's torch for Linux; no other build needs them.",
    "fairseq": "Installed last, with --no-deps --no-build-isolation.",
}
_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
# torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl. It has a separate lock file, because pip
# would choose PyPI's files (several GB) if their hashes were in the same file
CPU_BUILD = "torch==2.13.0+cpu"
CPU_HASHES = ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        run(f"{folder}/bin/python", "-m", "pip", "--quiet", "install", UV)
        uv = f"{folder}/bin/uv"
        by_file: dict[str, list[str]] = {name: [] for name in DESCRIPTIONS}
        for entry in resolve(uv, folder, ["requirements.txt", "requirements-dev.txt"]):
            by_file[lock_name(entry)].append(entry)
        by_file["build"] = resolve(uv, folder, ["requirements-build.txt"])
        by_file["fairseq"] = resolve(uv, folder, ["requirements-fairseq.txt"], "--no-deps")
        by_file["torch-cpu"] = [" \\\n    --hash=sha256:".join([CPU_BUILD, *CPU_HASHES]) + "\n"]
    for name, entries in by_file.items():
        (FOLDER / f"{name}.txt").write_text(HEADER.format(DESCRIPTIONS[name]) + "".join(entries))
        print(f"locks/{name}.txt: {len(entries)} packages")


def run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=FOLDER.parent)


def resolve(uv: str, folder: str, requirements: list[str], *flags: str) -> list[str]:
    """Return the lock entry of each package, without comments."""
    out = Path(folder) / "lock.txt"
    # uv keeps these versions if they fit. No hashes: uv would also keep those of deleted files
    locked = [path.read_text() for path in FOLDER.glob("*.txt") if path.stem != "torch-cpu"]
    versions = re.findall(r"^[\w.-]+==[^\\\n]+", "\n".join(locked), re.MULTILINE)
    out.write_text("\n".join(versions) + "\n")
    run(
        uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-annotate", "--no-header", "--output-file", str(out),
        *flags, *requirements,
    )  # fmt: skip
    return re.findall(r"^\S.*(?:\n[ ].*)*\n", out.read_text(), re.MULTILINE)


def lock_name(entry: str) -> str:
    """Return the name of the lock file for a package."""
    if entry.startswith("torch=="):
        return "torch"
    return "cuda" if _CUDA.match(entry) else "packages"


if __name__ == "__main__":
    sys.exit(main())
