"""Runs that would not be what was asked for, told before they begin."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, prepare
from ulm_prompt.train_ulm import choose_recipe
from ulm_prompt.verbalizer import spread_units

UNIT_MODEL = "tiny100"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    prepare(root, "speech_commands")
    call("train", root, "--date", "d", "--set", "max_update=1")
    return root


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "lm_dropout=0.5"], "a prompt's LM is frozen"),
        (["--set", "seed=-1"], "seed=-1: expected at least 0"),
        (["--set", "lr_schedule=inverse_sqrt", "warmup_updates=0"], "needs at least 1"),
        (["--fine_tune", "--set", "warmup_updates=0"], "needs at least 1"),
        (["--fine_tune", "--prefix_prompt_length", 50], "--prefix_prompt_length: says how a prom"),
        (["--fine_tune", "--set", "space=projected"], "--set space: says how a prompt is trained"),
    ],
)
def test_knobs_that_would_do_nothing_or_harm(
    prepared: Path, flags: list[object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call("train", prepared, "--date", "e", *flags)
    assert not Workspace(prepared).checkpoints("KS", UNIT_MODEL, "e").exists()


def test_units_that_the_dict_lacks_are_not_decoded(prepared: Path, tmp_path: Path) -> None:
    """The binaries are older, and sample.py does not read them."""
    root = Path(shutil.copytree(prepared, tmp_path / "copy"))
    path = Workspace(root).rows("speech_commands", UNIT_MODEL, "test")
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, rest[0].replace("|", "|777 ", 1), *rest[1:]]))
    for script in ("make_data", "gen_labelspace", "verbalizer"):
        call(script, root)
    with pytest.raises(UserError, match=r"test\.txt, line 2: unit 777 is not in .*dict\.txt"):
        call("sample", root, "--model_date", "d", "--sample_date", "s")


def test_answers_that_could_not_be_whole(tmp_path: Path) -> None:
    prepare(tmp_path, "fluent_commands")
    call("train", tmp_path, "--date", "d", "--set", "max_update=1")
    flags = ("--model_date", "d", "--sample_date", "s")
    with pytest.raises(UserError, match="--max_labels 2: an answer to IC has 3 labels"):
        call("sample", tmp_path, *flags, "--max_labels", 2)


def choose(root: Path, **others: object) -> object:
    values = {"unit_model": UNIT_MODEL, "date": "a", "config": "tiny", "set": [], "dtype": None}
    args = argparse.Namespace(**values | {"begin_from": None} | others)
    return choose_recipe(args, Workspace(root))


def test_an_lm_where_no_stage_would_look(tmp_path: Path) -> None:
    table = tmp_path / "pretrained_models" / "my_unit_models.yaml"
    table.parent.mkdir()
    table.write_text(
        "unit_models: {mine: {feature_type: logmel, clusters: 9, lm: {path: elsewhere}}}"
    )
    with pytest.raises(UserError, match="mine: its LM is .*elsewhere, which the other stages read"):
        choose(tmp_path, unit_model="mine")


def test_an_lm_goes_on_in_the_dtype_it_began_in(tmp_path: Path) -> None:
    """Whatever this machine would choose."""
    folder = Workspace(tmp_path).checkpoints("ulm", UNIT_MODEL, "a")
    write_json(folder / "run.json", {"recipe": {"dtype": "bfloat16"}})
    (folder / "checkpoint_last.pt").touch()
    assert choose(tmp_path, dtype="auto").dtype == "bfloat16"
    assert choose(tmp_path, dtype="float32").dtype == "float32"


def test_units_of_two_kmeans_make_no_lm(tmp_path: Path) -> None:
    for number, downstream in enumerate(tiny.LABELS):
        tiny.write_corpus(tmp_path, downstream=downstream)
        folder = Workspace(tmp_path).rows(downstream, UNIT_MODEL, "train").parent
        record = {"plan": {"kmeans": f"hash{number}"}}
        write_json(folder / "quantized" / "provenance.json", record)
    flags = ("--unit_model", UNIT_MODEL, "--date", "a", "--config", "tiny")
    with pytest.raises(UserError, match=r"speech_commands/.*: quantised with different k-means"):
        call("train_ulm", tmp_path, *flags)


def test_each_label_has_a_unit_of_its_own(tmp_path: Path) -> None:
    """Also where some embeddings are much longer than others, so that the unit nearest to a
    cluster's centre may belong to another.
    """
    units = [str(unit) for unit in range(tiny.UNITS)]
    for seed in range(4):
        model = tiny.lm(width=64, seed=seed)
        with torch.no_grad():
            weight = model.decoder.embed_tokens.weight
            weight *= torch.exp(torch.randn(len(weight), 1) / 2)
        tiny.write_lm(tmp_path / str(seed), model, width=64)
        for number in (12, 30):
            found = spread_units(tmp_path / str(seed), units, number)
            assert len(set(found)) == number


def test_curves_of_the_runs_that_there_are(prepared: Path, tmp_path: Path) -> None:
    """Units without such a run are passed over, as those of the example in the repository."""
    root = Path(shutil.copytree(prepared, tmp_path / "copy"))
    tiny.write_corpus(root, "another100")
    said = call("plot", root, "curves", "--date", "d")
    assert said.count("->") == 1 and f"KS {UNIT_MODEL} -> " in said
    with pytest.raises(UserError, match=r"train\.log: not found"):
        call("plot", root, "curves", "--date", "none")
