"""Stage 5: decode the test split with a trained prompt.

Writes the published form, id -> file_name, src, label, predict, twice: decoded freely, and within
the label set. A run that was cut off goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import zip_longest
from pathlib import Path
from typing import Any

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import holding, sha256, write_json
from pipeline.rows import read_rows
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.binaries import encode
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs
from ulm_prompt.prompt_data.verbal import load_verbal, read_prompt_text, renamed_texts
from ulm_prompt.scoring.sample_file import (
    BOS,
    NO_ANSWER,
    PartialAnswers,
    entry,
    origin_path,
    write_samples,
)
from ulm_prompt.scoring.sample_flags import add_search, check_search, label_limit, label_sets

TEXT_STAGE = "ulm_prompt/verbalizer.py"


def read_test(workspace: Workspace, pair: Pair, text: Path) -> Iterator[dict[str, str]]:
    """Stream what the output says of each test row beside its answer: file_name, src, label."""
    source = workspace.rows(pair.config.downstream, pair.unit_model, "test")
    both = zip_longest(read_rows(source), read_prompt_text(text, TEXT_STAGE))
    for number, (row, renamed) in enumerate(both, start=1):
        if row is None or renamed is None:
            raise UserError(
                f"{text if renamed is None else source}: ends before line {number}, other than "
                f"{source if renamed is None else text}; run ulm_prompt/make_data.py again"
            )
        yield {"file_name": row.file, "src": f"{renamed[0]} {BOS}", "label": renamed[1]}


def sample_pair(args: argparse.Namespace, pair: Pair) -> None:
    """Decode one task's test split and write both sample files."""
    workspace = Workspace(args.workspace)
    folder = workspace.checkpoints(pair.task, pair.unit_model, args.model_date)
    prompt = folder / args.checkpoint
    if not prompt.is_file():
        raise UserError(
            f"{prompt}: not found; train it with ulm_prompt/train.py "
            f"--date {args.model_date}, or correct --model_date"
        )
    texts = renamed_texts(workspace, pair)
    train = read_prompt_text(texts["train"], TEXT_STAGE)
    train_labels = list(dict.fromkeys(labels for _, labels in train))

    def sources() -> Iterator[dict[str, str]]:
        return read_test(workspace, pair, texts["test"])

    import torch
    from tqdm import tqdm

    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.cache import CachedLM
    from ulm_prompt.prompt_lm.decoding import Options, decode
    from ulm_prompt.prompt_lm.labels import LabelSets
    from ulm_prompt.prompt_lm.precision import choose_dtype

    card = read_record(prompt.parent)
    if card is not None and card.verbal != load_verbal(workspace, pair)[1]:
        raise UserError(f"{folder}: trained with another verbal.json; train again, or restore it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_dtype(args.dtype, device)
    print(f"{pair.task} {pair.unit_model}: {dtype} on {device}, {reason}", flush=True)
    model, unit_lm = checkpoint.load(
        prompt.parent, lm_folder(workspace, pair.unit_model), prompt.name
    )
    dictionary = unit_lm.dictionary
    lm = CachedLM(model.to(device), dictionary.pad(), dictionary.eos(), dtype)

    def numbers(text: str, where: str) -> list[int]:
        path = lm_folder(workspace, pair.unit_model) / "dict.txt"
        return encode(text, dictionary.indices, where, path)

    rows = [
        torch.tensor(numbers(f"</s> {source['src']}", f"{texts['test']}, line {line}"))
        for line, source in enumerate(sources(), start=1)
    ]
    sequences = [numbers(labels, str(texts["train"])) for labels in train_labels]
    within = label_sets(args.within_labels, pair.config.is_sequence)
    labels = LabelSets.build(within, sequences, len(dictionary), dictionary.eos())
    longest = max(map(len, sequences))
    limit = label_limit(args.max_labels, longest)
    if limit < longest and not pair.config.is_sequence:
        raise UserError(f"--max_labels {limit}: an answer to {pair.task} has {longest} labels")
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{**{name: getattr(args, name) for name in names}, "max_labels": limit})
    target = workspace.samples(pair.task, pair.unit_model, args.model_date, args.sample_date)
    made_from = {
        "prompt": sha256(prompt),
        "lm": unit_lm.fingerprint,
        "data": {split: sha256(texts[split]) for split in ("train", "test")},
        "options": {**dataclasses.asdict(options), "within_labels": within},
        "machine": [str(dtype), device.type, torch.__version__],
    }
    with holding(target):
        partial = PartialAnswers(target.with_name(target.name + ".part"), made_from)
        there = len(partial.done)
        if there:
            print(f"{partial.path}: going on after {there:,} of {len(rows):,} utterances")
        with tqdm(total=len(rows), initial=there, desc=pair.task, disable=None) as bar:
            for batch in decode(lm, rows, labels, options, frozenset(partial.done)):
                partial.add({decoded.row: entry(decoded, dictionary) for decoded in batch})
                bar.update(len(batch))
        partial.add({row: NO_ANSWER for row in range(len(rows)) if row not in partial})
        write_json(origin_path(target), made_from)
        write_samples(target, sources(), partial, scored=options.beam > 1 or options.sampling)
        print(f"{pair.task} {pair.unit_model}: {len(rows):,} utterances -> {target}")
        report_long(rows, partial, limit, unit_lm.model.max_positions(), args.max_units)
        partial.remove()
    report_unseen((source["label"] for source in sources()), train_labels)


def report_unseen(labels: Iterable[str], train_labels: Iterable[str]) -> None:
    """Say how many of the test split's ``labels`` hold one that train never has."""
    seen = {label for sequence in train_labels for label in sequence.split()}
    unseen = sum(not seen.issuperset(of_row.split()) for of_row in labels)
    if unseen:
        print(f"  {unseen:,} rows have a label that train never has: no prompt has learned it")


def report_long(
    rows: Sequence[Sized],
    answers: Mapping[int, dict[str, Any]],
    limit: int,
    positions: int,
    max_units: int,
) -> None:
    """Say how many rows of more than ``max_units`` were not answered, how many free answers were
    cut at ``limit``, and how many rows with their answer are longer than the text that the LM was
    trained on.
    """
    too_long = [len(row) - 2 for row in rows if len(row) - 2 > max_units]
    if too_long:
        print(
            f"  {len(too_long):,} rows have more than {max_units:,} units ({max(too_long):,} at "
            "most): not answered, which is scored as wrong (--max_units)"
        )
    symbols = {row: answer["symbols"] for row, answer in answers.items()}
    cut = sum(count >= limit for count in symbols.values())
    if cut:
        print(f"  {cut:,} free answers were cut after {limit} labels (--max_labels)")
    beyond = [
        row
        for row, count in symbols.items()
        if positions < len(rows[row]) + count and len(rows[row]) - 2 <= max_units
    ]
    if beyond:
        longest = max(len(rows[row]) + symbols[row] for row in beyond)
        print(
            f"  {len(beyond):,} rows are longer with their answer than the {positions:,} positions "
            f"that the LM has learned ({longest:,} at most): their answers are worth less"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_date", required=True, help="the --date of training")
    parser.add_argument("--sample_date", required=True, help="names the output folder")
    parser.add_argument(
        "--checkpoint",
        default="checkpoint_best.pt",
        help="file to decode with; a path may name a shared prompt's prompt.safetensors",
    )
    add_search(parser)
    add_selection(parser)
    args = parser.parse_args()
    check_search(args)
    for pair in find_pairs(args, needs_lm=True):
        sample_pair(args, pair)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.sample_date}")


if __name__ == "__main__":
    run(main)
