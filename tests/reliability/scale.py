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

from pipeline.rows import Row, read_rows, write_rows
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.scoring.sample_file import PartialAnswers, write_samples

UNIT_MODEL, DOWNSTREAM = "hubert100", "fluent_commands"
UNITS = [str(unit) for unit in range(100)]
BATCH = 64  # answers that sample.py saves at a time
STAGES = ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess", "answers", "cal_acc")


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


def measure(stage: str, count: int, workspace: Path) -> tuple[float, float, float]:
    """Run one stage: seconds, CPU seconds (which another's work does not change), megabytes at its
    peak. Raises ``RuntimeError`` with its last lines when it fails.
    """
    words = {
        "answers": ["-m", "tests.reliability.scale", "--write_answers", str(count)],
        "cal_acc": ["ulm_prompt/cal_acc.py", "--sample_date", "d"],
    }.get(stage, [f"ulm_prompt/{stage}.py"])
    command = [sys.executable, *words, "--workspace", str(workspace)]
    with tempfile.TemporaryFile("w+") as said:
        begun = time.monotonic()
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{stage} on {count:,} rows:\n{said.read()[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


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
    last: dict[str, float] = {}  # CPU seconds a row on the size before
    for count in sorted(args.rows):
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            write_workspace(Workspace(Path(folder)), count)
            for stage in STAGES:
                seconds, cpu, megabytes = measure(stage, count, Path(folder))
                growth = f"{cpu / count / last[stage]:.2f}" if stage in last else ""
                last[stage] = cpu / count
                if stage in args.stage:
                    print(f"| {stage} | {count:,} | {seconds:.1f} | {cpu:.1f} | {count / cpu:,.0f} "
                          f"| {megabytes:.0f} | {growth} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
