"""Studies: which runs they make, and the table that comes of them."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.workspace import Workspace
from tests.conftest import stage
from ulm_prompt.recipe import load_recipe
from ulm_prompt.study import Study, cells_of, report
from ulm_prompt.tasks import CONFIG

STUDIES = sorted((CONFIG / "studies").glob("*.yaml"))


def arguments(study: str, **others: object) -> argparse.Namespace:
    values = {"study": study, "prompt_task": "KS", "unit_model": "u100", "seeds": 2, "only": None}
    return argparse.Namespace(**values | others)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_study_is_a_recipe_and_has_a_date_of_its_own(path):
    cells = cells_of(load_config(Study, path), arguments(path.stem))
    assert len({cell.date for cell in cells}) == len(cells) > 2
    for cell in cells:
        recipe = load_recipe(cell.flags[1], cell.flags[3:])
        assert recipe.seed == cell.seed


def test_the_table_is_the_best_of_each_seed_and_the_csv_has_all(tmp_path, capsys):
    study = load_config(Study, CONFIG / "studies" / "recipe.yaml")
    args = arguments("recipe", only=["fast"])
    accuracies = ([50.0, 90.0, 80.0], [70.0, 94.0, 95.0])
    curves = {
        cell: {
            250 * (i + 1): {"accuracy": value, "label_loss": 1.0} for i, value in enumerate(found)
        }
        for cell, found in zip(cells_of(study, args), accuracies, strict=True)
    }
    report(study, curves, Workspace(tmp_path), args)
    assert "| fast | 750 | 92.50 ± 2.50 | 2 |" in capsys.readouterr().out
    folder = Path(tmp_path / "samples" / "studies")
    rows = list(csv.DictReader((folder / "recipe_KS_u100.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == [*accuracies[0], *accuracies[1]]
    assert (folder / "recipe_KS_u100.png").stat().st_size > 1000


def test_a_run_that_the_study_lacks_is_named(tmp_path):
    flags = ("--prompt_task", "KS", "--unit_model", "u100", "--workspace", tmp_path)
    said = stage("ulm_prompt/study.py", "recipe", *flags, "--only", "slow", code=2)
    assert "--only slow: expected one of published" in said
