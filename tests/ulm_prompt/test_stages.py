"""The stages from rows to accuracy, as a user calls them, on a tiny LM."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages, stage
from ulm_prompt.prompt_data.prompt_record import PromptRecord
from ulm_prompt.training import recipe
from ulm_prompt.training.fairseq_run import fairseq_config
from ulm_prompt.training.prompt_run import _prompt_settings
from ulm_prompt.training.ulm_run import unit_lm_settings
from ulm_prompt.verbalizer import spread_units

UNIT_MODEL = "tiny100"
MAPS = ("verbal.json", "labelspace.json")
QUICK = ("batch_size=16", "max_epoch=4", "patience=0")


def train(root: Path, date: str, *flags: object, knobs: tuple[str, ...] = QUICK) -> str:
    command = ("--workspace", root, "--date", date, "--prompt_task", "KS", *flags)
    return stage("ulm_prompt/train.py", *command, "--set", *knobs)


def valid_losses(printed: str) -> list[str]:
    return re.findall(r"valid on 'valid' subset \| loss (\S+)", printed)


def folder(root: Path, date: str, task: str = "KS") -> Path:
    return Workspace(root).checkpoints(task, UNIT_MODEL, date)


def weights(folder: Path, name: str = "best") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"checkpoint_{name}.pt", weights_only=True)["model"]


def test_a_recipe_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a full copy, as old versions required, or list only what it changes."""
    published = (recipe.CONFIG / "recipes" / "published.yaml").read_text()
    monkeypatch.setattr(recipe, "CONFIG", tmp_path)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "copy.yaml").write_text(published.replace("patience: 5", "patience: 7"))
    (recipes / "short.yaml").write_text("patience: 7\n")
    copy, short = (recipe.load_recipe(name, ["lr=0.5"]) for name in ("copy", "short"))
    assert copy == short and (copy.patience, copy.lr, copy.seed) == (7, 0.5, 100501)
    (recipes / "short.yaml").write_text("patiens: 7\n")
    with pytest.raises(
        UserError, match=r"patiens: not known \(did you mean patience\?\); expected one of"
    ):
        recipe.load_recipe("short", [])


def test_every_knob_is_read(tmp_path: Path) -> None:
    """fairseq's config takes a knob if a dataclass of it has a field of this name. Our code must
    read the others: such a knob is named here, or it would change nothing, without an error.
    """
    prompt = PromptRecord("KS", "u", 5, "freq", {}, "", training=vars(recipe.Recipe()))
    lm = recipe.UnitLMRecipe()
    for knobs, settings, ours in (
        (prompt.training, _prompt_settings(prompt, tmp_path, tmp_path),
         {"space", "dtype", "best_by", "lr_schedule", "validate_every", "verbalizer"}),
        (vars(lm), unit_lm_settings(lm, tmp_path, None),
         {"dtype", "lr_schedule", "topics", "max_valid_utterances"}),
    ):  # fmt: skip
        config = fairseq_config(knobs, settings, tmp_path, tmp_path, Ranks())
        groups = [group for group in config.values() if isinstance(group, Mapping)]
        unread = {
            name
            for name, value in knobs.items()
            if not any(group.get(name) in (value, [value]) for group in groups if name in group)
        }
        assert unread == ours


def test_data_stages_reproduce_the_published_files(data: Path, tmp_path: Path) -> None:
    """Text, maps and binaries equal the known published files byte for byte."""
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
    assert {name: sha256(tmp_path / "ulm_prompt" / name) for name in expected} == expected
    for path in (golden / lm / file for lm in ("hubert100", "cpc100") for file in MAPS):
        assert (space.datasets(path.parent.name) / path.name).read_bytes() == path.read_bytes()


def test_from_rows_to_accuracy(prepared: Path) -> None:
    """One call runs both tasks. Every stage writes its files and counts, and the prompt learns."""
    at = ("--workspace", prepared)
    knobs = ("--recipe", "fast", "--set", "max_update=400", "lr=0.1")
    printed = stage("ulm_prompt/train.py", *at, "--date", "e2e", *knobs)
    stage("ulm_prompt/sample.py", *at, "--model_date", "e2e", "--sample_date", "e2e")
    scored = stage("ulm_prompt/cal_acc.py", *at, "--sample_date", "e2e")
    assert scored.count("utterances              29") == 2
    accuracies = re.findall(r"accuracy within labels  (\S+)", scored)
    assert float(accuracies[1]) > 80, "KS: chance is 25 %"
    names = ["prefix_embed_prompts", "infix_embed_prompts", "sep_embed"]
    names += [f"deep_{kind}_embed_prompts.{n}" for kind in ("key", "value") for n in range(3)]
    for task, length in (("KS", 3), ("IC", 6)):
        trained = length * 32 * 7 + 32
        assert f"(num. trained: {trained:,})" in printed
        run = folder(prepared, "e2e", task)
        assert weights(run).keys() == {f"decoder.{name}.weight" for name in names}
        record = read_json(run / "prompt.json", "")
        assert record["trained_parameters"] == trained and record["valid"]["loss"] > 0
        logs = Workspace(prepared).logs(task, UNIT_MODEL, "e2e")
        assert list(logs.glob("*/events.out.tfevents.*")), "curves of its own"
        samples = read_json(Workspace(prepared).samples(task, UNIT_MODEL, "e2e", "e2e"), "")
        assert list(samples) == [str(number) for number in range(29)]
        assert set(samples["0"]) == {"file_name", "src", "label", "predict"}


