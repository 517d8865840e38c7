"""The data stages must reproduce the published files byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pipeline.workspace import Workspace
from tests.ulm_prompt.in_process import data_stages


def test_every_published_file(data: Path, tmp_path: Path) -> None:
    """Text, maps and binaries of the units whose published files are known."""
    space, golden = Workspace(tmp_path), data / "golden"
    published = (golden / "SHA256SUMS").read_text()
    for unit_model in (data / "units").iterdir():
        for rows in unit_model.iterdir():
            if f"datasets/{unit_model.name}/{rows.name}/" in published:
                shutil.copytree(rows, space.rows(rows.name, unit_model.name, "train").parent)
        space.lm(unit_model.name).mkdir(parents=True)
        shutil.copy(golden / unit_model.name / "dict.txt", space.lm(unit_model.name))
    data_stages(tmp_path)
    expected = {name: digest for digest, name in map(str.split, published.splitlines())}
    assert len(expected) == 36
    found = {name: (tmp_path / "ulm_prompt" / name).read_bytes() for name in expected}
    assert {n: hashlib.sha256(content).hexdigest() for n, content in found.items()} == expected
    for unit_model in ("hubert100", "cpc100"):
        for name in ("verbal.json", "labelspace.json"):
            made = space.datasets(unit_model) / name
            assert made.read_bytes() == (golden / unit_model / name).read_bytes(), name
