"""What a workspace knows of a prompt that was trained there, and the page for whoever gets it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replacing_folder, sha256, writing
from pipeline.runs import provenance
from pipeline.torch_files import save_safetensors
from pipeline.unit_models import find_unit_model, lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.label_names import named_labels
from ulm_prompt.prompt_data.prompt_record import (
    README,
    TENSORS,
    PromptRecord,
    read_record,
    write_record,
)
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import load_verbal, read_prompt_text
from ulm_prompt.prompt_lm.checkpoint import prompted
from ulm_prompt.prompt_lm.lm import UnitLM, dict_fingerprint, load_dictionary, load_unit_lm
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.scoring.sample_file import are_default, made_from
from ulm_prompt.scoring.scores import COST, scores_of, written
from ulm_prompt.using.hub import front_matter
from ulm_prompt.using.speech import UnitFiles

MOST_LABELS = 100  # that the page lists of a slot
MOST_SEQUENCES = 10_000  # of label sequences that a record holds
MADE_TEXT = "ulm_prompt/verbalizer.py"
FINE_TUNED = "{}: a whole fine-tuned LM, no prompt; decode it with sample.py"


def record_of(path: Path, task: str, unit_model: str, workspace: Workspace) -> PromptRecord:
    """The record of the prompt at ``path``: a shared one's as it is, another checkpoint's (ours or
    a published one) completed by what the workspace knows.

    Raises ``UserError`` for a fine-tuned LM, for an unfinished run, and where the workspace lacks
    what belongs to it.
    """
    record = read_record(path.parent)
    if record is not None and record.units is not None:
        return record
    pair = Pair(task, unit_model, load_task(task))
    if record is None:
        method, verbal = load_verbal(workspace, pair)
        record = PromptRecord(task, unit_model, 0, method, verbal, lm_fingerprint="")
    if record.fine_tune:
        raise UserError(FINE_TUNED.format(path))
    if record.run and not record.trained_parameters:
        raise UserError(f"{path}: its training has not finished; run ulm_prompt/train.py again")
    sequences, most_labels = _label_sequences(workspace, pair, record)
    few = not pair.config.is_sequence and 0 < len(sequences) <= MOST_SEQUENCES
    files = UnitFiles(find_unit_model(unit_model, workspace), pair.config.downstream)
    files.check_fresh()
    labels = record.labels  # as they were in training: rows made again may number them differently
    if not labels:
        named = named_labels(workspace, pair, record.verbal)
        labels = {number: label._asdict() for number, label in named.items()}
    return dataclasses.replace(
        record,
        units=files.unit_settings(),
        labels=labels,
        labels_per_utterance=pair.config.labels_per_utterance,
        most_labels=most_labels,
        label_sequences=sequences if few else None,
        dict_fingerprint=record.dict_fingerprint
        or dict_fingerprint(load_dictionary(files.lm_folder)),
    )


def _label_sequences(
    workspace: Workspace, pair: Pair, record: PromptRecord
) -> tuple[list[list[str]], int]:
    """Train's distinct label sequences, and the length of the longest; none where the text that
    the prompt was trained on no longer exists.
    """
    folder = f"data_{record.verbalizer}"
    text = workspace.prompt_text(pair.unit_model, pair.config.downstream, folder, "train")
    if record.run and not (text.is_file() and record.run.data.get("train") == sha256(text)):
        return [], max(1, pair.config.labels_per_utterance)
    label_of = {unit: label for label, unit in record.verbal.items()}
    answers = dict.fromkeys(labels for _, labels in read_prompt_text(text, MADE_TEXT))
    try:
        sequences = [[label_of[unit] for unit in labels.split()] for labels in answers]
    except KeyError as error:
        raise UserError(
            f"{text}: unit {error.args[0]} names no label; run {MADE_TEXT} again"
        ) from None
    return sequences, max(map(len, sequences))


def load_prompt(path: Path, unit_lm: UnitLM, lm_folder: Path) -> PromptLanguageModel:
    """The prompt at ``path`` over the LM. Raises ``UserError`` for a published fine-tuned LM."""
    model = prompted(path, unit_lm, lm_folder)
    if model.prompt is None or model.prompt.length == 0:
        raise UserError(FINE_TUNED.format(path))
    return model


def write_shared(
    checkpoint: Path, pair: tuple[str, str], model_date: str, workspace: Workspace,
    license: str | None, out: Path, name: str | None = None,
) -> PromptRecord:  # fmt: skip
    """Write the folder to share, whole or not at all, from a prompt that is checked against the
    workspace's LM. ``pair``: task and unit model; ``name``: what ``--prompt`` calls it. Returns
    the record.
    """
    record = record_of(checkpoint, *pair, workspace)
    folder = lm_folder(workspace, pair[1])
    unit_lm = load_unit_lm(folder)
    model = load_prompt(checkpoint, unit_lm, folder)
    tensors = model.prompt.published_state()
    if model.label_map is not None:
        tensors |= model.label_map.state()
    record = dataclasses.replace(
        record,
        **model.prompt.lengths,
        trained_parameters=sum(tensor.numel() for tensor in tensors.values()),
        **unit_lm.identity,
        made_by={
            stage: {name: value for name, value in made_by.items() if name != "command"}  # paths
            for stage, made_by in (("trained", record.made_by), ("exported", provenance()))
        },
        run=None,
        test=scores_on_test(workspace, record, model_date, checkpoint),
        license=license,
    )
    with replacing_folder(out) as fresh:
        save_safetensors(tensors, fresh / TENSORS)
        record = dataclasses.replace(record, files={TENSORS: sha256(fresh / TENSORS)})
        write_record(fresh, record)
        with writing(fresh / README) as handle:
            handle.write(front_matter(record, load_task(record.task).downstream, out.name))
            handle.write(page(record, name or out.name, record.files[TENSORS]))
    return record


def scores_on_test(
    workspace: Workspace, record: PromptRecord, model_date: str, checkpoint: Path
) -> dict[str, float]:
    """The scores of what ``checkpoint`` answered by the default search, in % but for
    ``utterances``; none where there is no such sample file. A run's prompt is scored on the test
    split that it was trained beside.
    """
    name = workspace.samples(record.task, record.unit_model, model_date, "*")
    for path in sorted((workspace.root / "samples").glob(f"{name.parent.name}/{name.name}")):
        origin = made_from(path)
        data, of_run = origin.get("data") or {}, record.run.data if record.run else {}
        is_of_its_test = data.get("test") in (None, of_run.get("test", data.get("test")))
        is_default = are_default(origin.get("options") or {}, record.is_text, record.most_labels)
        if origin.get("prompt") == sha256(checkpoint) and is_of_its_test and is_default:
            scores = scores_of(path, workspace)
            return {name: round(value, 4 if name == COST else 2) for name, value in scores.items()}
    return {}


def page(record: PromptRecord, name: str, digest: str) -> str:
    """A short README.md of the prompt that ``--prompt`` calls ``name``; ``digest``: the SHA-256 of
    its tensors.
    """
    units, count = record.units, record.labels_per_utterance
    layer = "" if units.layer is None else f", layer {units.layer}"
    layer += "" if units.dtype == "float32" else f", in {units.dtype}"
    kmeans = "" if units.kmeans is None else f", k-means `{units.kmeans}`"
    recipe, valid = "not known (a published checkpoint)", "not known"
    if record.recipe is not None:
        recipe = f"{record.recipe}, seed {record.training.get('seed', 'not known')}"
    if "accuracy" in record.valid:
        valid = f"{record.valid['accuracy']:.2f} %, the labels before it given"
    scores = [f"{key} {written(key, v)}" for key, v in record.test.items() if key != "utterances"]
    test = f"{', '.join(scores)}, of {record.test.get('utterances', 0):,.0f} utterances"
    facts = {
        "answers with": f"{len(record.labels)} labels, "
        + (f"{count} an utterance" if count else "texts of any length"),
        "unit model": f"`{record.unit_model}` ({units.feature_type} features{layer}{kmeans})",
        "unit LM": f"`{record.lm_fingerprint}`, {record.lm_parameters:,} parameters, frozen",
        "dict": f"`{record.dict_fingerprint}`",
        "prompt": f"{record.prefix_prompt_length or record.infix_prompt_length} vectors a layer"
        f"{' where <s> is' * (record.infix_prompt_length > 0)}, "
        f"{record.trained_parameters:,} trained parameters",
        "recipe": recipe,
        "verbalizer": record.verbalizer,
        "valid accuracy": valid,
        "test": test if scores else "not known",
        "licence": record.license or "not stated",
        f"SHA-256 of `{TENSORS}`": f"`{digest}`",
    }
    table = "\n".join(f"| {title} | {value} |" for title, value in facts.items())
    slots: dict[str, list[str]] = {}
    for entry in record.labels.values():
        slots.setdefault(entry["slot"], []).append(f"`{entry['name']}`")
    labels = []
    for slot, names in slots.items():
        more = f" and {len(names) - MOST_LABELS} more" if len(names) > MOST_LABELS else ""
        labels.append(f"*{slot}*: {', '.join(names[:MOST_LABELS])}{more}")
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

Labels: {"; ".join(labels)}.
"""
