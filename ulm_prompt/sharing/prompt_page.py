"""The page to read beside a shared prompt."""

from __future__ import annotations

from ulm_prompt.sharing.prompt_record import TENSORS, PromptRecord

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
