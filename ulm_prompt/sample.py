"""Stage 5: decode the test split with a trained prompt.

Writes the published form, id -> file_name, src, label, predict, twice: decoded freely, and within
the label set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import write_json
from pipeline.rows import read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_text import read_prompt_text
from ulm_prompt.tasks import Pair, add_selection, find_pairs
from ulm_prompt.verbal import load_verbal, renamed_texts

MAX_LABELS = 50  # a free answer that has not ended by then is cut


def label_slots(text: Path) -> list[list[str]]:
    """The label units that the training text shows at each place after ``<s>``."""
    slots: list[dict[str, None]] = []
    for _, labels in read_prompt_text(text, "ulm_prompt/verbalizer.py"):
        for place, unit in enumerate(labels.split()):
            if place == len(slots):
                slots.append({})
            slots[place][unit] = None
    return [list(slot) for slot in slots]


def sample_pair(args: argparse.Namespace, pair: Pair) -> None:
    """Decode one task's test split and write both sample files."""
    workspace = Workspace(args.workspace)
    folder = workspace.checkpoints(pair.task, pair.unit_model, args.model_date)
    if not (folder / args.checkpoint).is_file():
        raise UserError(
            f"{folder / args.checkpoint}: not found; train it with ulm_prompt/train.py "
            f"--date {args.model_date}, or correct --model_date"
        )
    texts = renamed_texts(workspace, pair)
    rows = list(read_prompt_text(texts["test"], "ulm_prompt/verbalizer.py"))
    source = workspace.rows(pair.config.downstream, pair.unit_model, "test")
    files = [row.file for row in read_rows(source)]
    if len(files) != len(rows):
        raise UserError(
            f"{texts['test']}: {len(rows)} rows, but {source} has {len(files)}; "
            "run ulm_prompt/make_data.py again"
        )

    import torch
    from tqdm import tqdm

    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.decoding import Symbols, decode

    card = checkpoint.read_card(folder)
    if card is not None and card.verbal != load_verbal(workspace, pair)[1]:
        raise UserError(f"{folder}: trained with another verbal.json; train again, or restore it")
    model, unit_lm = checkpoint.load(folder, workspace.lm(pair.unit_model), args.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    dictionary = unit_lm.dictionary

    def indices(symbols: list[str]) -> torch.Tensor:
        return torch.tensor([dictionary.index(symbol) for symbol in symbols])

    inputs = [indices(["</s>", *units.split(), "<s>"]) for units, _ in rows]
    allowed = [indices(slot) for slot in label_slots(texts["train"])]
    symbols = Symbols(dictionary.pad(), dictionary.eos())
    answers = {"": [""] * len(rows), "_within_labels": [""] * len(rows)}
    found = decode(model, inputs, symbols, MAX_LABELS, allowed, args.batch_size)
    for row, *both in tqdm(found, total=len(rows), desc=f"{pair.task} {pair.unit_model}"):
        for name, answer in zip(answers, both):
            answers[name][row] = " ".join(dictionary[index] for index in answer)
    target = workspace.samples(pair.task, pair.unit_model, args.model_date, args.sample_date)
    for name, predictions in answers.items():
        samples = {
            str(number): {"file_name": file, "src": units, "label": label, "predict": predict}
            for number, (file, (units, label), predict) in enumerate(zip(files, rows, predictions))
        }
        write_json(target.with_stem(target.stem + name), samples)
    print(f"{pair.task} {pair.unit_model}: {len(rows):,} utterances -> {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_date", required=True, help="the --date of training")
    parser.add_argument("--sample_date", required=True, help="names the output folder")
    parser.add_argument("--checkpoint", default="checkpoint_best.pt", help="file to decode with")
    parser.add_argument("--batch_size", type=int, default=64, help="utterances at a time")
    add_selection(parser)
    args = parser.parse_args()
    for pair in find_pairs(args, needs_lm=True):
        sample_pair(args, pair)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.sample_date}")


if __name__ == "__main__":
    run(main)
