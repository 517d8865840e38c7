"""The commands that make a cell: the stage scripts, as a researcher types them."""

from __future__ import annotations

from experiments.paper import Cell, has_rows, unit_lm_facts
from pipeline.errors import UserError
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.verbal import check_data_bin, load_verbal
from ulm_prompt.training.runs import OURS

Command = list[str]
SAMPLE_DATE = "tables"
BASELINES = {"FT-DM": "baselines/train_downstream.py", "n-grams": "baselines/unit_ngrams.py"}
PUBLISHED_WIDTH, PUBLISHED_LAYERS = 1024, 12  # of the released LMs


def trained_here(workspace: Workspace, unit_model: str) -> bool:
    """Whether the unit LM is train_ulm.py's, not a released one."""
    return (lm_folder(workspace, unit_model) / OURS).exists()


def to_prepare(cell: Cell, workspace: Workspace) -> list[Command]:
    """What is still to be done once for all seeds: units, text, verbalizer and binaries."""
    data = ["--downstream", cell.pair.config.downstream, "--unit_model", cell.unit_model]
    if cell.method == "FT-DM":
        return [
            ["preprocess/runner.py", "--action", "generate_manifest", *data],
            ["baselines/layer_means.py", *data],
        ]
    commands = []
    if not has_rows(cell, workspace):
        for action in ("generate_manifest", "quantized", "postprocess"):
            commands.append(["preprocess/runner.py", "--action", action, *data])
    if cell.method == "n-grams":
        return commands
    try:
        check_data_bin(workspace, cell.pair)
    except UserError:  # missing or stale
        selection = ["--prompt_task", cell.task, "--unit_model", cell.unit_model]
        for script in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
            commands.append([f"ulm_prompt/{script}.py", *selection])
    return commands


def to_train(cell: Cell, seed: int, workspace: Workspace) -> list[Command]:
    """Training and decoding with one seed; each goes on where it was stopped."""
    selection = ["--prompt_task", cell.task, "--unit_model", cell.unit_model]
    date = cell.date(seed)
    if cell.method in BASELINES:
        return [[BASELINES[cell.method], *selection, "--date", date, "--set", f"seed={seed}"]]
    train = ["ulm_prompt/train.py", *selection, "--date", date]
    own = trained_here(workspace, cell.unit_model)
    if cell.method == "FT-LM":
        train.append("--fine_tune")
    else:
        train += ["--recipe", "fast" if own else "published"]
        train += ["--prefix_prompt_length", str(_prompt_length(cell, workspace))]
    learnable = ["verbalizer=learnable"] * (cell.method == "PT-v2")
    train += ["--set", *(cell.own_lm if own else []), *learnable, f"seed={seed}"]
    # a published figure must not depend on which number format the machine is fast in
    sample = ["ulm_prompt/sample.py", *selection, "--model_date", date, "--dtype", "float32"]
    return [train, [*sample, "--sample_date", SAMPLE_DATE]]


def _prompt_length(cell: Cell, workspace: Workspace) -> int:
    """P that gives at most as many trained numbers, those of a learnable verbalizer included, as
    the published P has on the released LM.
    """
    lm = unit_lm_facts(lm_folder(workspace, cell.unit_model))
    budget = trained_numbers(cell.prompt, PUBLISHED_WIDTH, PUBLISHED_LAYERS)
    if cell.method == "PT-v2":
        budget -= len(load_verbal(workspace, cell.pair)[1]) * lm.symbols
    return max(1, (budget - lm.width) // (lm.width * (1 + 2 * lm.layers)))


def trained_numbers(length: int, width: int, layers: int) -> int:
    """P D (1 + 2 L) + D: input, key and value vectors, and ``<s>``."""
    return length * width * (1 + 2 * layers) + width
