"""Decoding against the published way of it, side by side on the same weights and utterances.

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
from tests.benchmarks.measure import DEVICE, Result, report, rows_of, timed
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
    """The split in order of length, cut in blocks: what a batch of the whole split looks like."""
    ordered = sorted(rows, key=lambda row: row.units.count(" "))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def compare(
    name: str, shape: str, parts: list[list[Row]], dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Report milliseconds an utterance both ways, and return them. The published way is float32.

    The two take turns, ours before and after the other, so that other work on the machine falls on
    both. Random weights end no answer: both are cut where a trained prompt's ends, the labels and
    one look for ``</s>``. Ours gives the answer within the label set too.
    """
    theirs, mine = (measure.a_model(shape, 6).eval() for _ in range(2))
    mine.prompt.load_state_dict(theirs.prompt.state_dict())
    dictionary = tiny.dictionary()

    def indices(text: str) -> list[int]:
        return [dictionary.index(symbol) for symbol in text.split()]

    labels = [indices(row.labels) for part in parts for row in part]
    count = len(labels[0])
    sets = LabelSets.build("slots", labels, len(dictionary), dictionary.eos())
    options = Options(max_labels=count + 1)
    lm = CachedLM(mine, dictionary.pad(), dictionary.eos(), dtype)
    rows = [[torch.tensor(indices(f"</s> {row.units} <s>")) for row in part] for part in parts]

    def published(part: list[torch.Tensor]) -> dict[int, list[int]]:
        return dict(decode_as_published(theirs, part, count))

    def cached(part: list[torch.Tensor]) -> dict[int, list[int]]:
        batches = decode(lm, part, sets, options)
        return {one.row: one.free.symbols[:count] for batch in batches for one in batch}

    cached(rows[0][:8])  # warm up
    same, spent = 0, [0.0, 0.0]
    for part in rows:
        before, answers = timed(lambda part=part: cached(part))
        first, expected = timed(lambda part=part: published(part))
        after, _ = timed(lambda part=part: cached(part))
        same += sum(expected[row] == answers[row] for row in expected)
        spent = [spent[0] + first, spent[1] + (before + after) / 2]
    total = sum(map(len, rows))
    parameters = sum(parameter.numel() for parameter in mine.lm.parameters())
    tokens = sum(len(row) + count for part in rows for row in part)
    published_ms, ours_ms = (1e3 * seconds / total for seconds in spent)
    shapes = measure.product_shapes(sum(map(len, rows[0])), mine.lm.decoder.embed_dim)
    achieved = 2 * parameters * tokens / spent[1] / 1e9
    note = f"random weights: {same} of {total} answers equal"
    what = f"decode {name}, {total} utterances, {str(dtype).removeprefix('torch.')}"
    rate = measure.matrix_rate(dtype, *shapes)
    report(Result(what, published_ms, ours_ms, "ms an utterance", achieved, rate, note))
    return published_ms, ours_ms


def equal_answers(dtype: str) -> None:
    """Report how many answers of the repository's trained prompt are the same in ``dtype``."""
    clips = sorted((DATA / "audio/speech_commands/speech_commands_test_set_v0.01").rglob("*.wav"))
    if not clips:
        print("no clips at hand: answers of trained weights are not compared")
        return
    exact, rounded = (
        [answers["KS"][0].names for answers in Predictor.load(dtype=name)(clips)]
        for name in ("float32", dtype)
    )
    same = sum(one == other for one, other in zip(exact, rounded))
    print(f"trained weights, {len(clips)} real clips: {same} answers in {dtype} as in float32")


def start_up() -> None:
    """All of sample.py on a tiny LM and 29 utterances, beside the imports that it needs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace = Workspace(root)
        prepare(root, "speech_commands")
        model = tiny.prompted()
        target = workspace.checkpoints("KS", "tiny100", "d") / "checkpoint_best.pt"
        save_torch({"model": {**model.lm.state_dict(), **model.state_dict()}}, target)
        flags = ("--workspace", root, "--model_date", "d", "--sample_date")
        works: tuple[Callable[[int], object], ...] = (
            lambda _: subprocess.run([sys.executable, "-c", "import torch"]),
            lambda _: subprocess.run([sys.executable, "-c", "import fairseq"]),
            lambda turn: stage("ulm_prompt/sample.py", *flags, turn),  # a new output each
        )
        times = [[timed(lambda: work(turn))[0] for work in works] for turn in range(3)]  # noqa: B023
    torch_alone, all_of_fairseq, ours = (1e3 * min(seconds) for seconds in zip(*times))
    beyond = "start-up of sample.py on a tiny LM, 29 utterances, beyond import torch"
    note = f"import torch {torch_alone:.0f} ms; beside it all of fairseq's import"
    report(Result(beyond, all_of_fairseq - torch_alone, ours - torch_alone, "ms", note=note))


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--every", type=int, default=12, help="one of so many blocks of 64, 3.2M LM")
    flag("--large", type=int, default=16, help="utterances for the 151M LM; 0: none")
    args = parser.parse_args(arguments)
    dtype, reason = choose_dtype("auto", DEVICE, 151_263_232)
    print(f"{measure.machine()}; auto: {dtype}, {reason}")
    start_up()
    both = {task: rows_of(name, "test") for task, name in DOWNSTREAMS.items()}
    whole = [0.0, 0.0]
    for task, rows in both.items():
        parts = blocks(rows, BLOCK)
        parts = parts[args.every // 2 :: args.every] or parts
        times = compare(f"{task} test, 3.2M LM", "3.2M", parts)
        whole = [total + len(rows) * time for total, time in zip(whole, times)]
    print(f"KS and IC test, both splits whole: {whole[0] / whole[1]:.1f}x")
    if args.large:
        parts = blocks(both["IC"], args.large)
        for of_lm in dict.fromkeys((torch.float32, dtype)):
            compare("IC test, 151M LM", "151M", [parts[len(parts) // 2]], of_lm)
    equal_answers("bfloat16")


if __name__ == "__main__":
    main(sys.argv[1:])