def test_an_infix_prompt_is_trained_resumed_and_sampled(prepared: Path) -> None:
    task = ("--prompt_task", "IC")
    short = ("--date", "infix", "--recipe", "fast", "--set", "max_update=6", "warmup_updates=2")
    command = ("train", prepared, *task, "--infix_prompt_length")
    assert f"(num. trained: {4 * 32 * 7 + 32:,})" in call(*command, 4, *short)
    assert "has finished" in call(*command, 4, *short)
    with pytest.raises(UserError, match="another infix_prompt_length"):
        call(*command, 5, *short)
    run = folder(prepared, "infix", "IC")
    record = read_json(run / "prompt.json", "")
    for kind, length in (("prefix", 0), ("infix", 4)):
        assert record[f"{kind}_prompt_length"] == length
        assert weights(run)[f"decoder.{kind}_embed_prompts.weight"].shape == (length, 32)
    call("sample", prepared, *task, "--model_date", "infix", "--sample_date", "infix")
    assert "utterances              29" in call("cal_acc", prepared, "--sample_date", "infix")


@pytest.mark.parametrize(
    ("name", "epochs", "knobs"),
    [
        ("dropout", (2, 4), ("batch_size=16", "patience=0")),
        ("stuck", (2, 9), ("batch_size=16", "lr=0.0", "patience=3", "prompt_dropout=0.0")),
    ],
)
def test_a_second_call_resumes_exactly(
    prepared: Path, name: str, epochs: tuple[int, int], knobs: tuple[str, ...]
) -> None:
    """Two calls give the losses and weights of one call, also with prompt dropout. If the loss
    cannot improve, patience ends both runs at the same epoch.
    """
    whole = train(prepared, name, knobs=(*knobs, f"max_epoch={epochs[1]}"))
    first, second = (
        train(prepared, f"{name}_parts", knobs=(*knobs, f"max_epoch={last}")) for last in epochs
    )
    assert "Loaded checkpoint" in second and len(valid_losses(whole)) == 4
    assert valid_losses(first) + valid_losses(second) == valid_losses(whole)
    parts = weights(folder(prepared, f"{name}_parts"), "last")
    for key, tensor in weights(folder(prepared, name), "last").items():
        assert torch.equal(tensor, parts[key]), key


@pytest.mark.parametrize("knobs", [QUICK, ("max_update=9",), ("lr=0.0", "patience=2")])
def test_a_finished_run_is_left_alone(prepared: Path, knobs: tuple[str, ...]) -> None:
    """fairseq itself would train one more update and save it as the best."""
    date = f"done{len(knobs)}{knobs[0]}"
    files = [folder(prepared, date) / f"checkpoint_{name}.pt" for name in ("best", "last")]
    train(prepared, date, knobs=(*knobs, "prompt_dropout=0.0"))
    before = [sha256(file) for file in files]
    assert "this run has finished" in train(prepared, date, knobs=(*knobs, "prompt_dropout=0.0"))
    assert [sha256(file) for file in files] == before


def test_fine_tuning_trains_and_saves_the_whole_lm(prepared: Path) -> None:
    printed = train(prepared, "ft", "--fine_tune", knobs=("max_epoch=2", "warmup_updates=2"))
    total, trained = re.search(r"params: ([\d,]+) \(num. trained: ([\d,]+)\)", printed).groups()
    assert total == trained
    before, after = tiny.lm().state_dict(), weights(folder(prepared, "ft"))
    assert after.keys() == before.keys()
    name = "decoder.layers.0.fc1.weight"
    assert not torch.equal(after[name], before[name])
    call("sample", prepared, "--prompt_task", "KS", "--model_date", "ft", "--sample_date", "ft")


def test_train_ulm_writes_an_lm_that_the_next_stages_use(tmp_path: Path) -> None:
    tiny.write_corpus(tmp_path, UNIT_MODEL)
    shape = {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 32, "attention_heads": 2}
    knobs = [f"decoder_{name}={value}" for name, value in shape.items()]
    knobs += ["max_update=6", "warmup_updates=1", "tokens_per_sample=64", "max_tokens=512"]
    command = ("--workspace", tmp_path, "--unit_model", UNIT_MODEL, "--date", "a")
    command = ("ulm_prompt/train_ulm.py", *command, "--config", "tiny", "--set", *knobs)
    stage(*command)
    lm = Workspace(tmp_path).lm(UNIT_MODEL)
    assert {file.name for file in lm.iterdir()} == {"checkpoint_best.pt", "dict.txt", "ulm.json"}
    data_stages(tmp_path)
    train(tmp_path, "a", knobs=("max_epoch=1",))
    (lm / "ulm.json").unlink()
    assert "not trained here" in stage(*command, code=2)


def test_every_label_has_a_unit_of_its_own(tmp_path: Path) -> None:
    """Also if some embeddings are much longer than others. Then the unit nearest to a cluster's
    centre may belong to another cluster.
    """
    units = [str(unit) for unit in range(tiny.UNITS)]
    for seed in range(4):
        model = tiny.lm(width=64, seed=seed)
        with torch.no_grad():
            weight = model.decoder.embed_tokens.weight
            weight *= torch.exp(torch.randn(len(weight), 1) / 2)
        tiny.write_lm(tmp_path / str(seed), model, width=64)
        for number in (12, 30):
            assert len(set(spread_units(tmp_path / str(seed), units, number))) == number
