"""Compare our decoding with the published method, on the same weights and utterances.

python -m tests.benchmarks.bench_decode [--every N] [--large N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.rows import Row
from pipeline.torch_files import save_torch
from pipeline.workspace import Workspace
from tests.benchmarks import measure
from tests.benchmarks.measure import DEVICE, Result, dtype_name, read_split, report, timed
from tests.benchmarks.published import decode_as_published
from tests.conftest import DATA, stage
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import prepare
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.lm import choose_dtype
from ulm_prompt.prompt_lm.search import Options, decode
from ulm_prompt.using.predictor import Predictor

DOWNSTREAMS = {"KS": "speech_commands", "IC": "fluent_commands"}
BLOCK = 64


def blocks(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Sort the rows by length and cut them into blocks, as decoding batches a whole split."""
    ordered = sorted(rows, key=lambda row: row.units.count(" "))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def compare(
    name: str, shape: str, row_blocks: list[list[Row]], dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Report and return milliseconds per utterance: published (always float32), ours.

    Ours runs before and after the published method, so that other work on the machine slows both.
    Random weights never end an answer. So both stop where a trained prompt stops: after the labels
    and one step for ``</s>``. Ours also computes the answer within the label set.
    """
    published_model, our_model = (measure.random_model(shape, 6).eval() for _ in range(2))
    our_model.prompt.load_state_dict(published_model.prompt.state_dict())
    dictionary = tiny.dictionary()

    def indices(text: str) -> list[int]:
        return [dictionary.index(symbol) for symbol in text.split()]

    labels = [indices(row.labels) for block in row_blocks for row in block]
    count = len(labels[0])
    sets = LabelSets.build("slots", labels, len(dictionary), dictionary.eos())
    options = Options(max_labels=count + 1)
    lm = CachedLM(our_model, dictionary.pad(), dictionary.eos(), dtype)
    token_blocks = [
        [torch.tensor(indices(f"</s> {row.units} <s>")) for row in block] for block in row_blocks
    ]

    def published(block: list[torch.Tensor]) -> dict[int, list[int]]:
        return dict(decode_as_published(published_model, block, count))

    def cached(block: list[torch.Tensor]) -> dict[int, list[int]]:
        batches = decode(lm, block, sets, options)
        return {answer.row: answer.free.symbols[:count] for batch in batches for answer in batch}

    cached(token_blocks[0][:8])  # warm up
    equal, published_seconds, our_seconds = 0, 0.0, 0.0
    for block in token_blocks:
        before, answers = timed(lambda block=block: cached(block))
        seconds, expected = timed(lambda block=block: published(block))
        after, _ = timed(lambda block=block: cached(block))
        equal += sum(expected[row] == answers[row] for row in expected)
        published_seconds += seconds
        our_seconds += (before + after) / 2
    total = sum(map(len, token_blocks))
    parameters = sum(parameter.numel() for parameter in our_model.lm.parameters())
    tokens = sum(len(row) + count for block in token_blocks for row in block)
    published_ms, our_ms = 1e3 * published_seconds / total, 1e3 * our_seconds / total
    shapes = measure.product_shapes(sum(map(len, token_blocks[0])), our_model.lm.decoder.embed_dim)
    achieved = 2 * parameters * tokens / our_seconds / 1e9
    note = f"random weights: {equal} of {total} answers equal"
    what = f"decode {name}, {total} utterances, {dtype_name(dtype)}"
    rate = measure.matrix_rate(dtype, *shapes)
    report(Result(what, published_ms, our_ms, "ms per utterance", achieved, rate, note))
    return published_ms, our_ms


def equal_answers(dtype: str) -> None:
    """Report how many answers of the repository's prompt are equal in ``dtype`` and float32."""
    clips = sorted((DATA / "audio/speech_commands/speech_commands_test_set_v0.01").rglob("*.wav"))
    if not clips:
        print("no clips found: answers of trained weights are not compared")
        return
    exact, rounded = ([answers["KS"][0].names for answers in Predictor.load(dtype=name)(clips)]
                      for name in ("float32", dtype))  # fmt: skip
    equal = sum(names == rounded_names for names, rounded_names in zip(exact, rounded))
    print(f"trained weights, {len(clips)} real clips: {equal} answers in {dtype} as in float32")


def start_up() -> None:
    """Report the time of sample.py on a tiny LM and 29 utterances, beyond ``import torch``."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace = Workspace(root)
        prepare(root, "speech_commands")
        model = tiny.prompted()
        target = workspace.checkpoints("KS", "tiny100", "d") / "checkpoint_best.pt"
        save_torch({"model": {**model.lm.state_dict(), **model.state_dict()}}, target)
        flags = ("--workspace", root, "--model_date", "d", "--sample_date")
        commands: tuple[Callable[[int], object], ...] = (
            lambda _: subprocess.run([sys.executable, "-c", "import torch"]),
            lambda _: subprocess.run([sys.executable, "-c", "import fairseq"]),
            lambda turn: stage("ulm_prompt/sample.py", *flags, turn),  # a new output per turn
        )
        times = [[timed(lambda: run(turn))[0] for run in commands] for turn in range(3)]  # noqa: B023
    torch_ms, fairseq_ms, sample_ms = (1e3 * min(seconds) for seconds in zip(*times))
    what = "start-up of sample.py on a tiny LM, 29 utterances, beyond import torch"
    note = f"import torch {torch_ms:.0f} ms; published: import of all of fairseq"
    report(Result(what, fairseq_ms - torch_ms, sample_ms - torch_ms, "ms", note=note))


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--every", type=int, default=12, help="3.2M LM: one of N blocks of 64 (default: 12)")
    flag("--large", type=int, default=16, help="151M LM: utterances; 0 skips it (default: 16)")
    args = parser.parse_args(arguments)
    dtype, reason = choose_dtype("auto", DEVICE, 151_263_232)
    print(f"{measure.machine()}; auto: {dtype}, {reason}")
    start_up()
    tasks = {task: read_split(name, "test") for task, name in DOWNSTREAMS.items()}
    published, ours = 0.0, 0.0  # milliseconds for whole splits
    for task, rows in tasks.items():
        row_blocks = blocks(rows, BLOCK)
        row_blocks = row_blocks[args.every // 2 :: args.every] or row_blocks
        published_ms, our_ms = compare(f"{task} test, 3.2M LM", "3.2M", row_blocks)
        published, ours = published + len(rows) * published_ms, ours + len(rows) * our_ms
    print(f"KS and IC test, whole splits: {published / ours:.1f}x")
    if args.large:
        row_blocks = blocks(tasks["IC"], args.large)
        for lm_dtype in dict.fromkeys((torch.float32, dtype)):
            compare("IC test, 151M LM", "151M", [row_blocks[len(row_blocks) // 2]], lm_dtype)
    equal_answers("bfloat16")


if __name__ == "__main__":
    main(sys.argv[1:])
