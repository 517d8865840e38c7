"""A user's mistake gives one line that names the file or flag, exit code 2 and no partial files.
Runs that would not be as requested are refused before they begin.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

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


def damage(root: Path, split: str, row: str) -> None:
    """Replace the first row of a split by ``row``. If ``row`` is empty, remove the split."""
    path = Workspace(root).rows("speech_commands", UNIT_MODEL, split)
    _, *rest = path.read_text().splitlines(keepends=True)
    if row:
        path.write_text("".join([row + "\n", *rest]))
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("done", "split", "row", "stages", "message"),
    [
        (0, "valid", "", DATA_STAGES[:1], "valid: this split"),
        (0, "test", "silent.wav||3", DATA_STAGES[:1], "test, line 1: expected file|"),
        (0, "train", "a.wav|1 2|1 2", DATA_STAGES[:1], "1 label(s) per utterance, found"),
        (2, "test", "a.wav|1|77", ("make_data", "verbalizer"), "label 77"),
        (3, "train", "a.wav|1 2|1", ("make_data", "fairseq_preprocess"), "verbal.json: stale"),
        (3, "test", "a.wav|1 2 3|1", DATA_STAGES[3:], "make_data.py again"),
        (0, "valid", "a.wav|1 2 100|1", DATA_STAGES, "line 1: unit 100 is not in"),
    ],
)
def test_rows(
    root: Path, done: int, split: str, row: str, stages: tuple[str, ...], message: str
) -> None:
    """The rows are damaged after ``done`` stages. The last of ``stages`` refuses them."""
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    for name in DATA_STAGES[:done]:
        call(name, root)
    damage(root, split, row)
    for name in stages[:-1]:
        call(name, root)
    assert message in stage(f"ulm_prompt/{stages[-1]}.py", "--workspace", root, code=2)
    assert not Workspace(root).data_bin(UNIT_MODEL, "KS").exists()
    assert not [path for path in root.rglob(".*") if ".tmp" in path.name or ".old" in path.name]


def test_maps(root: Path) -> None:
    """An edited map is refused, and so are more labels than units can name."""
    for name in TEXT_STAGES:
        call(name, root)
    with pytest.raises(UserError, match=r"dict\.txt: not found.*train_ulm\.py"):
        call("fairseq_preprocess", root)
    path = Workspace(root).datasets(UNIT_MODEL) / "verbal.json"
    path.write_text(path.read_text().replace('"0": "0"', '"0": "50"'))
    with pytest.raises(UserError, match=r"verbal\.json: stale, KS's map has changed"):
        call("fairseq_preprocess", root)
    rows = "".join(f"{i}.wav|1 2|{i}\n" for i in range(5))
    Workspace(root).rows("speech_commands", UNIT_MODEL, "train").write_text(rows)
    with pytest.raises(UserError, match="5 labels but only 2 distinct units"):
        for name in TEXT_STAGES:
            call(name, root)


def test_only_the_requested_tasks_are_parsed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing all 22 tasks takes a stage 0.2 s."""
    parsed, load = [], tasks.load_config
    monkeypatch.setattr(
        tasks, "load_config", lambda kind, path: parsed.append(path.stem) or load(kind, path)
    )
    call("make_data", root, "--prompt_task", "KS")
    samples = Path(f"samples_KS_{UNIT_MODEL}_d.json")
    assert tasks.pair_of(Workspace(root), samples).task == "KS" and set(parsed) == {"KS"}
    call("make_data", root)
    assert not {"IC", "ESC50", "TABLE"} & set(parsed)


