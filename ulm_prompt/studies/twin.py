"""A twin of a workspace: the same rows and unit LM, with another verbalizer.

verbal.json holds one map for a task. A study of several keeps each in a twin, so that a run there
goes on later and the workspace's own map stays what it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.tasks import Pair
from ulm_prompt.verbal import check_data_bin

STAGES = Path(__file__).resolve().parents[1]


def twin(workspace: Workspace, pair: Pair, method: str, seed: int) -> Workspace:
    """The twin of one task whose labels are renamed by ``method``, after stages 2 and 3.

    What lies there and is not stale is left as it is. ``seed``: of the random method, whose every
    seed has a twin.
    """
    name = f"{pair.task}_{pair.unit_model}_{method}"
    if method == "random":
        name += f"_seed{seed}"
    found = Workspace(workspace.root / "samples" / "studies" / "verbalizers" / name)
    downstream = pair.config.downstream
    rows = workspace.downstream_data(downstream) / pair.unit_model
    _link(found.downstream_data(downstream) / pair.unit_model, rows)
    _link(found.lm(pair.unit_model), lm_folder(workspace, pair.unit_model))
    try:
        check_data_bin(found, pair)
    except UserError:  # nothing there yet, or the rows have changed
        own = ("--prompt_task", pair.task, "--unit_model", pair.unit_model)
        run_stage("make_data", found, own)
        run_stage("gen_labelspace", found, own)
        run_stage("verbalizer", found, (*own, "--method", method, "--seed", seed))
        run_stage("fairseq_preprocess", found, own)
    return found


def run_stage(name: str, workspace: Workspace, flags: Sequence[object]) -> str:
    """Run a stage script on one core; returns what it printed.

    Raises ``UserError`` with what it said when it fails.
    """
    command = (sys.executable, STAGES / f"{name}.py", "--workspace", workspace.root, *flags)
    result = subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise UserError(f"{name}.py: {said[-1].removeprefix('error: ')}")
    return result.stdout


def _link(place: Path, target: Path) -> None:
    target = target.resolve()
    if place.is_symlink() and place.resolve() != target:  # the workspace was moved
        place.unlink()
    if not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
