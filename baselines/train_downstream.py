"""Train the downstream model on frozen speech features ("FT-DM"), and decode the test split.

Reads what layer_means.py wrote. Trains on a GPU when there is one, in seconds to minutes on a CPU;
a run that is finished is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from baselines.classifiers.answers import Slots, answers_path, card_path, write_answers
from baselines.classifiers.downstream import DownstreamModel, Settings, Split, load_settings, train
from baselines.classifiers.means import COMMAND, Means, read_means, read_plan
from pipeline.errors import UserError, run
from pipeline.files import holding, read_json, write_json
from pipeline.rows import SPLITS
from pipeline.runs import provenance
from pipeline.torch_files import save_torch
from pipeline.workspace import Workspace
from preprocess.speech2unit.features import best_device
from ulm_prompt.prompt_data.tasks import Pair, add_selection, load_task, task_names

MODEL = "checkpoint_best.pt"


def find_pairs(args: argparse.Namespace) -> list[Pair]:
    """The tasks and unit models whose layer means lie in the workspace, narrowed by the flags."""
    workspace = Workspace(args.workspace)
    pairs = []
    for task in [args.prompt_task] if args.prompt_task else task_names():
        config = load_task(task)
        if config.is_sequence:
            continue  # a text is no class
        data = workspace.downstream_data(config.downstream)
        for record in sorted(data.glob(f"{args.unit_model or '*'}/layer_means/provenance.json")):
            pairs.append(Pair(task, record.parents[1].name, config))
    if not pairs:
        example = COMMAND.format("speech_commands", args.unit_model or "hubert100")
        raise UserError(
            f"{args.workspace / 'preprocess'}: no layer means for {args.prompt_task or 'any task'} "
            f"with {args.unit_model or 'any unit model'}; make them, for example {example}"
        )
    return pairs


def train_pair(args: argparse.Namespace, pair: Pair, settings: Settings) -> None:
    """Train and decode one task on one speech model."""
    workspace = Workspace(args.workspace)
    name = f"{pair.task} {pair.unit_model}"
    path = card_path(workspace, pair.task, pair.unit_model, "downstream", args.date)
    folder = path.parent
    card = {
        "task": pair.task,
        "unit_model": pair.unit_model,
        "config": dataclasses.asdict(settings),
        "data": read_plan(workspace, pair.config.downstream, pair.unit_model),
    }
    with holding(folder):
        if is_done(path, card):
            print(f"{name}: {folder} is there already")
            return
        slots = Slots(workspace.downstream_data(pair.config.downstream) / "manifest/labels.json")
        found = {
            split: read_means(workspace, pair.config.downstream, pair.unit_model, split)
            for split in SPLITS
        }
        device, why = best_device()
        splits = {key: as_split(means, slots).to(device) for key, means in found.items()}
        print(f"{name}: training on {why}")
        model, curve = train(splits["train"], splits["valid"], slots.sizes, settings)
        answers = slots.decode(model.predict(splits["test"].means)[splits["test"].index])
        entries = found["test"].entries
        answered = answers_path(workspace, pair.task, pair.unit_model, "downstream", args.date)
        right = write_answers(answered, *zip(*((e.file, e.labels) for e in entries)), answers)
        save_torch(
            {name: value.cpu() for name, value in model.state_dict().items()}, folder / MODEL
        )
        card |= results(model, curve, right) | {"made_by": provenance()}
        write_json(path, card)
    print(
        f"{name}: {model.trained_parameters:,} trained parameters, "
        f"best at update {card['updates']:,}: "
        f"{card['valid']['accuracy']:.2f} % right on valid, {right:.2f} % on test -> {answered}"
    )


def is_done(path: Path, card: dict) -> bool:
    """Whether that run is finished. Raises ``UserError`` when another one lies there."""
    if not path.exists():
        return False
    earlier = read_json(path, "baselines/train_downstream.py")
    changed = [key for key, value in card.items() if earlier.get(key) != value]
    if changed:
        raise UserError(
            f"{path.parent}: holds a run with other {', '.join(changed)}; choose a new --date"
        )
    return True


def as_split(means: Means, slots: Slots) -> Split:
    return Split(means.means, means.index, slots.encode(entry.labels for entry in means.entries))


def results(model: DownstreamModel, curve: dict[int, float], test: float) -> dict:
    """What the card says of a finished run."""
    best = max(curve.values())
    return {
        "trained_parameters": model.trained_parameters,
        "layer_weights": model.layer_weights.softmax(dim=0).tolist(),
        "updates": min(update for update, value in curve.items() if value == best),
        "valid": {"accuracy": best},
        "test": {"accuracy": test},
        "valid_curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", required=True, help="names the run, for example 20221122")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="override config/downstream.yaml"
    )
    add_selection(parser)
    args = parser.parse_args()
    settings = load_settings(args.set)
    for pair in find_pairs(args):
        train_pair(args, pair, settings)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
