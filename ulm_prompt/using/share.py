"""The page to read beside a shared prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.unit_models import find_unit_model, lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import load_verbal, read_prompt_text
from ulm_prompt.prompt_lm.checkpoint import Card, read_card, read_weights
from ulm_prompt.prompt_lm.lm import dict_fingerprint, load_dictionary
from ulm_prompt.prompt_lm.prompt import is_fine_tuned
from ulm_prompt.scoring.sample_file import origin_path
from ulm_prompt.scoring.scores import described_labels, scores_of
from ulm_prompt.using.prompt_record import MOST_SEQUENCES, TENSORS, PromptRecord
from ulm_prompt.using.speech_units import UnitFiles

MOST_LABELS = 100  # that the page lists


def page(record: PromptRecord, name: str, digest: str) -> str:
    """A short README.md of the prompt that is shared as folder ``name``; ``digest``: the SHA-256 of
    its tensors.
    """
    units = record.units
    layer = "" if units.layer is None else f", layer {units.layer}"
    kmeans = "" if units.kmeans is None else f", k-means `{units.kmeans}`"
    facts = {
        "answers with": f"{len(record.labels)} labels, {_length(record)}",
        "unit model": f"`{record.unit_model}` ({units.feature_type} features{layer}{kmeans})",
        "unit LM": f"`{record.lm_fingerprint}`, {record.lm_parameters:,} parameters, frozen",
        "dict": f"`{record.dict_fingerprint}`",
        "prompt": f"{record.prefix_prompt_length} vectors a layer, "
        f"{record.trained_parameters:,} trained parameters",
        "recipe": _recipe(record),
        "verbalizer": record.verbalizer,
        "valid accuracy": _valid(record.valid),
        "test": _test(record.test),
        "licence": record.license or "not stated",
        f"SHA-256 of `{TENSORS}`": f"`{digest}`",
    }
    table = "\n".join(f"| {title} | {value} |" for title, value in facts.items())
    return f"""\
# {record.task}: a prompt for {record.unit_model}