@pytest.fixture(scope="module")
def trained(prepared: Path) -> Path:
    """Prompts of date d, and a table of the user's own unit models."""
    call("train", prepared, "--date", "d", "--set", "max_update=1")
    table = prepared / "pretrained_models" / "my_unit_models.yaml"
    entry = "{elsewhere: {feature_type: logmel, clusters: 9, lm: {path: other}}}"
    table.write_text(f"unit_models: {entry}")
    yield prepared
    table.unlink()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make_data --prompt_task XX", "--prompt_task XX: no such task; expected one of KS, IC"),
        ("make_data --prompt_task kS", r"no such task \(did you mean KS\?\)"),
        ("make_data --unit_model none", "no quantised data for any task with none; make it with"),
        ("sample --model_date none", "correct --model_date"),
        ("sample --model_date d --prompt_task IC --max_labels 2", "has 3 labels; choose at least"),
        ("sample --model_date d --beam 0", "--beam 0: expected at least 1"),
        ("sample --model_date d --temperature inf --sampling", "inf: expected 0.001 to 1000"),
        ("sample --model_date d --beam 2 --lenpen nan", "--lenpen nan: expected -10 to 10"),
        ("sample --model_date d --beam 2 --lenpen -100", "--lenpen -100.0: expected -10 to 10"),
        (f"sample --model_date d --sampling --seed {2**40}", f"--seed {2**40}: expected 0 to"),
        ("sample --model_date d --sampling --beam 2", "choose one"),
        ("sample --model_date d --topk 5", "add it"),
        ("sample --model_date d --sampling --topk 5 --topp 0.9", "choose one"),
        ("sample --model_date d --temperature 2", "changes no greedy answer"),
        ("sample --model_date d --lenpen 0.5", "belongs to --beam"),
        ("sample --model_date d --sampling --topp 1.5", "--topp 1.5: expected 0 to 1"),
        ("train --recipe quick", "recipe quick: expected"),
        ("train --set sched=cosine", "sched: not known"),
        ("train --set lm_dropout=0.5", "a prompt's LM is frozen"),
        ("train --set seed=-1", "seed=-1: expected at least 0"),
        (f"train --set seed={2**40}", f"seed={2**40}: expected at least 0, below"),
        ("train --set value_lr_scale=nan", "value_lr_scale=nan: expected at least 0"),
        ("train --set lr_schedule=cosin", "expected one of fixed"),
        ("train --set lr_schedule=inverse_sqrt warmup_updates=0", "needs at least 1"),
        ("train --infix_prompt_length -1", "expected 0 or more"),
        ("train --infix_prompt_length 2 --prefix_prompt_length 3", "excludes a prefix"),
        ("train --infix_prompt_length 2 --fine_tune", "_length: --fine_tune trains no prompt"),
        ("train --fine_tune --set verbalizer=learnable", "=learnable: --fine_tune trains no"),
        ("train --fine_tune --set warmup_updates=0", "needs at least 1"),
        ("train --fine_tune --prefix_prompt_length 50", "--prefix_prompt_length: --fine_tune tra"),
        ("train --fine_tune --set space=projected", "--set space: --fine_tune trains no prompt"),
        ("train_ulm --config quick", "^--config quick: expected one of gslm"),
        ("train_ulm --set sample_break_mode=none", "topics=4: needs sample_break_mode=eos"),
        ("train_ulm --set sample_break_mode=line", "=line: expected one of eos, none"),
        ("train_ulm --set decoder_attention_heads=5", "a divisor of decoder_embed_dim=128"),
        ("train_ulm --set lr_schedule=linear", "=linear: expected one of fixed, cosine"),
        ("train_ulm --set dropout=7", "dropout=7.0: expected 0 or more, below 1"),
        ("train_ulm --set lr=inf", r"lr=inf: expected at least 0, below 2\*\*32"),
        ("train_ulm --set lr=fast", "'fast' of type 'str' could not be converted to Float"),
        ("train_ulm --set update_freq=0", "update_freq=0: expected at least 1"),
        ("train_ulm --set max_update=50 warmup_updates=50", "lr_schedule=cosine needs more"),
        ("train_ulm --set dtype=int8", "dtype=int8: expected one of float32"),
        ("train_ulm --unit_model elsewhere", "its LM is .*other, which the other stages read"),
    ],
)
def test_flags_and_knobs(trained: Path, command: str, message: str) -> None:
    """Mistakes are found before anything is written."""
    script, *flags = command.split()
    flags = {"train": ["--date", "e"], "sample": ["--sample_date", "e"],
             "train_ulm": ["--date", "e", "--config", "tiny", "--unit_model", UNIT_MODEL],
             }.get(script, []) + flags  # fmt: skip
    with pytest.raises(UserError, match=message):
        call(script, trained, *flags)
    assert not [*trained.glob("checkpoints/*_e"), *trained.glob("samples/*_e")]


