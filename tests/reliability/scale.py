"""Seconds and peak memory of the stages on synthetic rows, each stage a process of its own.

python -m tests.reliability.scale --rows 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.rows import Row, read_rows, write_rows
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.scoring.sample_file import PartialAnswers, write_samples

UNIT_MODEL, DOWNSTREAM = "hubert100", "fluent_commands"
UNITS = [str(unit) for unit in range(100)]
BATCH = 64  # answers that sample.py saves at a time
STAGES = ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess", "answers", "cal_acc")


class Cost(NamedTuple):
    """What a stage took on this many rows."""

    stage: str
    rows: int
    seconds: float
    cpu: float  # seconds, which another's work does not change
    megabytes: float  # at its peak


def synthetic(count: int, seed: int) -> Iterator[Row]:
    """Rows as long as Fluent Speech Commands', with its three labels."""
    rng = random.Random(seed)
    for number in range(count):
        units = rng.choices(UNITS, k=rng.randint(60, 140))
        labels = f"{rng.randrange(6)} {rng.randrange(6, 20)} {rng.randrange(20, 24)}"
        yield Row(f"wavs/speakers/{number % 97}/{number:08}.wav", " ".join(units), labels)


def write_workspace(workspace: Workspace, count: int) -> None:
    """Rows, a tenth of them in valid and in test, and the LM's dict."""
    for seed, (split, share) in enumerate({"train": 0.8, "valid": 0.1, "test": 0.1}.items()):
        path = workspace.rows(DOWNSTREAM, UNIT_MODEL, split)
        write_rows(path, synthetic(round(share * count), seed))
    lm = workspace.lm(UNIT_MODEL)
    lm.mkdir(parents=True)
    (lm / "dict.txt").write_text("".join(f"{unit} 1\n" for unit in UNITS))


def write_answers(workspace: Workspace, count: int) -> None:
    """What sample.py does beside decoding, for ``count`` rows: save the answers batch by batch, and
    write both sample files.
    """
    rng = random.Random(2)
    path = workspace.samples("IC", UNIT_MODEL, "d", "d")
    partial = PartialAnswers(path.with_name(path.name + ".part"), {"prompt": "synthetic"})

    def answer() -> dict[str, object]:
        units = " ".join(rng.choices(UNITS[:24], k=3))
        return {"predict": units, "score": -1.25, "label_scores": [-0.5, -0.5, -0.25]}

    for start in range(0, count, BATCH):
        batch = range(start, min(count, start + BATCH))
        partial.add({row: {"free": answer(), "within": answer()} for row in batch})

    def sources() -> Iterator[dict[str, str]]:
        rows = (row for split in ("train", "valid", "test")
                for row in read_rows(workspace.rows(DOWNSTREAM, UNIT_MODEL, split)))  # fmt: skip
        for row in rows:
            yield {"file_name": row.file, "src": row.units, "label": row.labels}

    write_samples(path, sources(), partial, scored=False)
    partial.remove()


def command(stage: str, count: int, workspace: Path) -> list[str]:
    """The stage's command line."""
    own = {
        "answers": ["-m", "tests.reliability.scale", "--write_answers", str(count)],
        "cal_acc": ["ulm_prompt/cal_acc.py", "--sample_date", "d"],
    }
    words = own.get(stage, [f"ulm_prompt/{stage}.py"])
    return [sys.executable, *words, "--workspace", str(workspace)]


def measure(stage: str, count: int, workspace: Path) -> Cost:
    """Run one stage. Raises ``RuntimeError`` with its last lines when it fails."""
    with tempfile.TemporaryFile("w+") as said:
        begun = time.monotonic()
        process = subprocess.Popen(
            command(stage, count, workspace), cwd=REPOSITORY, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{stage} on {count:,} rows:\n{said.read()[-2000:]}")
    return Cost(stage, count, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def costs(rows: list[int], stages: list[str], scratch: Path | None) -> Iterator[Cost]:
    """Every stage on every size, smallest first."""
    for count in sorted(rows):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            write_workspace(Workspace(Path(folder)), count)
            for stage in STAGES:
                cost = measure(stage, count, Path(folder))
                if stage in stages:
                    yield cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--scratch", type=Path, help="where the workspaces lie for a while")
    parser.add_argument("--workspace", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write_answers", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write_answers is not None:
        write_answers(Workspace(args.workspace), args.write_answers)
        return
    print("| stage | rows | seconds | CPU, s | rows/CPU s | peak, MB | CPU, against linear |")
    print("|---|---|---|---|---|---|---|", flush=True)
    last: dict[str, Cost] = {}
    for cost in costs(args.rows, args.stage, args.scratch):
        before, last[cost.stage] = last.get(cost.stage), cost
        growth = ""
        if before:
            growth = f"{cost.cpu / before.cpu / (cost.rows / before.rows):.2f}"
        print(
            f"| {cost.stage} | {cost.rows:,} | {cost.seconds:.1f} | {cost.cpu:.1f} "
            f"| {cost.rows / cost.cpu:,.0f} | {cost.megabytes:.0f} | {growth} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
