"""Studies: which runs they make, that each is made once, and what comes of them."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import pytest

from experiments import study_cell, study_plan
from experiments import study_plan as twin
from experiments.pictures import draw
from experiments.study_cell import Outcome
from experiments.study_plan import Cell, Study, Way, cells_of, load_study, study_names
from experiments.study_report import columns_of, report, spread
from pipeline.errors import UserError
from pipeline.workspace import Workspace
from tests.conftest import stage
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.prompt_data.tasks import load_task
from ulm_prompt.scoring.pictures import valid_curve
from ulm_prompt.training.recipe import load_recipe

NAMES = ["few_shot", "prompt_length", "recipe", "seeds", "verbalizer"]
TASK = ("--prompt_task", "KS", "--unit_model", "tiny100")
QUICK = ("max_update=6", "validate_every=3", "warmup_updates=1", "batch_size=16")


def arguments(study: str, **others: object) -> argparse.Namespace:
    values = {"study": study, "seeds": 2, "only": None, "recipe": None, "set": [], "date": None}
    return argparse.Namespace(**{**values, "prefix_prompt_length": None, **others})


def planned(study: str, **others: object) -> list[Cell]:
    return cells_of(load_study(study), arguments(study, **others), load_task("KS"))


def outcome(accuracies: list[float], trained: int = 100, test: float | None = None) -> Outcome:
    """Validations every 250 updates; the best one counts."""
    curve = [
        {"num_updates": 250.0 * number, "accuracy": accuracy, "label_loss": 1.0}
        for number, accuracy in enumerate(accuracies, start=1)
    ]
    best = max(curve, key=lambda each: each["accuracy"])
    score = {"utterances": 9, "accuracy": test, "accuracy_within_labels": test, "invalid": 0.0}
    made_from = {"recipe": {"shots": 0, "verbalizer": "fixed"}}
    return Outcome(
        made_from, trained, int(best["num_updates"]), best, curve, score if test else None
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_study_is_a_recipe_and_has_a_date_of_its_own(name: str) -> None:
    cells = planned(name)
    assert study_names() == NAMES
    assert len({cell.date for cell in cells}) == len(cells) >= 2
    for cell in cells:
        recipe = load_recipe(cell.recipe, cell.knobs)
        assert recipe.seed == cell.seed and recipe.shots == cell.shots


def test_what_a_run_leaves_out_comes_from_the_flags_then_the_study_then_the_task() -> None:
    assert {cell.prefix_prompt_length for cell in planned("seeds")} == {3}
    assert {cell.prefix_prompt_length for cell in planned("seeds", prefix_prompt_length=9)} == {9}
    lengths = [each.prefix_prompt_length for each in planned("prompt_length", seeds=1)]
    assert lengths == [1, 2, 3, 6, 10, 20, 40, 80, 160]
    asked = planned("seeds", recipe="published", set=["max_update=3"], date="quick", seeds=1)
    assert asked[0].recipe == "published" and asked[0].date == "seeds_quick_fast_seed1"
    assert load_recipe("published", asked[0].knobs).max_update == 3
    assert {cell.recipe for cell in planned("recipe", recipe="fast")} == {"published", "fast"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x: colour", "x: colour: expected one of updates"),
        ("x: shots\nruns: {a: {}}", "a: shots is missing"),
        ("runs: {a: {verbalizer: none}}", "a: verbalizer none: expected one of freq"),
        ("runs: {a: {length: 3}}", "length"),
    ],
)
def test_a_broken_study_is_told(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_plan, "FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=expected):
        load_study("mine")
    with pytest.raises(UserError, match="study other: expected one of mine"):
        load_study("other")


def test_a_run_that_the_study_lacks_is_named(tmp_path: Path) -> None:
    said = stage("ulm_prompt/study.py", "recipe", *TASK, "--workspace", tmp_path,
                 "--only", "slow", code=2)  # fmt: skip
    assert "--only slow: expected one of published" in said


def test_learning_curves_in_a_table_and_all_of_them_in_the_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = planned("recipe", only=["fast", "published"])
    found = [[8.0] * 20, [10.0] * 20, [50.0, 90.0, 85.0, 80.0], [70.0, 94.0, 95.0, 91.0]]
    outcomes = dict(zip(cells, map(outcome, found), strict=True))
    paths = report(load_study("recipe"), outcomes, "KS, u100", tmp_path, "r")
    lines = paths[1].read_text().splitlines()
    assert lines[0] == (
        "| KS, u100: valid accuracy, %, after updates | 250 | 500 | 1,000 | best checkpoint "
        "| seeds |"
    )
    assert lines[2].startswith("| published | 9.00 ± 1.41 | 9.00 ± 1.41 |")
    assert lines[3] == (
        "| fast | 60.00 ± 14.14 | 92.00 ± 2.83 | 85.50 ± 7.78 | 92.50 ± 3.54 (by 750) | 2 |"
    )
    assert paths[1].read_text() in capsys.readouterr().out
    rows = list(csv.DictReader(paths[0].open()))
    assert [float(row["accuracy"]) for row in rows] == [each for curve in found for each in curve]
    assert paths[2].stat().st_size > 1000


def test_columns_are_validations_that_most_runs_have() -> None:
    short, long = dict.fromkeys((250, 500)), dict.fromkeys(range(250, 5001, 250))
    usual = dict.fromkeys((250, 500, 750, 1000))
    assert columns_of([short, usual, usual, long]) == [250, 500, 1000]
    assert columns_of([long]) == [250, 500, 1000, 5000]
    assert columns_of([{250: 1.0}]) == [250]


def test_mean_and_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 6.0]) == "3.00 ± 2.65"
    assert (spread([4.0]), spread([])) == ("4.00", "")


@pytest.mark.parametrize(
    ("name", "test"),
    [("prompt_length", None), ("few_shot", 88.0), ("verbalizer", 88.0), ("seeds", None)],
)
def test_every_picture_and_table(name: str, test: float | None, tmp_path: Path) -> None:
    cells = planned(name)
    outcomes = {cell: outcome([90.0 + cell.seed], 10**6, test) for cell in cells}
    paths = report(load_study(name), outcomes, "KS, u100", tmp_path, name)
    rows = list(csv.DictReader(paths[0].open()))
    assert [row["run"] for row in rows] == [cell.name for cell in cells]
    assert ("test_accuracy" in rows[0]) == (test is not None)
    assert (" | test | " in paths[1].read_text()) == (test is not None)
    assert "| 1,000,000 | 91.50 ± 0.71 |" in paths[1].read_text()
    assert paths[2].stat().st_size > 1000


def test_a_picture_of_one_run(tmp_path: Path) -> None:
    for axis in ("shots", "run"):
        draw(axis, {planned("few_shot")[-1]: outcome([90.0])}, "all", tmp_path / "all.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    prepare(root, "speech_commands")
    return root


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages run in this process; returns which ones did."""
    ran: list[str] = []

    def run_stage(name: str, workspace: Workspace, flags: list[object]) -> str:
        ran.append(name)
        return call(name, workspace.root, *flags)

    monkeypatch.setattr(twin, "run_stage", run_stage)
    monkeypatch.setattr(study_cell, "run_stage", run_stage)
    return ran


