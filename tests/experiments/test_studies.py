"""Studies: which runs they plan, that a run is made once, and the report."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments import runs, studies
from experiments.pictures import draw_study
from experiments.runs import Outcome, Run
from experiments.studies import Study, Variant, load_study, report, runs_of, study_names
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.workspace import Workspace
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.scoring.scores import valid_curve
from ulm_prompt.training.recipe import load_recipe

NAMES = ["few_shot", "prompt_length", "recipe", "seeds", "verbalizer"]
QUICK = ("max_update=6", "validate_every=3", "warmup_updates=1", "batch_size=16")
PAIR = Pair("KS", "tiny100", load_task("KS"))


def planned(study: str | Study, **flags: object) -> list[Run]:
    """Return the runs of a study, with two seeds unless ``flags`` change the number."""
    unset = dict.fromkeys(("only", "recipe", "date", "prefix_prompt_length"))
    loaded = load_study(study) if isinstance(study, str) else study
    name = study if loaded is not study else "mine"
    values = {**unset, "study": name, "seeds": 2, "set": [], **flags}
    return runs_of(loaded, argparse.Namespace(**values), PAIR)


def outcome(accuracies: list[float], trained: int = 100, test: float | None = None) -> Outcome:
    """Return an outcome with a validation every 250 updates. The best validation counts."""
    curve = {
        250 * number: {"accuracy": accuracy, "label_loss": 1.0}
        for number, accuracy in enumerate(accuracies, start=1)
    }
    best = max(curve, key=lambda update: curve[update]["accuracy"])
    record = {
        "training": {"shots": 0, "verbalizer": "fixed"}, "trained_parameters": trained,
        "updates": best, "valid": curve[best], "prefix_prompt_length": 3,
    }  # fmt: skip
    score = {"utterances": 9, "accuracy": test, "accuracy_within_labels": test, "invalid": 0.0}
    return Outcome(record, score if test else {}, curve)


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_study_is_a_recipe_and_has_a_date_of_its_own(name: str) -> None:
    made = planned(name)
    assert study_names() == NAMES
    assert len({run.date for run in made}) == len(made) >= 2
    assert all(load_recipe(run.recipe, run.knobs).seed == run.seed for run in made)


def test_what_a_run_leaves_out_comes_from_the_flags_then_the_study_then_the_task() -> None:
    assert {run.prefix_prompt_length for run in planned("seeds")} == {3}
    assert {run.prefix_prompt_length for run in planned("seeds", prefix_prompt_length=9)} == {9}
    lengths = [run.prefix_prompt_length for run in planned("prompt_length", seeds=1)]
    assert lengths == [1, 2, 3, 6, 10, 20, 40, 80, 160]
    asked = planned("seeds", recipe="published", set=["max_update=3"], date="quick", seeds=1)
    assert asked[0].recipe == "published" and asked[0].date == "seeds_quick_fast_seed1"
    assert load_recipe("published", asked[0].knobs).max_update == 3
    assert {run.recipe for run in planned("recipe", recipe="fast")} == {"published", "fast"}
    made = planned(Study(runs={"FT-LM": Variant(fine_tune=True), "PT": Variant()}), seeds=1)
    assert [run.recipe for run in made] == ["fine_tune", "published"]


def test_a_broken_study_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "FOLDER", tmp_path)
    for text, expected in {
        "x: colour": "x: colour: expected one of updates",
        "x: shots\nruns: {a: {}}": "a: shots is missing",
        "runs: {a: {length: 3}}": "length",
    }.items():
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=expected):
            load_study("mine")


def test_learning_curves_in_a_table_and_all_of_them_in_the_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = planned("recipe", only=["fast", "published"])
    curves = [[8.0] * 20, [10.0] * 20, [50.0, 90.0, 85.0, 80.0], [70.0, 94.0, 95.0, 91.0]]
    outcomes = dict(zip(made, map(outcome, curves), strict=True))
    table, page, picture = report(load_study("recipe"), outcomes, "KS, u100", tmp_path, "r")
    head, _, published, fast = page.read_text().splitlines()
    title = "KS, u100: valid accuracy, %, after updates"
    assert head == f"| {title} | 250 | 500 | 1,000 | best checkpoint | seeds |"
    assert published.startswith("| published | 9.00 ± 1.41 | 9.00 ± 1.41 |")
    assert fast == (
        "| fast | 60.00 ± 14.14 | 92.00 ± 2.83 | 85.50 ± 7.78 | 92.50 ± 3.54 (by 750) | 2 |"
    )
    assert page.read_text() in capsys.readouterr().out
    rows = csv.DictReader(table.open())
    assert [float(row["accuracy"]) for row in rows] == sum(curves, [])
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "test"),
    [("prompt_length", None), ("few_shot", 88.0), ("verbalizer", 88.0), ("seeds", None)],
)
def test_every_picture_and_table(name: str, test: float | None, tmp_path: Path) -> None:
    outcomes = {run: outcome([90.0 + run.seed], 10**6, test) for run in planned(name)}
    table, page, picture = report(load_study(name), outcomes, "KS, u100", tmp_path, name)
    rows = list(csv.DictReader(table.open()))
    assert [row["run"] for row in rows] == [run.row for run in outcomes]
    assert ("test_accuracy" in rows[0]) == (test is not None)
    assert (" | test | " in page.read_text()) == (test is not None)
    assert "| 1,000,000 | 91.50 ± 0.71 |" in page.read_text()
    assert picture.stat().st_size > 1000
    draw_study(load_study(name).x, dict([outcomes.popitem()]), "one run", tmp_path / "one.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    prepare(root, "speech_commands")
    return root


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the stages in this process, and return the list that collects their names."""
    ran: list[str] = []

    def run_script(command: list[str], prefix: str, environment: Mapping[str, str]) -> int:
        script, *flags = command
        ran.append(Path(script).stem)
        root = flags.pop(flags.index("--workspace") + 1)
        flags.remove("--workspace")
        call(ran[-1], root, *flags)
        return 0

    monkeypatch.setattr(runs, "run_script", run_script)
    return ran


