"""Write this folder's lock files: every package that setup.sh installs, at one version, with the
SHA-256 of each of its files on the index, for all platforms.

`make lock` runs it after a pin in requirements*.txt has changed; what is locked and still fits the
pins keeps its version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TOOL = "uv==0.13.8"
HERE = Path(__file__).resolve().parent
HEADER = "# Made by `make lock` (locks/lock.py). {}\n"
SAYS = {
    "build": "What packages without a wheel are built with.",
    "packages": "All that the stages and the tests need beside torch and fairseq.",
    "torch": "PyPI's builds.",
    "torch-cpu": "PyTorch's own CPU build, which PyPI has not (see lock.py).",
    "cuda": "What PyPI's build of torch for Linux brings; no other build needs it.",
    "fairseq": "Installed last, with --no-deps --no-build-isolation.",
}
_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
# torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl. In a file of its own: beside the hashes of
# PyPI's files pip would rather take those, several GB
CPU_BUILD = "torch==2.13.0+cpu"
CPU_HASHES = ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        run(f"{folder}/bin/python", "-m", "pip", "--quiet", "install", TOOL)
        tool = f"{folder}/bin/uv"
        everything = resolve(tool, folder, ["requirements.txt", "requirements-dev.txt"])
        by_file: dict[str, list[str]] = {name: [] for name in SAYS}
        for entry in everything:
            by_file[place(entry)].append(entry)
        by_file["build"] = resolve(tool, folder, ["requirements-build.txt"])
        by_file["fairseq"] = resolve(tool, folder, ["requirements-fairseq.txt"], "--no-deps")
        by_file["torch-cpu"] = [" \\\n    --hash=sha256:".join([CPU_BUILD, *CPU_HASHES]) + "\n"]
    for name, entries in by_file.items():
        (HERE / f"{name}.txt").write_text(HEADER.format(SAYS[name]) + "".join(entries))
        print(f"locks/{name}.txt: {len(entries)} packages")


def run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=HERE.parent)


def resolve(tool: str, folder: str, requirements: list[str], *flags: str) -> list[str]:
    """The lines of each package, comments left out."""
    out = Path(folder) / "lock.txt"
    # the tool keeps these versions where it can; hashes it would keep too, also those of no file
    locked = [path.read_text() for path in HERE.glob("*.txt") if path.stem != "torch-cpu"]
    versions = re.findall(r"^[\w.-]+==[^\\\n]+", "\n".join(locked), re.MULTILINE)
    out.write_text("\n".join(versions) + "\n")
    run(
        tool, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-annotate", "--no-header", "--output-file", str(out),
        *flags, *requirements,
    )  # fmt: skip
    return re.findall(r"^\S.*(?:\n[ ].*)*\n", out.read_text(), re.MULTILINE)


def place(entry: str) -> str:
    """The lock file that a package belongs in."""
    if entry.startswith("torch=="):
        return "torch"
    return "cuda" if _CUDA.match(entry) else "packages"


if __name__ == "__main__":
    sys.exit(main())
