#!/usr/bin/env bash
# Creates .venv with the pinned packages. Run it with `make setup`. PYTHON=... chooses the interpreter.
# If uv is available, it installs the packages, and Python if none fits. Otherwise pip does. UV= turns uv off.
# If the interpreter already has torch (for example a CUDA build), this torch is used. All packages are checked against the
# hashes in locks/, with one exception: a torch from the index in PIP_INDEX_URL or PIP_EXTRA_INDEX_URL is another build than
# PyPI's. locks/ has no hash for it, so only the version is checked.
set -euo pipefail
cd "$(dirname "$0")"
uv=${UV-$(command -v uv || true)}

find_python() {
    local candidates=(python3 python3.13 python3.12 python3.11) python version tried=''
    [[ -z ${PYTHON-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || version='not found'
        case $version in 3.11 | 3.12 | 3.13) echo "$python" && return ;; esac
        tried+="${tried:+, }$python ($version)"
    done
    if [[ -n $uv && -z ${PYTHON-} ]]; then
        "$uv" python find 3.13 2> /dev/null || { "$uv" python install --quiet 3.13 && "$uv" python find 3.13; } && return
    fi
    echo "error: expected Python 3.11, 3.12 or 3.13, found $tried; install one, or set PYTHON=/path/to/python" >&2
    exit 2
}

python=$(find_python)
"$python" -m venv --clear .venv
command -v "$python" > .venv/.python
if [[ -n $uv ]]; then # uv has its own variables; the hashes make a file from any index safe
    echo "installing with uv ($uv); to use pip: UV= make setup"
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX-${PIP_INDEX_URL-}} UV_INDEX=${UV_INDEX-${PIP_EXTRA_INDEX_URL-}}
    export UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-}} UV_INDEX_STRATEGY=unsafe-best-match
    install() { "$uv" pip install --quiet --python .venv/bin/python "$@"; }
else
    install() { .venv/bin/python -m pip --disable-pip-version-check --quiet install --no-compile "$@"; }
fi
hashed() { install --require-hashes "$@"; }

hashed -r locks/build.txt
if torch=$("$python" -c '
import importlib.util, pathlib, sys
if importlib.util.find_spec("torch") is None:
    sys.exit(1)
import torch
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
    sys.exit(f"torch {torch.__version__} is not used: expected 2.6 or newer, which reads checkpoints safely")
print(pathlib.Path(torch.__file__).parents[1])'); then
    # .venv searches this path last, so only packages that are missing in .venv come from there
    echo "$torch" > "$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/existing-torch.pth"
elif hashed --no-deps -r locks/torch-cpu.txt 2> /dev/null; then
    : # a configured index or folder has this build
elif [[ -n "${PIP_INDEX_URL-}${PIP_EXTRA_INDEX_URL-}" ]]; then
    install "$(grep '^torch==' requirements.txt)"
else
    hashed --no-deps -r locks/torch.txt
    if grep -q '^Requires-Dist: nvidia' .venv/lib*/python*/site-packages/torch-*.dist-info/METADATA; then
        hashed --no-deps -r locks/cuda.txt
    fi
fi
hashed --no-build-isolation -r locks/packages.txt
READTHEDOCS=1 hashed --no-deps --no-build-isolation -r locks/fairseq.txt
install --no-deps --no-build-isolation -e . # so that the scripts find the packages of this repository
# compile once, on all cores: every stage is a new process, and fairseq imports thousands of files
PYTHONWARNINGS=ignore .venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null || true
.venv/bin/python - <<'PYTHON'
import sys
import torch
from pipeline.devices import choose_device
print(f"ready: Python {sys.version.split()[0]}, torch {torch.__version__} on {choose_device()[1]}")
PYTHON
# the speech encoder of the default unit model, so that predict.py can answer at once
.venv/bin/python pretrained_models/download.py moonshine100 --only checkpoint ||
    echo "moonshine100 is missing: mfcc100 makes the units until the error above is fixed"
