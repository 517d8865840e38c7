#!/usr/bin/env bash
# Sets up .venv with the pinned packages; run it by `make setup`. PYTHON=... chooses the interpreter.
# A torch that the interpreter already has (a CUDA build, say) is kept and used.
set -euo pipefail
cd "$(dirname "$0")"

find_python() {
    for python in "${PYTHON:-python3}" python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "error: Python 3.11 or 3.12 not found; install one, or set PYTHON=/path/to/python" >&2
    exit 2
}

python=$(find_python)
"$python" -m venv --clear .venv
cp requirements.txt .venv/requirements.txt
if torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null); then
    # the .venv looks there last, so that only what it lacks is found there
    echo "$torch" > "$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/torch-at-hand.pth"
    grep -v '^torch==' requirements.txt > .venv/requirements.txt
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
pip install --no-compile setuptools wheel -r .venv/requirements.txt -r requirements-dev.txt
READTHEDOCS=1 pip install --no-compile --no-deps --no-build-isolation -r requirements-fairseq.txt
# once, on all cores: every stage is a process of its own, and fairseq imports thousands of files
.venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null || true
.venv/bin/python - <<'PYTHON'
import sys
import torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"ready: Python {sys.version.split()[0]}, torch {torch.__version__} on {device}")
PYTHON
