"""A user's mistakes: one line that names the file or flag, exit code 2, nothing half-written; and
runs that would not be what was asked for, refused before they begin.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.workspace import Workspace
from tests.reliability.hostile import refused
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, stage
from ulm_prompt.prompt_data import tasks
from ulm_prompt.prompt_lm.lm import load_unit_lm
from ulm_prompt.train_ulm import choose_recipe

UNIT_MODEL = "tiny100"
TEXT_STAGES = ("make_data", "gen_labelspace", "verbalizer")
DATA_STAGES = (*TEXT_STAGES, "fairseq_preprocess")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny.write_corpus(tmp_path, UNIT_MODEL)
    return tmp_path


def rows_path(root: Path, split: str) -> Path:
    return Workspace(root).rows("speech_commands", UNIT_MODEL, split)


def first_row(split: str, row: str) -> Callable[[Path], None]:
    def replace(root: Path) -> None:
        _, *rest = rows_path(root, split).read_text().splitlines(keepends=True)
        rows_path(root, split).write_text("".join([row + "\n", *rest]))

    return replace


def few_units(root: Path) -> None:
    rows_path(root, "train").write_text("".join(f"{i}.wav|1 2|{i}\n" for i in range(5)))


def edit_verbal(root: Path) -> None:
    path = Workspace(root).datasets(UNIT_MODEL) / "verbal.json"
    path.write_text(path.read_text().replace('"0": "0"', '"0": "50"'))


@pytest.mark.parametrize(
    ("done", "mistake", "stages", "message"),
    [
        (0, lambda root: rows_path(root, "valid").unlink(), DATA_STAGES[:1], "valid: this split"),
        (0, first_row("test", "silent.wav||3"), DATA_STAGES[:1], "test, line 1: expected file|"),
        (0, first_row("train", "a.wav|1 2|1 2"), DATA_STAGES[:1], "1 label(s) an utterance, found"),
        (2, first_row("test", "a.wav|1|77"), ("make_data", "verbalizer"), "label 77"),
        (0, few_units, TEXT_STAGES, "5 labels but only 2 distinct units"),
        (3, first_row("train", "a.wav|1 2 3|1"), ("make_data", "fairseq_preprocess"),
         "verbal.json: stale"),
        (3, first_row("test", "a.wav|1 2 3|1"), DATA_STAGES[3:], "make_data.py again"),
        (3, edit_verbal, DATA_STAGES[3:], "verbal.json: stale"),
        (0, first_row("valid", "a.wav|1 2 100|1"), DATA_STAGES, "line 1: unit 100 is not in"),
    ],
)  # fmt: skip
def test_rows_and_texts(
    root: Path, done: int, mistake: Callable[[Path], None], stages: tuple[str, ...], message: str
) -> None:
    """A mistake is made after so many stages are ``done``; the last of ``stages`` refuses it."""
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    for name in DATA_STAGES[:done]:
        call(name, root)
    mistake(root)
    for name in stages[:-1]:
        call(name, root)
    assert message in stage(f"ulm_prompt/{stages[-1]}.py", "--workspace", root, code=2)
    assert not Workspace(root).data_bin(UNIT_MODEL, "KS").exists()
    assert not [path for path in root.rglob(".*") if ".tmp" in path.name or ".old" in path.name]


def test_flags_that_name_nothing(root: Path) -> None:
    for script, flags, message in (
        ("make_data", "--prompt_task XX", "--prompt_task XX: no such task; expected one of KS, IC"),
        ("make_data", "--prompt_task kS", r"no such task \(did you mean KS\?\)"),
        ("make_data", f"--workspace {root}/empty", "no quantised data"),
        ("train", "--date a --set sched=cosine", "sched: not known"),
        ("train", "--date a --recipe quick", "recipe quick: expected"),
        ("sample", "--model_date none --sample_date a", "correct --model_date"),
    ):
        with pytest.raises(UserError, match=message):
            call(script, root, *flags.split())
    assert not (root / "checkpoints").exists()
    for name in TEXT_STAGES:
        call(name, root)
    with pytest.raises(UserError, match=r"dict\.txt: not found.*train_ulm\.py"):
        call("fairseq_preprocess", root)


def test_only_what_the_flags_ask_for_is_parsed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 22 tasks; it takes a stage 0.2 s to parse them all."""
    parsed, load = [], tasks.load_config
    monkeypatch.setattr(
        tasks, "load_config", lambda kind, path: parsed.append(path.stem) or load(kind, path)
    )
    flags = argparse.Namespace(workspace=root, prompt_task="KS", unit_model=None)
    assert [pair.task for pair in tasks.find_pairs(flags)] == ["KS"] and set(parsed) == {"KS"}
    samples = Path(f"samples_KS_{UNIT_MODEL}_d.json")
    assert tasks.pair_of(Workspace(root), samples).task == "KS" and set(parsed) == {"KS"}
    flags.prompt_task = None
    assert [pair.task for pair in tasks.find_pairs(flags)] == ["KS"]
    assert not {"IC", "ESC50", "TABLE"} & set(parsed)