A few trained vectors that let a frozen unit language model answer the task {record.task} from
speech, with [SpeechPrompt](https://arxiv.org/abs/2203.16773). The LM, the k-means and the speech
model are not in this folder; the prompt works with exactly these:

| | |
|---|---|
{table}

```sh
python ulm_prompt/predict.py --prompt {name} clip.wav
```

Labels: {_labels(record)}.
"""


def _length(record: PromptRecord) -> str:
    count = record.labels_per_utterance
    return f"{count} an utterance" if count else "texts of any length"


def _recipe(record: PromptRecord) -> str:
    if record.recipe is None:
        return "not known (a published checkpoint)"
    return f"{record.recipe}, seed {record.training.get('seed', 'not known')}"


def _valid(scores: dict[str, float]) -> str:
    found = scores.get("accuracy")
    return "not known" if found is None else f"{found:.2f} %, the labels before it given"


def _test(scores: dict[str, float]) -> str:
    shown = [f"{name} {score:.2f} %" for name, score in scores.items() if name != "utterances"]
    if not shown:
        return "not known"
    return f"{', '.join(shown)}, of {scores.get('utterances', 0):,.0f} utterances"


def _labels(record: PromptRecord) -> str:
    by_slot: dict[str, list[str]] = {}
    for entry in record.labels.values():
        by_slot.setdefault(entry["slot"], []).append(f"`{entry['name']}`")
    listed = []
    for slot, names in by_slot.items():
        more = f" and {len(names) - MOST_LABELS} more" if len(names) > MOST_LABELS else ""
        listed.append(f"*{slot}*: {', '.join(names[:MOST_LABELS])}{more}")
    return "; ".join(listed)


# What a workspace knows of a prompt that was trained there, in the form that travels with it.


MADE_TEXT = "ulm_prompt/verbalizer.py"
FINE_TUNED = "{}: a whole fine-tuned LM, no prompt; decode it with sample.py"


def record_of(path: Path, task: str, unit_model: str, workspace: Workspace) -> PromptRecord:
    """The record of the checkpoint at ``path``, one of ours or a published one.

    Raises ``UserError`` for a fine-tuned LM, and where the workspace lacks what belongs to it.
    """
    card = read_card(path.parent)
    if card is not None and card.fine_tune:
        raise UserError(FINE_TUNED.format(path))
    config = load_task(task)
    pair = Pair(task, unit_model, config)
    method, verbal = (
        load_verbal(workspace, pair) if card is None else (card.verbalizer, card.verbal)
    )
    sequences, most = _label_sequences(workspace, pair, method, verbal, card)
    few = not config.is_sequence and 0 < len(sequences) <= MOST_SEQUENCES
    facts: dict[str, Any] = {"lm_fingerprint": "", "lm_parameters": 0, "recipe": None}
    facts |= {"training": {}, "trained_parameters": 0, "valid": {}, "made_by": {}}
    if card is not None:
        facts = {name: getattr(card, name) for name in facts}
        facts["made_by"] = {k: v for k, v in card.made_by.items() if k != "command"}  # has paths
    units = UnitFiles(find_unit_model(unit_model, workspace), config.downstream)
    units.check_fresh()
    return PromptRecord(
        task=task,
        unit_model=unit_model,
        units=units.record(),
        # as they were in training: labels of rows made anew may have other numbers
        labels=(card.labels if card else None) or described_labels(workspace, pair, verbal),
        labels_per_utterance=config.labels_per_utterance,
        most_labels=most,
        label_sequences=sequences if few else None,
        verbalizer=method,
        verbal=verbal,
        prefix_prompt_length=0 if card is None else card.prefix_prompt_length,
        dict_fingerprint=dict_fingerprint(load_dictionary(lm_folder(workspace, unit_model))),
        test={},
        license=None,
        **facts,
    )


def read_prompt(path: Path) -> dict[str, Tensor]:
    """The tensors of the prompt at ``path``. Raises ``UserError`` for a published fine-tuned LM."""
    state = read_weights(path)
    if is_fine_tuned(state):
        raise UserError(FINE_TUNED.format(path))
    return state


def scores_on_test(
    workspace: Workspace, task: str, unit_model: str, model_date: str, checkpoint: Path
) -> dict[str, float]:
    """The scores of the newest sample file that ``checkpoint`` gave by greedy decoding, in % but
    for ``utterances``; none where there is no such file.
    """
    name = workspace.samples(task, unit_model, model_date, "*")
    folder = workspace.root / "samples"
    prompt = sha256(checkpoint)
    files = [
        path
        for path in folder.glob(f"{name.parent.name}/{name.name}")
        if _is_greedy_answer_of(path, prompt)
    ]
    if not files:
        return {}
    scores = scores_of(max(files, key=lambda path: path.stat().st_mtime), workspace)
    return {name: round(value, 2) for name, value in scores.items()}


def _is_greedy_answer_of(samples: Path, prompt: str) -> bool:
    """Whether the file was decoded greedily with the prompt of that SHA-256, by its record."""
    path = origin_path(samples)
    if not path.is_file():
        return False
    origin = read_json(path, "ulm_prompt/sample.py")
    options = origin.get("options")
    greedy = isinstance(options, dict) and options.get("beam") == 1 and not options.get("sampling")
    return greedy and origin.get("prompt") == prompt


def _label_sequences(
    workspace: Workspace, pair: Pair, method: str, verbal: dict[str, str], card: Card | None
) -> tuple[list[list[str]], int]:
    """Train's distinct label sequences, and the length of the longest; none where the text that the
    prompt was trained on is no longer there.
    """
    config = pair.config
    text = workspace.prompt_text(pair.unit_model, config.downstream, f"data_{method}", "train")
    if card is not None and not (text.is_file() and card.data.get("train") == sha256(text)):
        return [], max(1, config.labels_per_utterance)
    label_of = {unit: label for label, unit in verbal.items()}
    found: dict[str, None] = dict.fromkeys(row for _, row in read_prompt_text(text, MADE_TEXT))
    try:
        sequences = [[label_of[unit] for unit in row.split()] for row in found]
    except KeyError as error:
        raise UserError(
            f"{text}: unit {error.args[0]} names no label; run {MADE_TEXT} again"
        ) from None
    return sequences, max(map(len, sequences))
