"""A run's checkpoints on disk: the prompt alone, and prompt.json that says what it belongs to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.runs import provenance
from pipeline.torch_files import load_safetensors, load_torch, save_torch
from ulm_prompt.prompt_lm.lm import (
    UnitLM,
    are_weights,
    dict_fingerprint,
    load_unit_lm,
    load_weights,
)
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import (
    KEYS,
    VALUES,
    WEIGHT,
    LabelMap,
    Prompt,
    in_input_space,
    is_fine_tuned,
    rounding,
    without_prompt,
)
from ulm_prompt.using.prompt_record import TENSORS, is_export, read_record

CARD = "prompt.json"
BEST = "checkpoint_best.pt"
LAST = "checkpoint_last.pt"


@dataclass
class Card:
    """What the next stage needs to know about a checkpoint; prompt.json holds it."""

    task: str
    unit_model: str
    prefix_prompt_length: int
    fine_tune: bool
    lm_fingerprint: str
    verbalizer: str
    verbal: dict[str, str]
    recipe: str
    training: dict[str, Any]
    data: dict[str, str]  # the hashes of the text that the data-bin was made from
    lm_parameters: int
    labels_per_utterance: int = 0
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # label -> its slot and name
    made_by: dict[str, Any] = field(default_factory=provenance)
    trained_parameters: int = 0
    updates: int = 0  # at the best checkpoint
    total_updates: int = 0
    rounding: float = 0.0  # see projection.py
    valid: dict[str, float] = field(default_factory=dict)


# what must be the same for a run to go on; it may go on for longer
_FIXED = (
    "task", "unit_model", "prefix_prompt_length", "fine_tune", "lm_fingerprint", "verbalizer",
    "verbal", "data",
)  # fmt: skip
_EXTENSIBLE = ("max_epoch", "patience")
# knobs that the cards of earlier versions lack, and what these did
_LATER = {"shots": 0, "verbalizer": "fixed", "unit_noise": 0.0, "skip_long": False}


def read_card(folder: Path) -> Card | None:
    """The folder's card, or what a shared prompt says of itself; None where there is neither (a
    published checkpoint).
    """
    path = folder / CARD
    if is_export(folder):
        record = read_record(folder)
        shared = {entry.name for entry in dataclasses.fields(Card)} & vars(record).keys()
        known = {name: getattr(record, name) for name in shared}
        return Card(**known, fine_tune=False, data={})
    if not path.exists():
        return None
    values = read_json(path, "ulm_prompt/train.py")
    kinds = get_type_hints(Card)
    if not set(_FIXED) <= values.keys() <= kinds.keys():
        raise UserError(f"{path}: not a prompt's card; run ulm_prompt/train.py with a new --date")
    for name, value in values.items():
        kind = get_origin(kinds[name]) or kinds[name]
        fits = isinstance(value, (int, float) if kind is float else kind)
        fits = fits and isinstance(value, bool) == (kind is bool)
        if name == "verbal":
            fits = fits and all(isinstance(unit, str) for unit in value.values())
        if not fits:
            found = ascii(value)[:60]
            raise UserError(f"{path}: {name}: expected {kind.__name__}, found {found}; train again")
    return Card(**values)


def begin(folder: Path, card: Card) -> None:
    """Write the card before training. Raises ``UserError`` when another run lies in the folder."""
    earlier = read_card(folder)
    has_run = any((folder / name).exists() for name in (BEST, LAST))
    if has_run and earlier is None:
        raise UserError(
            f"{folder}: holds a checkpoint that was not trained here; choose a new --date"
        )
    if has_run:
        if changed := differences(earlier, card):
            raise UserError(
                f"{folder}: holds a run with another {changed[0]}; choose a new --date, "
                "or remove the folder"
            )
        results = ("trained_parameters", "updates", "total_updates", "rounding", "valid")
        card = dataclasses.replace(card, **{name: getattr(earlier, name) for name in results})
    write_json(folder / CARD, dataclasses.asdict(card))


def differences(earlier: Card, card: Card) -> list[str]:
    """In what a run of one card cannot go on as one of the other."""
    fixed = [name for name in _FIXED if getattr(earlier, name) != getattr(card, name)]
    return fixed + [
        name
        for name, value in card.training.items()
        if name not in _EXTENSIBLE and earlier.training.get(name, _LATER.get(name)) != value
    ]


def finish(folder: Path, card: Card, curve: dict[int, dict[str, float]], lm: Path) -> Card:
    """Reduce the best checkpoint to what was trained, and complete the card from the learning
    curve. ``lm``: the LM's folder.
    """
    best, last = load_torch(folder / BEST), load_torch(folder / LAST)
    if "optimizer_history" in best:
        updates = best["optimizer_history"][-1]["num_updates"]
        best = {**_prompt_alone(best["model"], lm), "updates": updates}
        save_torch(best, folder / BEST)
    for between in folder.glob("checkpoint_*_*.pt"):  # fairseq's own of the last validation
        between.unlink()
    scores = curve.get(best["updates"], {})
    card = dataclasses.replace(
        card,
        trained_parameters=(
            card.lm_parameters
            if card.fine_tune
            else sum(tensor.numel() for tensor in best["model"].values())
        ),
        updates=best["updates"],
        rounding=best["rounding"],
        total_updates=last["optimizer_history"][-1]["num_updates"],
        valid={name: scores[name] for name in ("loss", "label_loss", "accuracy") if name in scores},
    )
    write_json(folder / CARD, dataclasses.asdict(card))
    return card


def _prompt_alone(state: dict[str, Tensor], lm: Path) -> dict[str, Any]:
    """A running state's weights under the published names, and their rounding.

    A prompt trained ``projected`` is solved for anew: the LM may have been in half precision.
    """
    if KEYS not in state:
        return {"model": state, "rounding": 0.0}
    layers = load_unit_lm(lm).model.decoder.layers
    raw = Prompt.from_published_state(state, len(layers), BEST)
    raw.keys.data, raw.values.data = state[KEYS], state[VALUES]
    solved = in_input_space(raw, layers).published_state()
    beside = {WEIGHT: state[WEIGHT]} if WEIGHT in state else {}
    return {"model": {**solved, **beside}, "rounding": rounding({**state, **solved}, layers)}


def load(folder: Path, lm_folder: Path, name: str = BEST) -> tuple[PromptLanguageModel, UnitLM]:
    """The model of a checkpoint over its LM, in evaluation mode.

    Reads our checkpoints, the published ones (prompt and LM weights in one file) and shared
    prompts. Raises ``UserError`` when the prompt was trained on another LM.
    """
    state = read_weights(folder / name)
    unit_lm = load_unit_lm(lm_folder)
    return prompted(folder / name, state, unit_lm, lm_folder), unit_lm


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or a shared prompt. Raises ``UserError`` where there are none."""
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    state = load_torch(path, mapped=True).get("model")
    if not are_weights(state):
        raise UserError(f"{path}: no model in it; expected a prompt checkpoint")
    return state


