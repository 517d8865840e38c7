"""Decoding against the published way of it, side by side on the same weights and utterances.

python -m tests.benchmarks.bench_decode [--units DIR] [--every N] [--large N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.rows import Row
from pipeline.workspace import Workspace
from tests.benchmarks.measure import (
    DEVICE,
    UNITS,
    a_model,
    matrix_rate,
    rows_of,
    timed,
    where_time_goes,
)  # fmt: skip
from tests.benchmarks.published_decoding import decode_as_published
from tests.conftest import stage
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.decoding import Options, decode
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.precision import choose_dtype

DOWNSTREAMS = {"KS": "speech_commands", "IC": "fluent_commands"}
BLOCK = 64


def blocks(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """The split in order of length, cut in blocks: what a batch of the whole split looks like."""
    ordered = sorted(rows, key=lambda row: row.units.count(" "))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def compare(name: str, shape: str, parts: list[list[Row]]) -> tuple[float, float]:
    """Print one line: milliseconds an utterance both ways, the ratio, FLOP/s. Returns the times.

    The two take turns, ours before and after the other, so that other work on the machine falls on
    both. Random weights end no answer: both are cut where a trained prompt's ends, the labels and
    one look for ``</s>``. Ours gives the answer within the label set too.
    """
    model, dictionary = a_model(shape, 6).eval(), tiny.dictionary()

    def indices(text: str) -> list[int]:
        return [dictionary.index(symbol) for symbol in text.split()]

    labels = [indices(row.labels) for part in parts for row in part]
    count = len(labels[0])
    sets = LabelSets.build("slots", labels, len(dictionary), dictionary.eos())
    options = Options(max_labels=count + 1)
    lm = CachedLM(model, dictionary.pad(), dictionary.eos())
    rows = [[torch.tensor(indices(f"</s> {row.units} <s>")) for row in part] for part in parts]

    def published(part: list[torch.Tensor]) -> dict[int, list[int]]:
        return dict(decode_as_published(model, dictionary, part, count))

    def cached(part: list[torch.Tensor]) -> dict[int, list[int]]:
        found = decode(lm, part, sets, options)
        return {one.row: one.free.symbols[:count] for batch in found for one in batch}

    cached(rows[0][:8])  # warm up
    same, spent = 0, [0.0, 0.0]
    for part in rows:
        before, ours = timed(lambda part=part: cached(part))
        first, theirs = timed(lambda part=part: published(part))
        after, _ = timed(lambda part=part: cached(part))
        same += sum(theirs[row] == ours[row] for row in theirs)
        spent = [spent[0] + first, spent[1] + (before + after) / 2]
    total = sum(map(len, rows))
    parameters = sum(parameter.numel() for parameter in model.lm.parameters())
    tokens = sum(len(row) + count for part in rows for row in part)
    floor = 2 * parameters * tokens / spent[1]
    theirs_ms, ours_ms = (1e3 * seconds / total for seconds in spent)
    print(
        f"{name:<22} {total:5} utterances  {theirs_ms:8.1f} ms{ours_ms:8.2f} ms  "
        f"{theirs_ms / ours_ms:5.1f}x  equal {same}/{total}  "
        f"{floor / 1e9:6.1f} GFLOP/s (matmul {matrix_rate(torch.float32):.1f})",
        flush=True,
    )
    if shape == "3.2M":
        where_time_goes(lambda: [cached(part) for part in rows])
    return theirs_ms, ours_ms


def start_up() -> None:
    """All of sample.py on a tiny LM and 29 utterances, beside the imports that it needs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace = Workspace(root)
        tiny.write_corpus(root)
        tiny.write_lm(workspace.lm("tiny100"))
        for name in ("make_data", "gen_labelspace", "verbalizer"):
            stage(f"ulm_prompt/{name}.py", "--workspace", root)
        model = tiny.prompted()
        target = workspace.checkpoints("KS", "tiny100", "d")
        target.mkdir(parents=True)
        torch.save(
            {"model": {**model.lm.state_dict(), **model.prompt.published_state()}},
            target / "checkpoint_best.pt",
        )
        flags = ("--workspace", root, "--model_date", "d", "--sample_date", "s")
        python = [sys.executable, "-c"]
        found = {"import torch": [], "import fairseq": [], "sample.py": []}
        for _ in range(3):
            for name in ("import torch", "import fairseq"):
                found[name].append(timed(lambda name=name: subprocess.run([*python, name]))[0])
            found["sample.py"].append(timed(lambda: stage("ulm_prompt/sample.py", *flags))[0])
    parts = [f"{name} {min(times):.1f} s" for name, times in found.items()]
    print(f"{'start-up, tiny LM':<22} {', '.join(parts)}")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--units", type=Path, default=UNITS, help="published units")
    flag("--every", type=int, default=12, help="one of so many blocks of 64, 3.2M LM")
    flag("--large", type=int, default=16, help="utterances for the 151M LM; 0: none")
    args = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    print(f"{DEVICE}, {threads} thread(s); auto: {choose_dtype('auto', DEVICE, 151_263_232)[1]}")
    print(f"{'':22} {'':16}  {'published':>8}{'ours':>11}")
    start_up()
    both = {task: rows_of(args.units, name, "test") for task, name in DOWNSTREAMS.items()}
    whole = [0.0, 0.0]
    for task, rows in both.items():
        parts = blocks(rows, BLOCK)
        parts = parts[args.every // 2 :: args.every] or parts
        times = compare(f"{task} test, 3.2M", "3.2M", parts)
        whole = [total + len(rows) * each for total, each in zip(whole, times)]
    print(f"{'KS and IC test, 3.2M':<22} {'both splits, whole:':<48}{whole[0] / whole[1]:5.1f}x")
    if args.large:
        parts = blocks(both["IC"], args.large)
        compare("IC test, 151M", "151M", [parts[len(parts) // 2]])


if __name__ == "__main__":
    main(sys.argv[1:])