def test_an_lm_is_not_trained_on_other_text_under_the_same_date(root: Path) -> None:
    command = ("ulm_prompt/train_ulm.py", "--workspace", root, "--unit_model", UNIT_MODEL)
    command += ("--date", "a", "--config", "tiny", "--set", "max_update=20", "warmup_updates=2")
    stage(*command)
    before = (Workspace(root).lm(UNIT_MODEL) / "checkpoint_best.pt").read_bytes()
    assert "this run has finished" in stage(*command)
    assert (Workspace(root).lm(UNIT_MODEL) / "checkpoint_best.pt").read_bytes() == before
    assert "another recipe" in stage(*command, "lr=0.1", code=2)
    damage(root, "train", "a.wav|1 2 3|1")
    assert "another text" in stage(*command, code=2)


def test_an_lm_resumes_in_the_dtype_it_began_in(tmp_path: Path) -> None:
    """The dtype that this machine would choose does not matter."""
    folder = Workspace(tmp_path).checkpoints("ulm", UNIT_MODEL, "a")
    write_json(folder / "run.json", {"recipe": {"dtype": "bfloat16"}})
    (folder / "checkpoint_last.pt").touch()
    flags = {"unit_model": UNIT_MODEL, "date": "a", "config": "tiny", "set": [], "begin_from": None}
    for dtype, expected in {"auto": "bfloat16", "float32": "float32"}.items():
        args = argparse.Namespace(dtype=dtype, **flags)
        assert choose_recipe(args, Workspace(tmp_path)).dtype == expected


def test_units_of_two_kmeans_make_no_lm(tmp_path: Path) -> None:
    for number, downstream in enumerate(tiny.LABELS):
        tiny.write_corpus(tmp_path, downstream=downstream)
        folder = Workspace(tmp_path).rows(downstream, UNIT_MODEL, "quantized")
        write_json(folder / "provenance.json", {"plan": {"kmeans": f"hash{number}"}})
    flags = ("--unit_model", UNIT_MODEL, "--date", "a", "--config", "tiny")
    with pytest.raises(UserError, match=r"speech_commands/.*: quantised with different k-means"):
        call("train_ulm", tmp_path, *flags)


def test_units_missing_from_the_dict_are_not_decoded(trained: Path, tmp_path: Path) -> None:
    """sample.py does not read the binaries, which are older than the text."""
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    damage(root, "test", "a.wav|777 1 2|1")
    for script in TEXT_STAGES:
        call(script, root)
    with pytest.raises(UserError, match=r"test\.txt, line 1: unit 777 is not in .*dict\.txt"):
        call("sample", root, "--model_date", "d", "--sample_date", "s")


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("args", "decoder_layers", 4, "decoder_layers=4 is not supported; expected 3"),
        ("args", "decoder_ffn_embed_dim", 40, "checkpoint_best.pt"),
        ("args", "decoder_attention_heads", 5, "checkpoint_best.pt"),
        ("args", "decoder_layers", "3", "checkpoint_best.pt"),
        ("args", "activation_fn", "exec", "checkpoint_best.pt"),
        ("model", "decoder.layers.1.fc1.weight", None, "is missing decoder.layers.1.fc1.weight"),
        ("model", "decoder.extra", torch.zeros(2), "unexpected decoder.extra"),
        ("model", "decoder.layers.1.fc1.bias", torch.zeros(3), "misshapen decoder.layers.1.fc1.b"),
        ("dict.txt", "", "0 1\n1 1\n", "6 symbols, but checkpoint_best.pt has 104"),
    ],
)
def test_a_damaged_lm(tmp_path: Path, part: str, name: str, value: object, message: str) -> None:
    tiny.write_lm(tmp_path)
    assert len(load_unit_lm(tmp_path).dictionary) == 104
    state = torch.load(tmp_path / "checkpoint_best.pt", weights_only=False)
    if part == "dict.txt":
        (tmp_path / part).write_text(value)
    elif value is None:
        del state[part][name]
    else:
        (vars(state[part]) if part == "args" else state[part])[name] = value
    torch.save(state, tmp_path / "checkpoint_best.pt")
    assert message in refused(lambda: load_unit_lm(tmp_path))
