"""Complete the record of a trained prompt from its workspace, and write the folder to share."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

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
from ulm_prompt.prompt_data.verbal import (
    find_renamed_text,
    load_verbal,
    read_prompt_text,
    renamed_texts,
)
from ulm_prompt.prompt_lm.checkpoint import prompted
from ulm_prompt.prompt_lm.lm import UnitLM, dict_fingerprint, load_dictionary, load_unit_lm
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.scoring.sample_file import are_default, origin_of
from ulm_prompt.scoring.scores import COST, scores_of, written
from ulm_prompt.using.speech import UnitFiles

MOST_LABELS = 100  # labels per slot in README.md
MOST_SEQUENCES = 10_000  # the most label sequences in a record
FINE_TUNED = "{}: expected a prompt, found a fine-tuned LM; decode it with sample.py"
LICENCES = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "lgpl-3.0",
    "mit", "mpl-2.0", "unlicense",
}  # fmt: skip
METRICS = {"accuracy": "accuracy", "macro F1": "f1", "slot type F1": "f1"}
METRICS |= {"WER": "wer", "CER": "cer", "slot value CER": "cer"}  # our name -> the Hub's name


def record_of(path: Path, task: str, unit_model: str, workspace: Workspace) -> PromptRecord:
    """Return the record of the prompt at ``path``. The record of a checkpoint, ours or a published
    one, is completed from the workspace.

    Raises ``UserError`` for a fine-tuned LM, an unfinished run, or missing files in the workspace.
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
    sequences = _label_sequences(workspace, pair, record)
    few = not pair.config.is_text and 0 < len(sequences) <= MOST_SEQUENCES
    files = UnitFiles(find_unit_model(unit_model, workspace), pair.config.downstream)
    files.check_fresh()
    if not (labels := record.labels):  # rows made again may use other label numbers
        named = named_labels(workspace, pair, record.verbal)
        labels = {number: label._asdict() for number, label in named.items()}
    lm_dir = files.unit_model.lm_folder
    symbols = record.dict_fingerprint or dict_fingerprint(load_dictionary(lm_dir))
    return dataclasses.replace(
        record,
        units=files.unit_settings(),
        labels=labels,
        labels_per_utterance=pair.config.labels_per_utterance,
        most_labels=max(map(len, sequences), default=max(1, pair.config.labels_per_utterance)),
        label_sequences=sequences if few else None,
        dict_fingerprint=symbols,
    )


def _label_sequences(workspace: Workspace, pair: Pair, record: PromptRecord) -> list[list[str]]:
    """Return the distinct label sequences of train; an empty list if the text that the prompt was
    trained on no longer exists.
    """
    if record.run is None:
        text = renamed_texts(workspace, pair)["train"]
    else:
        text = find_renamed_text(workspace, pair, "train", record.run.data.get("train"))
        if text is None:
            return []
    label_of = {unit: label for label, unit in record.verbal.items()}
    sequences = dict.fromkeys(units for _, units in read_prompt_text(text))
    return [[label_of[unit] for unit in units.split()] for units in sequences]


def load_prompted_lm(path: Path, unit_lm: UnitLM, lm_folder: Path) -> PromptLanguageModel:
    """Load the prompt at ``path``, with the LM. Raises ``UserError`` for a published FT-LM."""
    model = prompted(path, unit_lm, lm_folder)
    if model.prompt is None or model.prompt.length == 0:
        raise UserError(FINE_TUNED.format(path))
    return model


