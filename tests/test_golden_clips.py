"""Stages 1 to 3 write the files that tests/golden/make.py made from real clips by other code."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.ulm_prompt.in_process import stage

GOLDEN = REPOSITORY / "tests" / "golden"
UNIT_MODEL = "golden16"


def test_units_texts_and_binaries(tmp_path: Path) -> None:
    models = tmp_path / "pretrained_models"
    (models / f"{UNIT_MODEL}_lm").mkdir(parents=True)
    shutil.copyfile(GOLDEN / "dict.txt", models / f"{UNIT_MODEL}_lm" / "dict.txt")
    shutil.copyfile(GOLDEN / "km.npz", models / f"{UNIT_MODEL}_km.npz")
    overrides = [
        f"datarc.root_path={GOLDEN / 'clips'}",
        "fairseqrc.feature_type=logmel",
        f"taskrc.unit_model={UNIT_MODEL}",
    ]
    for action in ("generate_manifest", "quantized", "postprocess"):
        flags = ("--downstream", "table", "--action", action, "--workspace", tmp_path)
        stage("preprocess/runner.py", *flags, "--set", *overrides)
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        stage(f"ulm_prompt/{name}.py", "--prompt_task", "TABLE", "--workspace", tmp_path)
    expected = GOLDEN / "expected"
    names = [path.relative_to(expected) for path in expected.rglob("*") if path.is_file()]
    assert len(names) == 19
    different = [
        name for name in names if (tmp_path / name).read_bytes() != (expected / name).read_bytes()
    ]
    assert not different
