"""Answer audio with one or several trained prompts and one frozen LM.

predict.py clip.wav                                     (the repository's prompt)
predict.py --segments meeting.wav                       (cut at pauses, answer each segment)
predict.py --prompt KS --prompt IC clip.wav folder/ -   (-: a list of files on standard input)
predict.py --serve                                      (a local page that records)
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter

from pipeline.devices import add_device
from pipeline.errors import UserError, one_line, run
from pipeline.runs import add_quiet, progress_bar, report
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.tasks import add_dtype, add_workspace
from ulm_prompt.using.find_prompts import find_prompt, shipped_prompt
from ulm_prompt.using.input_output import FORMATS, STDIN, batches, check_sources, stream

BATCH = 32  # files per batch
MOST_ANSWERS = 10_000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("audio", nargs="*", help="files, folders, or - for a list on standard input")
    prompt = "a task (with only one trained prompt), a checkpoints or exported folder, a file, or "
    prompt += "hf:USER/NAME on the Hugging Face Hub; repeatable (default: the repository's prompt)"
    flag("--prompt", action="append", default=[], help=prompt)
    flag("--unit_model", type=name_part, help="choose among the prompts of a task")
    flag("--model_date", type=name_part, help="choose among prompts by the --date of training")
    flag("--segments", action="store_true", help="cut recordings at pauses, answer every segment")
    longest = "longest segment; longer sound becomes windows (default: 2, for single words)"
    flag("--longest", type=float, metavar="SECONDS", help=longest)
    flag("--top", type=int, default=1, metavar="K", help="the K likeliest answers (default: 1)")
    flag("--format", choices=list(FORMATS), help="default: table on a terminal, else jsonl")
    flag("--serve", action="store_true", help="open a page to record or drop a file; needs gradio")
    add_dtype(flag)
    add_device(parser)
    add_quiet(parser, prints_answers=True)
    add_workspace(parser)
    args = parser.parse_args()
    if not 1 <= args.top <= MOST_ANSWERS:
        raise UserError(f"--top {args.top}: expected at least 1, at most {MOST_ANSWERS:,}")
    if args.longest is not None and not (args.segments and 0.2 <= args.longest <= 60):
        raise UserError(f"--longest {args.longest:g}: expected 0.2 to 60 seconds, with --segments")
    if args.serve and (args.audio or args.segments or args.format or args.top != 1):
        raise UserError("--serve: takes no audio, --segments, --format or --top; use the page")
    if args.serve and importlib.util.find_spec("gradio") is None:
        raise UserError("--serve: needs gradio, which is not installed; pip install gradio")
    if not args.prompt and (args.unit_model or args.model_date):
        raise UserError("--unit_model, --model_date: expected a task; name it with --prompt")
    return args


def main() -> None:
    args = parse()
    sources = [] if args.serve else check_sources(args.audio)
    for word in args.prompt or [str(shipped_prompt())]:  # before torch is imported
        find_prompt(word, Workspace(args.workspace), args.unit_model, args.model_date)

    from ulm_prompt.using.predictor import BadAudio, Predictor

    predictor = Predictor.load(
        args.prompt, args.workspace, args.unit_model, args.model_date, args.dtype, args.device
    )
    if not args.prompt:
        for record in predictor.records.values():
            names = " ".join(label["name"] for label in record.labels.values())
            report(f"prompt {shipped_prompt().name}, labels: {names}")
    report(f"computes on {predictor.computes_on}")
    if args.serve:
        from ulm_prompt.using.serve import serve

        serve(predictor)
        return
    output_format = args.format or ("table" if sys.stdout.isatty() else "jsonl")
    writer = FORMATS[output_format](sys.stdout, predictor.records, args.segments)
    good = bad = 0
    start, skipped = time.perf_counter(), Counter()
    # the number of files is unknown for a list, which may be endless
    total = None if STDIN in sources else sum(1 for _ in stream(sources, Counter()))
    options = args.top, args.segments, args.longest
    with progress_bar(total=total, unit="file") as bar:
        for batch in batches(sources, BATCH, skipped):
            for path, times, answers in predictor.answer_files(batch, *options):
                with bar.external_write_mode(file=sys.stdout):
                    if isinstance(answers, BadAudio):
                        bad += 1
                        print(one_line(f"no answer: {path}: {answers}"), file=sys.stderr)
                        continue
                    good += 1
                    writer.write(path, answers, times)
                    sys.stdout.flush()
            bar.update(len(batch))
    seconds = time.perf_counter() - start
    answered = "segments" if args.segments else "utterances"
    skipped_counts = ", ".join(f"{number:,} {kind}" for kind, number in (+skipped).items())
    report(
        f"{good:,} {answered} in {seconds:.1f} s, {good / seconds:.1f} per second, "
        f"by {', '.join(predictor.records)}"
        + (f"; {bad:,} file{'s' * (bad > 1)} without an answer" if bad else "")
        + (f"; skipped: {skipped_counts}" if skipped_counts else ""),
    )
    report(predictor.audio)
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