def study(root: Path, name: str, *flags: object) -> list[dict[str, str]]:
    """Run study.py with one quick seed; returns its CSV."""
    call("study", root, name, *TASK, "--seeds", 1, "--set", *QUICK, *flags)
    date = f"_{flags[flags.index('--date') + 1]}" if "--date" in flags else ""
    return list(csv.DictReader((root / f"samples/studies/{name}{date}_KS_tiny100.csv").open()))


def test_a_finished_run_is_not_computed_again(root: Path, stages: list[str]) -> None:
    """One length, a second one added, test added: each once; a change of the data is seen."""
    first = study(root, "prompt_length", "--only", "P=1")
    assert stages == ["train"] and first[0]["trained_parameters"] == str(1 * 32 * 7 + 32)
    both = study(root, "prompt_length", "--only", "P=1", "P=20")
    assert stages == ["train"] * 2 and both[0] == first[0]
    tested = study(root, "prompt_length", "--only", "P=1", "P=20", "--test")
    assert stages == ["train"] * 2 + ["sample"] * 2
    assert study(root, "prompt_length", "--only", "P=1", "P=20", "--test") == tested
    assert len(stages) == 4
    workspace = Workspace(root)
    date = "prompt_length_P-20_seed1"
    log = workspace.logs("KS", "tiny100", date) / "train.log"
    assert float(tested[1]["valid_accuracy"]) == max(
        scores["accuracy"] for scores in valid_curve(log).values()
    )
    answers = json.loads(workspace.samples("KS", "tiny100", date, date).read_text())
    right = sum(entry["predict"] == entry["label"] for entry in answers.values())
    assert float(tested[1]["test_accuracy"]) == pytest.approx(100 * right / 29)
    with pytest.raises(UserError, match="P=1, seed 1: .*another lr"):
        study(root, "prompt_length", "--only", "P=1", "--set", *QUICK, "lr=0.5")


