"""The data stages must reproduce the published files byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.ulm_prompt.forked import stage

STAGES = ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess")


@pytest.fixture(scope="module")
def workspace(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the units whose published files are known, after the data stages."""
    root = tmp_path_factory.mktemp("golden")
    published = (data / "golden" / "SHA256SUMS").read_text()
    for unit_model in (data / "units").iterdir():
        for downstream in unit_model.iterdir():
            if f"datasets/{unit_model.name}/{downstream.name}/" not in published:
                continue
            target = root / "preprocess" / downstream.name / "data" / unit_model.name
            target.mkdir(parents=True)
            for split in downstream.iterdir():
                shutil.copyfile(split, target / split.name)
        lm = root / "pretrained_models" / f"{unit_model.name}_lm"
        lm.mkdir(parents=True)
        shutil.copyfile(data / "golden" / unit_model.name / "dict.txt", lm / "dict.txt")
    for name in STAGES:
        stage(f"ulm_prompt/{name}.py", "--workspace", root)
    return root


def test_every_published_file(workspace: Path, data: Path) -> None:
    lines = (data / "golden" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 36
    wrong = []
    for line in lines:
        expected, name = line.split()
        found = hashlib.sha256((workspace / "ulm_prompt" / name).read_bytes()).hexdigest()
        if found != expected:
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("unit_model", ["hubert100", "cpc100"])
@pytest.mark.parametrize("name", ["verbal.json", "labelspace.json"])
def test_label_maps(workspace: Path, data: Path, unit_model: str, name: str) -> None:
    found = workspace / "ulm_prompt" / "datasets" / unit_model / name
    assert found.read_bytes() == (data / "golden" / unit_model / name).read_bytes()