def write_shared(
    checkpoint: Path, task: str, unit_model: str, model_date: str, workspace: Workspace,
    license: str | None, out: Path, name: str,
) -> PromptRecord:  # fmt: skip
    """Check the prompt against its LM and write the folder to share; a failure leaves no folder.
    ``name``: the value for ``--prompt``. Returns the record.
    """
    record = record_of(checkpoint, task, unit_model, workspace)
    folder = lm_folder(workspace, unit_model)
    unit_lm = load_unit_lm(folder)
    model = load_prompted_lm(checkpoint, unit_lm, folder)
    tensors = model.state_dict()
    record = dataclasses.replace(
        record,
        **model.prompt.lengths,
        trained_parameters=sum(tensor.numel() for tensor in tensors.values()),
        **unit_lm.identity,
        made_by={
            stage: {key: value for key, value in made_by.items() if key != "command"}  # has paths
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
            handle.write(page(record, name))
    return record


def scores_on_test(
    workspace: Workspace, record: PromptRecord, model_date: str, checkpoint: Path
) -> dict[str, float]:
    """Return the scores, in %, of ``checkpoint`` with the default search, on the test split that
    existed when the run was trained; an empty dict if no sample file has these scores.
    """
    files = workspace.samples(record.task, record.unit_model, model_date, "*")
    run_test = record.run.data.get("test") if record.run else None
    for path in sorted(files.parents[1].glob(f"{files.parent.name}/{files.name}")):
        origin = origin_of(path)
        test, options = (origin.get("data") or {}).get("test"), origin.get("options") or {}
        is_same_test = None in (test, run_test) or test == run_test
        is_default = are_default(options, record.is_text, record.most_labels)
        if origin.get("prompt") == sha256(checkpoint) and is_same_test and is_default:
            scores = scores_of(path, workspace)
            return {name: round(value, 4 if name == COST else 2) for name, value in scores.items()}
    return {}


def front_matter(record: PromptRecord, corpus: str, name: str) -> str:
    """The YAML between ``---`` that the Hub reads: licence, corpus, task, scores in %."""
    kind = "automatic-speech-recognition" if record.is_text else "audio-classification"
    facts: dict[str, Any] = {
        "library_name": "speechprompt",
        "pipeline_tag": kind,
        "tags": ["speechprompt", "prompt-tuning", "speech", record.unit_model],
        "datasets": [corpus],
    }
    licence = (record.license or "").lower()
    if licence in LICENCES:
        facts["license"] = licence
    elif licence:
        facts["license"] = "other"
        facts["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.")
    metrics = [
        {"type": METRICS[score], "name": title, "value": value}
        for title, value in record.test.items()
        if (score := title.removesuffix(" within labels")) in METRICS
    ]
    if metrics:
        facts["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
        dataset = {"type": corpus, "name": corpus, "split": "test"}
        task = {"type": kind, "name": record.task}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        facts["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"


def page(record: PromptRecord, name: str) -> str:
    """Return a short README.md. ``name``: the value for ``--prompt``."""
    units, count = record.units, record.labels_per_utterance
    features = f"{units.feature_type} features"
    features += "" if units.layer is None else f", layer {units.layer}"
    features += "" if units.dtype == "float32" else f", in {units.dtype}"
    features += "" if units.kmeans is None else f", k-means `{units.kmeans}`"
    recipe, valid, test = "unknown (a published checkpoint)", "unknown", "unknown"
    if record.recipe is not None:
        recipe = f"{record.recipe}, seed {record.training.get('seed', 'unknown')}"
    if "accuracy" in record.valid:
        valid = f"{record.valid['accuracy']:.2f} %, given the correct previous labels"
    if scores := [f"{k} {written(k, n)}" for k, n in record.test.items() if k != "utterances"]:
        test = f"{', '.join(scores)}, of {record.test.get('utterances', 0):,.0f} utterances"
    facts = {
        "answers with": f"{len(record.labels)} labels, "
        + (f"{count} per utterance" if count else "texts of any length"),
        "unit model": f"`{record.unit_model}` ({features})",
        "unit LM": f"`{record.lm_fingerprint}`, {record.lm_parameters:,} parameters, frozen",
        "dict": f"`{record.dict_fingerprint}`",
        "prompt": f"{record.prefix_prompt_length or record.infix_prompt_length} vectors per layer"
        f"{' that only <s> and later tokens see' * (record.infix_prompt_length > 0)}, "
        f"{record.trained_parameters:,} trained parameters",
        "recipe": recipe,
        "verbalizer": record.verbalizer,
        "valid accuracy": valid,
        "test": test,
        "licence": record.license or "not stated",
        f"SHA-256 of `{TENSORS}`": f"`{record.files[TENSORS]}`",
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

This folder contains a few trained vectors. With them, a frozen unit language model answers the task
{record.task} from speech ([SpeechPrompt](https://arxiv.org/abs/2203.16773)). The LM, the k-means
and the speech model are not in this folder. The prompt only works with these:

| | |
|---|---|
{table}

```sh
python ulm_prompt/predict.py --prompt {name} clip.wav
```

Labels: {"; ".join(labels)}.
"""
