"""Stage 5: decode the test split with a trained prompt.

It writes two files of the published form, id -> file_name, src, label, predict: decoded freely, and
within the label set. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse

from pipeline.devices import add_device, choose_device
from pipeline.errors import UserError, run
from pipeline.files import holding, sha256
from pipeline.rows import read_rows
from pipeline.runs import add_quiet, progress_bar
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data import label_names, verbal
from ulm_prompt.prompt_data.prompt_record import BEST, read_record
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs, print_next
from ulm_prompt.scoring import sample_file


def sample_pair(args: argparse.Namespace, pair: Pair) -> None:
    """Decode one task's test split and write both sample files."""
    workspace = Workspace(args.workspace)
    prompt = workspace.checkpoints(pair.task, pair.unit_model, args.model_date) / args.checkpoint
    if not prompt.is_file():
        remedy = f"train it with ulm_prompt/train.py --date {args.model_date}"
        raise UserError(f"{prompt}: not found; {remedy}, or correct --model_date")
    texts, lm_dir = verbal.renamed_texts(workspace, pair), lm_folder(workspace, pair.unit_model)
    test = workspace.rows(pair.config.downstream, pair.unit_model, "test")
    read, bos = verbal.read_prompt_text, sample_file.BOS
    sources = [
        {"file_name": row.file, "src": f"{units} {bos}", "label": label}
        for row, (units, label) in zip(read_rows(test), read(texts["test"]), strict=True)
    ]
    train_labels = list(dict.fromkeys(labels for _, labels in read(texts["train"])))
    record = read_record(prompt.parent)
    if record is not None and record.verbal != verbal.load_verbal(workspace, pair)[1]:
        raise UserError(f"{prompt}: made with another verbal.json; restore it or add --verbalizer")
    if record is not None and not record.trained_parameters:
        print(f"{prompt}: its training has not finished; decoding with this checkpoint")
    longest = max(len(labels.split()) for labels in train_labels)
    options = sample_file.search_options(args, pair.config.is_text, longest)
    if (limit := options["max_labels"]) < longest and not pair.config.is_text:
        problem = f"an answer to {pair.task} has {longest} labels"
        raise UserError(f"--max_labels {limit}: {problem}; choose at least {longest}")
    made_from = {
        "format": sample_file.FORMAT,
        "prompt": sha256(prompt),
        "lm_files": verbal.lm_hashes(lm_dir),
        "data": {split: sha256(texts[split]) for split in ("train", "test")},
        "rows": sha256(test),
        "options": options,
    }
    target = workspace.samples(pair.task, pair.unit_model, args.model_date, args.sample_date)
    if sample_file.is_done(target, made_from, args.dtype):
        print(f"{pair.task} {pair.unit_model}: {target} has these answers; nothing to decode")
        return

    import torch

    from ulm_prompt.prompt_lm import checkpoint
    from ulm_prompt.prompt_lm.cache import CachedLM
    from ulm_prompt.prompt_lm.labels import LabelSets
    from ulm_prompt.prompt_lm.lm import choose_dtype
    from ulm_prompt.prompt_lm.search import Options, decode

    part = target.with_name(target.name + ".part")
    device, why = choose_device(args.device)
    model, unit_lm = checkpoint.load(prompt.parent, lm_dir, prompt.name)
    part_dtype = sample_file.begun_in(part) if args.dtype == "auto" else None
    dtype, reason = choose_dtype(part_dtype or args.dtype, device, unit_lm.parameters)
    reason = f"as in {part.name}" if part_dtype else reason
    print(f"{pair.task} {pair.unit_model}: computes on {why}, in {dtype} ({reason})", flush=True)
    symbols = unit_lm.dictionary
    if model.label_map is not None:
        symbols = label_names.with_joint_names(symbols, record.verbal.values())

    def encoded(text: str, where: object) -> list[int]:
        return label_names.encode(text, symbols.indices, str(where), lm_dir / "dict.txt")

    rows = [
        torch.tensor(encoded(f"</s> {source['src']}", f"{texts['test']}, line {line}"))
        for line, source in enumerate(sources, start=1)
    ]
    sequences = [encoded(labels, texts["train"]) for labels in train_labels]
    label_sets = LabelSets.build(options["within_labels"], sequences, len(symbols), symbols.eos())
    search = Options(**{name: options[name] for name in Options.__dataclass_fields__})
    made_from["lm"] = unit_lm.fingerprint
    made_from["machine"] = [str(dtype), device.type, torch.__version__]
    with holding(target):
        answers = sample_file.PartialAnswers(part, made_from)
        if answers:
            print(f"{part}: resumes after {len(answers):,} of {len(rows):,} utterances")
        cached = CachedLM(model.to(device), symbols.pad(), symbols.eos(), dtype)
        with progress_bar(total=len(rows), initial=len(answers), desc=pair.task) as bar:
            for batch in decode(cached, rows, label_sets, search, frozenset(answers)):
                answers.add({done.row: sample_file.entry(done, symbols) for done in batch})
                bar.update(len(batch))
        answers.add({row: sample_file.NO_ANSWER for row in range(len(rows)) if row not in answers})
        scored = search.beam > 1 or search.sampling
        sample_file.write_samples(target, sources, answers, scored, made_from)
        print(f"{pair.task} {pair.unit_model}: {len(rows):,} utterances -> {target}")
        sample_file.report_long(rows, answers, search, unit_lm.model.max_positions())
        answers.remove()
    seen = set(" ".join(train_labels).split())
    if unseen := sum(not seen.issuperset(source["label"].split()) for source in sources):
        print(f"  {unseen:,} rows have a label that train never has: no prompt has learned it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    date = {"type": name_part, "required": True}
    parser.add_argument("--model_date", **date, help="the --date of training")
    parser.add_argument("--sample_date", **date, help="names the output folder")
    file = "file of the run, or path of a prompt.safetensors (default: checkpoint_best.pt)"
    parser.add_argument("--checkpoint", default=BEST, help=file)
    sample_file.add_search(parser)
    add_device(parser)
    add_quiet(parser)
    add_selection(parser, verbalizer=True)
    args = parser.parse_args()
    sample_file.check_search(args)
    for pair in find_pairs(args, needs_lm=True):
        sample_pair(args, pair)
    print_next(args, "ulm_prompt/cal_acc.py", "--sample_date", args.sample_date, verbalizer=False)


if __name__ == "__main__":
    run(main)
