#!/usr/bin/env bash
# Sets up .venv with the pinned packages; run it by `make setup`. PYTHON=... chooses the interpreter.
# uv installs where it is at hand (and brings a Python where there is none), else pip; UV= turns it off.
# A torch that the interpreter already has (a CUDA build, say) is kept and used. Everything is checked against the hashes
# in locks/, with one exception: a torch from an index that PIP_INDEX_URL or PIP_EXTRA_INDEX_URL names is another build
# than PyPI's, whose hash is not known here; it is taken by its version.
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
if [[ -n $uv ]]; then # it reads variables of its own; by the hashes, any index's file will do
    echo "installing with uv ($uv); UV= make setup takes pip"
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
    sys.exit(f"torch {torch.__version__} is left out: reading a checkpoint safely takes 2.6 or newer")
print(pathlib.Path(torch.__file__).parents[1])'); then
    # the .venv looks there last, so that only what it lacks is found there
    echo "$torch" > "$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/torch-at-hand.pth"
elif hashed --no-deps -r locks/torch-cpu.txt 2> /dev/null; then
    : # an index or folder at hand has that build
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
install --no-deps --no-build-isolation -e . # this repository, in place: its scripts find its packages
# once, on all cores: every stage is a process of its own, and fairseq imports thousands of files
PYTHONWARNINGS=ignore .venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null || true
.venv/bin/python - <<'PYTHON'
import sys
import torch
from pipeline.devices import choose_device
print(f"ready: Python {sys.version.split()[0]}, torch {torch.__version__} on {choose_device()[1]}")
PYTHON
# the speech encoder of the default unit model, so that predict.py answers at once; without a network mfcc100 serves
.venv/bin/python pretrained_models/download.py moonshine100 --only checkpoint ||
    echo "moonshine100 is not here: units are made by mfcc100 until the line above is put right"
