"""Compare training runs: two ranks (gloo, by torchrun) with one process, accumulated batches with
large batches, half precision with float32.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.files import holding
from pipeline.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.scoring.scores import valid_curve

UNIT_MODEL = "tiny100"
TUNED = ("lm_dropout=0.0", "warmup_updates=1", "batch_size=27")
EPOCH = 8  # updates: 203 rows in batches of 27
# 27 rows: shares of 14 and 13; the last batch has 14; valid's last batch has one utterance
PROMPT = ("batch_size=27", "max_epoch=3", "patience=0")
PROJECTED = ("space=projected", "init=quiet", "loss_on=answer", "batch_size=36", "update_freq=2")
LM = ("decoder_layers=1", "decoder_embed_dim=16", "decoder_ffn_embed_dim=32", "max_update=9",
      "lr=0.01", "warmup_updates=1", "clip_norm=0.0",
      "decoder_attention_heads=2", "tokens_per_sample=64", "topics=2",
      "max_tokens=400")  # fmt: skip


def prompt(root: Path, date: str, *knobs: str, flags: str = "") -> list[str]:
    command = f"train --workspace {root} --prompt_task KS --date {date} --unit_model {UNIT_MODEL}"
    return [*command.split(), *flags.split(), "--set", *PROMPT, *knobs]


def unit_lm(root: Path, date: str, *knobs: str) -> list[str]:
    command = f"train_ulm --workspace {root} --unit_model {unit_model('ulm', date)} --date {date}"
    return [*command.split(), "--config", "tiny", "--set", *LM, *knobs]


def unit_model(task: str, date: str) -> str:
    """Return the unit model of a run. An LM's run needs its own: a unit model keeps its LM."""
    return f"ulm_{date}" if task == "ulm" else UNIT_MODEL


def launch(world: int, commands: list[list[str]], *kill: int) -> subprocess.CompletedProcess:
    module = ["-m", "tests.ulm_prompt.stages_in_a_row", json.dumps(commands), *map(str, kill)]
    if world > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
        module = ["-m", *torchrun, *module]
    return subprocess.run(
        [sys.executable, *module], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with every run of this file, by one process and by two."""
    root = tmp_path_factory.mktemp("workspace")
    for name in (UNIT_MODEL, *(unit_model("ulm", date) for date in ("one", "two", "bfloat16"))):
        tiny.write_corpus(root, name)
    tiny.write_lm(Workspace(root).lm(UNIT_MODEL))
    data = ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess")
    whole = "prompt_dropout=0.0"
    one = [
        *([name, "--workspace", str(root), "--unit_model", UNIT_MODEL] for name in data),
        prompt(root, "one"),
        prompt(root, "one_projected", whole, *PROJECTED),
        unit_lm(root, "one", "update_freq=4"),
        prompt(root, "large", whole, "batch_size=203"),
        prompt(root, "accumulated", whole, "batch_size=51", "update_freq=4"),
        prompt(root, "bfloat16", "dtype=bfloat16"),
        prompt(root, "float16", flags="--dtype float16"),
        prompt(root, "tuned", *TUNED, flags="--fine_tune"),
        prompt(root, "tuned_bfloat16", *TUNED, "dtype=bfloat16", flags="--fine_tune"),
        unit_lm(root, "bfloat16", "update_freq=4", "dtype=bfloat16"),
    ]
    two = [
        prompt(root, "two"),
        prompt(root, "two_projected", whole, *PROJECTED),
        unit_lm(root, "two", "update_freq=2"),
        prompt(root, "killed"),
    ]
    alone = launch(1, one)
    assert alone.returncode == 0, alone.stderr
    killed = launch(2, two, EPOCH + 3)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    assert killed.stdout.count("-> ") == 4, "only one rank prints"
    again = launch(2, [two[-1], two[0]])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("Loaded checkpoint") == 1
    assert again.stdout.count("this run has finished") == 1
    return root


def curve(root: Path, task: str, date: str) -> dict[int, tuple[float, float]]:
    """Return updates -> the loss on valid, and the utterances of all ranks in a batch."""
    scores = valid_curve(Workspace(root).logs(task, unit_model(task, date), date) / "train.log")
    return {update: (score["loss"], score["bsz"]) for update, score in scores.items()}


def weights(root: Path, task: str, date: str) -> dict[str, torch.Tensor]:
    folder = Workspace(root).checkpoints(task, unit_model(task, date), date)
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]


@pytest.mark.parametrize(
    "run",
    ["KS one two", "KS one_projected two_projected", "KS one killed", "KS large accumulated",
     "ulm one two"],
)  # fmt: skip
def test_the_same_batches_train_the_same_prompt(trained: Path, run: str) -> None:
    """The curve and the weights are equal: for batches of odd size, batches without a row for one
    rank, accumulated batches, prompt dropout, and a resumed run after a rank was killed.
    """
    task, first, second = run.split()
    expected = curve(trained, task, first)
    assert len(expected) >= 3 and len(set(expected.values())) == len(expected)
    actual = curve(trained, task, second)
    assert actual.keys() == expected.keys()
    for update, (loss, utterances) in actual.items():
        assert loss == pytest.approx(expected[update][0], rel=1e-4)
        assert task == "ulm" or first == "large" or utterances == expected[update][1]
    first_weights = weights(trained, task, first)
    for name, tensor in weights(trained, task, second).items():
        if "k_proj.bias" not in name:  # shifts all logits of a query alike: the gradient is noise
            torch.testing.assert_close(tensor, first_weights[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "run", ["KS one bfloat16", "KS one float16", "KS tuned tuned_bfloat16", "ulm one bfloat16"]
)
def test_half_precision_learns_like_float32(trained: Path, run: str) -> None:
    """A prompt stays in float32; a whole LM does not."""
    task, first, second = run.split()
    expected, actual = (curve(trained, task, date) for date in (first, second))
    assert actual.keys() == expected.keys() and actual != expected
    for update, (loss, _) in actual.items():
        assert loss == pytest.approx(expected[update][0], rel=0.02)
    is_half = [
        torch.equal(tensor, tensor.bfloat16().float())
        for tensor in weights(trained, task, second).values()
        if tensor.abs().sum() > 0
    ]
    assert all(is_half) if first == "tuned" or task == "ulm" else not any(is_half)
    if task == "KS":
        record = read_record(Workspace(trained).checkpoints(task, UNIT_MODEL, second))
        assert record.training["dtype"] in second


def test_one_run_at_a_time_on_one_output(trained: Path) -> None:
    folder = Workspace(trained).checkpoints("KS", UNIT_MODEL, "one")
    with holding(folder):
        refused = launch(2, [prompt(trained, "one")])
    assert refused.returncode != 0
    assert refused.stderr.count(f"{folder}: another process is writing there") == 1
    assert signal.Signals.SIGKILL.name not in refused.stderr