def study(root: Path, name: str, *flags: object) -> list[dict[str, str]]:
    """Run study.py with one quick seed, and return the rows of the CSV."""
    task = ("--prompt_task", "KS", "--unit_model", "tiny100", "--seeds", 1, "--set", *QUICK)
    call("study", root, name, *task, *flags)
    date = f"_{flags[flags.index('--date') + 1]}" if "--date" in flags else ""
    return list(csv.DictReader((root / f"samples/studies/{name}{date}_KS_tiny100.csv").open()))


def test_a_finished_run_is_not_computed_again(
    root: Path, stages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Add a second length, then --test: each run is made once. Other knobs are refused."""
    first = study(root, "prompt_length", "--only", "P=1")
    assert stages == ["train"] and first[0]["trained_parameters"] == str(1 * 32 * 7 + 32)
    both = study(root, "prompt_length", "--only", "P=1", "P=20")
    assert stages == ["train"] * 2 and both[0] == first[0]
    tested = study(root, "prompt_length", "--only", "P=1", "P=20", "--test")
    assert stages == ["train"] * 2 + ["sample"] * 2
    assert study(root, "prompt_length", "--only", "P=1", "P=20", "--test") == tested
    assert len(stages) == 4
    workspace, date = Workspace(root), "prompt_length_P-20_seed1"
    curve = valid_curve(workspace.logs("KS", "tiny100", date) / "train.log").values()
    assert float(tested[1]["valid_accuracy"]) == max(scores["accuracy"] for scores in curve)
    answers = json.loads(workspace.samples("KS", "tiny100", date, date).read_text())
    right = sum(entry["predict"] == entry["label"] for entry in answers.values())
    assert float(tested[1]["test_accuracy"]) == pytest.approx(100 * right / 29)
    with pytest.raises(SystemExit):
        study(root, "prompt_length", "--only", "P=1", "--set", *QUICK, "lr=0.5")
    assert "P-1_seed1: holds a run with another lr" in capsys.readouterr().err and len(stages) == 4


def test_verbalizers_leave_the_workspace_s_own_alone(root: Path, stages: list[str]) -> None:
    """freq, random, kmeans and learnable have separate names, and are made once."""
    before = {path: path.read_bytes() for path in (root / "ulm_prompt").rglob("*.*")}
    rows = study(root, "verbalizer", "--test")
    assert {path: path.read_bytes() for path in before} == before
    methods = ["freq", "random", "kmeans", "learnable"]
    assert [row["run"] for row in rows] == [row["verbalizer"] for row in rows] == methods
    datasets = Workspace(root).datasets("tiny100")
    maps = {}
    for name in ("freq", "random_seed1", "kmeans"):
        folder = datasets / "speech_commands" / "verbalizers" / name
        names = json.loads((folder / "verbal.json").read_text())
        maps[name] = tuple(names["KS"].values())
        date = f"verbalizer_{name.split('_')[0]}_seed1"
        record = read_json(Workspace(root).checkpoints("KS", "tiny100", date) / "prompt.json", "")
        assert sha256(folder / "train.txt") in json.dumps(record), "trained on another text"
    assert len(set(maps.values())) == 3 and all(len(set(units)) == 4 for units in maps.values())
    default = json.loads((datasets / "verbal.json").read_text())
    assert tuple(default["KS"].values()) == maps["freq"]
    sizes = [int(row["trained_parameters"]) for row in rows]
    assert sizes[:3] == [3 * 32 * 7 + 32] * 3 and sizes[3] == sizes[0] + 4 * 104
    assert rows[3]["test_invalid"] == "0.0"
    ran = list(stages)
    assert ran.count("verbalizer") == 3 and ran.count("train") == ran.count("sample") == 4
    assert study(root, "verbalizer", "--test") == rows and stages == ran


def test_what_the_flags_change_is_in_the_csv(root: Path, stages: list[str]) -> None:
    knobs = [*QUICK, "verbalizer=learnable"]
    (row,) = study(root, "few_shot", "--date", "few", "--only", "k=2", "--set", *knobs)
    assert (row["shots"], row["verbalizer"]) == ("2", "learnable") and stages == ["train"]
    with pytest.raises(UserError, match="--set seed: .* --seeds N says how many"):
        study(root, "seeds", "--set", "seed=9")
    with pytest.raises(UserError, match="--only slow: expected one of k=1"):
        study(root, "few_shot", "--only", "slow")
