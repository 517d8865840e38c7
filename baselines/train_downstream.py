"""Train the downstream model on frozen speech features ("FT-DM"), and decode the test split.

Reads what layer_means.py wrote. Trains on a GPU when there is one, in seconds to minutes on a CPU;
a run that is finished is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses

from baselines.classifiers.answers import Slots, answers_path, card_path, parse_flags, write_answers
from baselines.classifiers.downstream import CONFIG, Settings, Split, load_settings, train
from baselines.classifiers.means import COMMAND, read_means, read_plan
from pipeline.devices import choose_device
from pipeline.errors import UserError, run
from pipeline.files import holding, read_json, write_json
from pipeline.rows import SPLITS
from pipeline.runs import provenance
from pipeline.torch_files import save_torch
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task, task_names

MODEL = "checkpoint_best.pt"


def find_pairs(args: argparse.Namespace) -> list[Pair]:
    """The tasks and unit models with layer means in the workspace, narrowed by the flags."""
    workspace = Workspace(args.workspace)
    tasks = [args.prompt_task] if args.prompt_task else task_names()
    configs = {task: load_task(task) for task in tasks}
    records = f"{args.unit_model or '*'}/layer_means/provenance.json"
    pairs = [
        Pair(task, record.parents[1].name, config)
        for task, config in configs.items()
        for record in sorted(workspace.downstream_data(config.downstream).glob(records))
        if not config.is_sequence  # a text is no class
    ]
    if not pairs:
        example = COMMAND.format("speech_commands", args.unit_model or "hubert100")
        raise UserError(
            f"{args.workspace / 'preprocess'}: no layer means for {args.prompt_task or 'any task'} "
            f"with {args.unit_model or 'any unit model'}; make them, for example {example}"
        )
    return pairs


def train_pair(args: argparse.Namespace, pair: Pair, settings: Settings) -> None:
    workspace = Workspace(args.workspace)
    downstream, unit_model = pair.config.downstream, pair.unit_model
    run_name = workspace, pair.task, unit_model, "downstream", args.date
    card_file, answers_file = card_path(*run_name), answers_path(*run_name)
    card = {
        "task": pair.task,
        "unit_model": unit_model,
        "config": dataclasses.asdict(settings),
        "data": read_plan(workspace, downstream, unit_model),
    }
    with holding(card_file.parent):
        if card_file.exists():
            earlier = read_json(card_file, "baselines/train_downstream.py")
            if changed := [key for key, value in card.items() if earlier.get(key) != value]:
                raise UserError(
                    f"{card_file.parent}: holds a run with other {', '.join(changed)}; "
                    "choose a new --date"
                )
            print(f"{pair.task} {unit_model}: {card_file.parent} exists already")
            return
        slots = Slots(workspace.downstream_data(downstream) / "manifest/labels.json")
        device, why = choose_device()
        splits = {}
        for split in SPLITS:
            means, entries, index = read_means(workspace, downstream, unit_model, split)
            labels = slots.encode(entry.labels for entry in entries)
            splits[split] = Split(means, index, labels).to(device)
        print(f"{pair.task} {unit_model}: training on {why}")
        model, curve = train(splits["train"], splits["valid"], slots.sizes, settings)
        test = splits["test"]
        answers = slots.decode(model.predict(test.means)[test.index])
        files, labels = zip(*((entry.file, entry.labels) for entry in entries))  # of test
        accuracy = write_answers(answers_file, files, labels, answers)
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        save_torch(weights, card_file.parent / MODEL)
        best = max(curve.values())
        card |= {
            "trained_parameters": model.trained_parameters,
            "layer_weights": model.layer_weights.softmax(dim=0).tolist(),
            "updates": min(update for update, value in curve.items() if value == best),
            "valid": {"accuracy": best},
            "test": {"accuracy": accuracy},
            "valid_curve": curve,
            "made_by": provenance(),
        }
        write_json(card_file, card)
    print(
        f"{pair.task} {unit_model}: {model.trained_parameters:,} trained parameters, best at "
        f"update {card['updates']:,}: {best:.2f} % right on valid, {accuracy:.2f} % on test "
        f"-> {answers_file}"
    )


def main() -> None:
    args = parse_flags(__doc__, CONFIG)
    settings = load_settings(args.set)
    for pair in find_pairs(args):
        train_pair(args, pair, settings)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