def test_verbalizers_leave_the_workspace_s_own_alone(root: Path, stages: list[str]) -> None:
    """freq, random, kmeans and learnable in twins, made once each."""
    before = {path: path.read_bytes() for path in (root / "ulm_prompt").rglob("*.*")}
    found = study(root, "verbalizer", "--test")
    assert {path: path.read_bytes() for path in (root / "ulm_prompt").rglob("*.*")} == before
    assert [row["run"] for row in found] == ["freq", "random", "kmeans", "learnable"]
    twins = root / "samples" / "studies" / "verbalizers"
    maps = {}
    for method in ("freq", "random_seed1", "kmeans"):
        folder = Workspace(twins / f"KS_tiny100_{method}").datasets("tiny100")
        maps[method] = tuple(json.loads((folder / "verbal.json").read_text())["KS"].values())
    assert len(set(maps.values())) == 3 and all(len(set(each)) == 4 for each in maps.values())
    own = json.loads((Workspace(root).datasets("tiny100") / "verbal.json").read_text())
    assert tuple(own["KS"].values()) == maps["freq"]
    sizes = [int(row["trained_parameters"]) for row in found]
    assert sizes[:3] == [3 * 32 * 7 + 32] * 3 and sizes[3] == sizes[0] + 4 * 104
    assert found[3]["test_invalid"] == "0.0"
    ran = list(stages)
    assert ran.count("verbalizer") == 3 and ran.count("train") == ran.count("sample") == 4
    assert study(root, "verbalizer", "--test") == found and stages == ran


def test_twins_follow_a_workspace_that_moved(root: Path, stages: list[str]) -> None:
    rows = root / "samples/studies/verbalizers/KS_tiny100_freq/preprocess/speech_commands/data"
    assert (rows / "tiny100").is_symlink()
    (rows / "tiny100").unlink()
    (rows / "tiny100").symlink_to("/nowhere")
    study(root, "verbalizer", "--only", "freq", "--test")
    assert not stages and (rows / "tiny100" / "train").is_file()


def test_few_shots_by_the_command(root: Path, stages: list[str]) -> None:
    found = study(root, "few_shot", "--only", "k=2")
    assert found[0]["shots"] == "2" and stages == ["train"]


def test_what_the_flags_change_is_in_the_csv(root: Path, stages: list[str]) -> None:
    knobs = [*QUICK, "shots=3", "verbalizer=learnable"]
    (found,) = study(root, "seeds", "--date", "few", "--set", *knobs)
    assert (found["shots"], found["verbalizer"]) == ("3", "learnable")
    with pytest.raises(UserError, match="--set seed: .* --seeds says how many"):
        study(root, "seeds", "--set", "seed=9")


def test_fine_tuning_is_a_way(root: Path) -> None:
    study = Study(runs={"FT-LM": Way(fine_tune=True), "PT": Way()})
    cells = cells_of(study, arguments("mine", seeds=1), load_task("KS"))
    assert [cell.recipe for cell in cells] == ["fine_tune", "published"]