def test_an_lm_is_not_trained_on_other_text_under_the_same_date(root: Path) -> None:
    command = ("ulm_prompt/train_ulm.py", "--workspace", root, "--unit_model", UNIT_MODEL)
    command += ("--date", "a", "--config", "tiny", "--set", "max_update=60", "decoder_layers=1")
    stage(*command)
    before = (Workspace(root).lm(UNIT_MODEL) / "checkpoint_best.pt").read_bytes()
    assert "this run has finished" in stage(*command)
    assert (Workspace(root).lm(UNIT_MODEL) / "checkpoint_best.pt").read_bytes() == before
    assert "another recipe" in stage(*command, "lr=0.1", code=2)
    first_row("train", "a.wav|1 2 3|1")(root)
    assert "another text" in stage(*command, code=2)


def choose(root: Path, **others: object) -> object:
    values = {"unit_model": UNIT_MODEL, "date": "a", "config": "tiny", "set": [], "dtype": None}
    args = argparse.Namespace(**values | {"begin_from": None} | others)
    return choose_recipe(args, Workspace(root))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("sample_break_mode=none", "topics=4: needs sample_break_mode=eos"),
        ("sample_break_mode=line", "sample_break_mode=line: expected one of eos, none"),
        ("decoder_attention_heads=5", "expected a divisor of decoder_embed_dim=128"),
        ("lr_schedule=linear", "lr_schedule=linear: expected one of fixed, cosine"),
        ("dropout=7", "dropout=7.0: expected 0 or more, below 1"),
        ("lr=inf", r"lr=inf: expected at least 0, below 2\*\*32"),
        ("lr=fast", "lr: Value 'fast' of type 'str' could not be converted to Float"),
        ("update_freq=0", "update_freq=0: expected at least 1"),
        ("max_update=50 warmup_updates=50", "the cosine schedule ends there"),
        ("dtype=int8", "dtype=int8: expected one of float32"),
    ],
)
def test_knobs_of_an_lm(tmp_path: Path, knobs: str, message: str) -> None:
    """Told before anything is written."""
    with pytest.raises(UserError, match=message):
        choose(tmp_path, set=knobs.split())
    assert not list(tmp_path.iterdir())


def test_an_lm_where_no_stage_would_look(tmp_path: Path) -> None:
    table = tmp_path / "pretrained_models" / "my_unit_models.yaml"
    table.parent.mkdir()
    entry = "{mine: {feature_type: logmel, clusters: 9, lm: {path: elsewhere}}}"
    table.write_text(f"unit_models: {entry}")
    with pytest.raises(UserError, match="mine: its LM is .*elsewhere, which the other stages read"):
        choose(tmp_path, unit_model="mine")


def test_an_lm_resumes_in_the_dtype_it_began_in(tmp_path: Path) -> None:
    """Whatever this machine would choose."""
    folder = Workspace(tmp_path).checkpoints("ulm", UNIT_MODEL, "a")
    write_json(folder / "run.json", {"recipe": {"dtype": "bfloat16"}})
    (folder / "checkpoint_last.pt").touch()
    for asked, wanted in {"auto": "bfloat16", "float32": "float32"}.items():
        assert choose(tmp_path, dtype=asked).dtype == wanted