def prompted(
    path: Path, state: dict[str, Tensor], unit_lm: UnitLM, lm_folder: Path
) -> PromptLanguageModel:
    """``state``, read from ``path``, over the LM of ``lm_folder``, in evaluation mode.

    Several prompts may stand over one LM; a fine-tuned one takes its place. Raises ``UserError``
    when the prompt was trained on another.
    """
    card = read_card(path.parent)
    if card is not None and card.lm_fingerprint != unit_lm.fingerprint:
        raise UserError(
            f"{lm_folder}: its LM has fingerprint {unit_lm.fingerprint}, but the prompt in "
            f"{path.parent} was trained on {card.lm_fingerprint}; put that LM there, or train anew"
        )
    if path.name == TENSORS:
        _check_its_dict(path.parent, unit_lm, lm_folder)
    if card is not None and card.fine_tune:
        load_weights(unit_lm.model, state, path)
        model = PromptLanguageModel(unit_lm.model, None)
    else:
        if card is None and is_fine_tuned(state):
            load_weights(unit_lm.model, without_prompt(state), path)
        elif card is None:
            _check_its_own_lm(state, unit_lm, path, lm_folder)
        layers = len(unit_lm.model.decoder.layers)
        prompt = Prompt.from_published_state(state, layers, str(path))
        if prompt.sep.shape[1] != unit_lm.model.decoder.embed_dim:
            raise UserError(
                f"{path}: a prompt for an LM {prompt.sep.shape[1]} wide, that of {lm_folder} has "
                f"{unit_lm.model.decoder.embed_dim}; this prompt belongs to another LM"
            )
        if not all(parameter.isfinite().all() for parameter in prompt.parameters()):
            raise UserError(f"{path}: holds values that are not finite; train it again")
        if card is not None and prompt.length != card.prefix_prompt_length:
            raise UserError(
                f"{path}: a prompt of length {prompt.length}, but {CARD} beside it says "
                f"{card.prefix_prompt_length}; take both from one place"
            )
        label_map = _label_map(state, card, unit_lm, str(path))
        model = PromptLanguageModel(unit_lm.model, prompt, label_map)
    return model.eval()


def _check_its_dict(folder: Path, unit_lm: UnitLM, lm_folder: Path) -> None:
    wanted, found = read_record(folder).dict_fingerprint, dict_fingerprint(unit_lm.dictionary)
    if wanted != found:
        raise UserError(
            f"{lm_folder / 'dict.txt'}: has fingerprint {found}, but the prompt in {folder} was "
            f"trained with {wanted}; take the dict and the LM from one archive"
        )


def _label_map(
    state: dict[str, Tensor], card: Card | None, unit_lm: UnitLM, source: str
) -> LabelMap | None:
    """The learnable verbalizer of a checkpoint; None where labels are read off as units."""
    if card is None or card.training.get("verbalizer") != "learnable":
        return None
    symbols = unit_lm.dictionary
    units = [symbols.index(unit) for unit in card.verbal.values()]
    label_map = LabelMap(units, len(symbols), card.labels_per_utterance, symbols.eos())
    label_map.load_state(state, source)
    return label_map


def _check_its_own_lm(
    state: dict[str, Tensor], unit_lm: UnitLM, path: Path, lm_folder: Path
) -> None:
    """A published checkpoint holds its LM too: that must be the one at hand."""
    for name, weight in unit_lm.model.state_dict().items():
        other = state.get(name, weight)
        # --fp16 stored it in half precision: equal but for the rounding
        eps = torch.finfo(other.dtype).eps if other.is_floating_point() else 0.0
        if other.shape != weight.shape or not torch.allclose(
            other.float(), weight, rtol=eps, atol=1e-6
        ):
            raise UserError(
                f"{path}: its own LM differs from {lm_folder} in {name}; put that there"
            )
