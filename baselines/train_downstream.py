"""Train the downstream model on frozen speech features ("FT-DM"), and decode the test split.

The script reads the output of layer_means.py. It trains on a GPU if one is available; on a CPU it
takes seconds to minutes. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses

from baselines.classifiers.answers import Slots, finish, parse_flags, record_path
from baselines.classifiers.downstream import CONFIG, Settings, Split, train
from baselines.classifiers.means import COMMAND, read_means, read_plan
from pipeline.devices import choose_device
from pipeline.errors import UserError, run
from pipeline.files import holding, read_json
from pipeline.rows import SPLITS
from pipeline.torch_files import save_torch
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task, task_names


def find_pairs(args: argparse.Namespace) -> list[Pair]:
    """Return the tasks and unit models that have layer means and match the flags."""
    pairs = []
    for task in [args.prompt_task] if args.prompt_task else task_names():
        config = load_task(task)
        folder = Workspace(args.workspace).downstream_data(config.downstream)
        records = sorted(folder.glob(f"{args.unit_model or '*'}/layer_means/provenance.json"))
        if not config.is_text:  # a classifier cannot answer with a text
            pairs += [Pair(task, record.parents[1].name, config) for record in records]
    if not pairs:
        example = COMMAND.format("speech_commands", args.unit_model or "hubert100")
        raise UserError(
            f"{args.workspace / 'preprocess'}: no layer means for {args.prompt_task or 'any task'} "
            f"with {args.unit_model or 'any unit model'}; make them, for example {example}"
        )
    return pairs


def train_pair(workspace: Workspace, pair: Pair, date: str, settings: Settings) -> None:
    data, name = (pair.config.downstream, pair.unit_model), f"{pair.task} {pair.unit_model}"
    record_file = record_path(workspace, pair.task, pair.unit_model, "downstream", date)
    record = {
        "task": pair.task,
        "unit_model": pair.unit_model,
        "config": dataclasses.asdict(settings),
        "data": read_plan(workspace, *data),
    }
    with holding(record_file.parent):
        if record_file.exists():
            earlier = read_json(record_file, "baselines/train_downstream.py")
            if changed := [key for key, value in record.items() if earlier.get(key) != value]:
                raise UserError(
                    f"{record_file.parent}: holds a run with other {', '.join(changed)}; "
                    "choose a new --date"
                )
            print(f"{name}: {record_file.parent} already exists")
            return
        slots = Slots(workspace.downstream_data(data[0]) / "manifest/labels.json")
        device, why = choose_device()
        splits = {}
        for split in SPLITS:
            means, entries, index = read_means(workspace, *data, split)
            labels = slots.encode(entry.labels for entry in entries)
            splits[split] = Split(means, index, labels).to(device)
        print(f"{name}: training on {why}")
        model, curve = train(splits["train"], splits["valid"], slots.sizes, settings)
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        save_torch(weights, record_file.parent / "checkpoint_best.pt")
        update = max(curve, key=curve.get)  # the first if several are equal
        record |= {
            "trained_parameters": model.trained_parameters,
            "layer_weights": model.layer_weights.softmax(dim=0).tolist(),
            "updates": update,
            "valid": {"accuracy": curve[update]},
            "valid_curve": curve,
        }
        print(f"{name}: {model.trained_parameters:,} trained parameters, best at update {update:,}")
        answers = slots.decode(model.predict(splits["test"].means)[splits["test"].index])
        finish(workspace, pair, record_file, date, entries, answers, record)  # entries of test


def main() -> None:
    args = parse_flags(__doc__, Settings, CONFIG)
    for pair in find_pairs(args):
        train_pair(Workspace(args.workspace), pair, args.date, args.settings)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
