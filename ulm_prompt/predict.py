"""Answer what audio says, by one trained prompt or by several at once over one frozen LM.

predict.py --prompt KS --prompt IC clip.wav folder/ -   (-: a list of files on standard input)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from pipeline.errors import UserError, run
from pipeline.workspace import Workspace
from ulm_prompt.predicting.answer_formats import FORMATS
from ulm_prompt.predicting.audio_list import as_they_arrive, check_sources, count_files, stream
from ulm_prompt.predicting.find_prompts import find_prompt
from ulm_prompt.tasks import add_workspace

BATCH = 32  # files at a time


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("audio", nargs="*", help="files, folders, or - for a list on standard input")
    flag(
        "--prompt",
        action="append",
        required=True,
        help="a task (its only trained prompt), a checkpoints folder, an exported folder or a "
        "file; give it again for more tasks",
    )
    flag("--unit_model", help="choose among a task's prompts")
    flag("--model_date", help="choose among a task's prompts: the --date of training")
    flag("--top", type=int, default=1, metavar="K", help="the K likeliest answers (default: 1)")
    flag("--format", choices=list(FORMATS), help="default: table on a terminal, else jsonl")
    flag(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: bfloat16 where it multiplies much faster, else float32",
    )
    add_workspace(parser)
    args = parser.parse_args()
    if args.top < 1:
        raise UserError(f"--top {args.top}: expected at least 1")
    return args


def shown(batches: Iterator[list[Path]], total: int | None) -> Iterator[list[Path]]:
    """The batches, their files counted on a bar that lets other lines through."""
    with tqdm(total=total, unit="file", disable=None, file=sys.stderr) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def main() -> None:
    args = parse()
    for out in (sys.stdout, sys.stderr):
        out.reconfigure(errors="surrogateescape")  # a file's name may be no UTF-8
    sources = check_sources(args.audio)
    for word in args.prompt:
        find_prompt(word, Workspace(args.workspace), args.unit_model, args.model_date)

    from ulm_prompt.predicting.predictor import BadAudio, Predictor  # seconds: checked first

    predictor = Predictor.load(
        args.prompt, args.workspace, args.unit_model, args.model_date, args.dtype
    )
    form = args.format or ("table" if sys.stdout.isatty() else "jsonl")
    writer = FORMATS[form](sys.stdout, predictor.records)
    good = bad = 0
    start = time.perf_counter()
    batches = as_they_arrive(stream(sources), BATCH)
    for batch in shown(batches, count_files(sources)):
        results = predictor(batch, args.top)
        with tqdm.external_write_mode(file=sys.stdout):
            for path, result in zip(batch, results):
                if isinstance(result, BadAudio):
                    bad += 1
                    print(f"bad audio: {path}: {result}", file=sys.stderr)
                    continue
                good += 1
                writer.write(path, result)
            sys.stdout.flush()
    seconds = time.perf_counter() - start
    print(
        f"{good:,} utterances in {seconds:.1f} s, {good / seconds:.1f} a second, "
        f"by {', '.join(predictor.records)}" + (f"; {bad:,} bad files left out" if bad else ""),
        file=sys.stderr,
    )
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