def test_units_of_two_kmeans_make_no_lm(tmp_path: Path) -> None:
    for number, downstream in enumerate(tiny.LABELS):
        tiny.write_corpus(tmp_path, downstream=downstream)
        record = {"plan": {"kmeans": f"hash{number}"}}
        folder = Workspace(tmp_path).rows(downstream, UNIT_MODEL, "quantized")
        write_json(folder / "provenance.json", record)
    flags = ("--unit_model", UNIT_MODEL, "--date", "a", "--config", "tiny")
    with pytest.raises(UserError, match=r"speech_commands/.*: quantised with different k-means"):
        call("train_ulm", tmp_path, *flags)


@pytest.fixture(scope="module")
def trained(prepared: Path) -> Path:
    call("train", prepared, "--date", "d", "--set", "max_update=1")
    return prepared


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--set lm_dropout=0.5", "a prompt's LM is frozen"),
        ("--set seed=-1", "seed=-1: expected at least 0"),
        (f"--set seed={2**40}", f"seed={2**40}: expected at least 0, below"),
        ("--set value_lr_scale=nan", "value_lr_scale=nan: expected at least 0"),
        ("--set lr_schedule=cosin", "expected one of fixed"),
        ("--set lr_schedule=inverse_sqrt warmup_updates=0", "needs at least 1"),
        ("--infix_prompt_length -1", "expected 0 or more"),
        ("--infix_prompt_length 2 --prefix_prompt_length 3", "input vectors only"),
        ("--infix_prompt_length 2 --fine_tune", "says how a prompt is trained"),
        ("--fine_tune --set verbalizer=learnable", "belongs to a prompt"),
        ("--fine_tune --set warmup_updates=0", "needs at least 1"),
        ("--fine_tune --prefix_prompt_length 50", "--prefix_prompt_length: says how a prom"),
        ("--fine_tune --set space=projected", "--set space: says how a prompt is trained"),
    ],
)
def test_knobs_of_a_prompt(trained: Path, flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call("train", trained, "--date", "e", *flags.split())
    assert not Workspace(trained).checkpoints("KS", UNIT_MODEL, "e").exists()


def test_units_that_the_dict_lacks_are_not_decoded(trained: Path, tmp_path: Path) -> None:
    """The binaries are older, and sample.py does not read them."""
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    first_row("test", "a.wav|777 1 2|1")(root)
    for script in TEXT_STAGES:
        call(script, root)
    with pytest.raises(UserError, match=r"test\.txt, line 1: unit 777 is not in .*dict\.txt"):
        call("sample", root, "--model_date", "d", "--sample_date", "s")


def test_answers_that_could_not_be_whole(trained: Path) -> None:
    flags = ("--prompt_task", "IC", "--model_date", "d", "--sample_date", "s", "--max_labels", 2)
    with pytest.raises(UserError, match="--max_labels 2: an answer to IC has 3 labels"):
        call("sample", trained, *flags)


def setting(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda state: setattr(state["args"], name, value)


def weight(name: str, value: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["model"].update({f"decoder.{name}": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("decoder_layers", 4), "decoder_layers=4 is not supported; expected 3"),
        (setting("decoder_ffn_embed_dim", 40), "checkpoint_best.pt"),
        (setting("decoder_attention_heads", 5), "checkpoint_best.pt"),
        (setting("decoder_layers", "3"), "checkpoint_best.pt"),
        (setting("activation_fn", "exec"), "checkpoint_best.pt"),
        (lambda state: state["model"].pop("decoder.layers.1.fc1.weight"),
         "is missing decoder.layers.1.fc1.weight"),
        (weight("extra", torch.zeros(2)), "unexpected decoder.extra"),
        (weight("layers.1.fc1.bias", torch.zeros(3)), "misshapen decoder.layers.1.fc1.bias"),
    ],
)  # fmt: skip
def test_an_lm_that_is_not_whole(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    tiny.write_lm(tmp_path)
    assert len(load_unit_lm(tmp_path).dictionary) == 104
    state = torch.load(tmp_path / "checkpoint_best.pt", weights_only=False)
    change(state)
    torch.save(state, tmp_path / "checkpoint_best.pt")
    assert message in refused(lambda: load_unit_lm(tmp_path))


def test_an_lm_beside_another_dict(tmp_path: Path) -> None:
    tiny.write_lm(tmp_path)
    (tmp_path / "dict.txt").write_text("0 1\n1 1\n")
    assert "6 symbols, but checkpoint_best.pt has 104" in refused(lambda: load_unit_lm(tmp_path))
