"""A prompt's checkpoints: how a run begins and ends one, and how it is loaded over its LM."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.torch_files import load_safetensors, load_torch, save_torch
from ulm_prompt.prompt_data import prompt_record
from ulm_prompt.prompt_data.prompt_record import BEST, LAST, RECORD, PromptRecord, read_record
from ulm_prompt.prompt_lm import prompt as prompts
from ulm_prompt.prompt_lm.lm import UnitLM, are_weights, load_unit_lm, load_weights
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import KEYS, MAP, VALUES, LabelMap, Prompt


def begin(folder: Path, record: PromptRecord) -> PromptRecord:
    """Write the record before training, and return it. It names no files until training ends.

    Raises ``UserError`` when the folder holds another run, or other checkpoints than its run left.
    """
    earlier = read_record(folder)
    if any((folder / name).exists() for name in (BEST, LAST, prompt_record.TENSORS)):
        if earlier is None:
            raise UserError(
                f"{folder}: holds a checkpoint that was not trained here; choose a new --date"
            )
        if changed := prompt_record.differences(earlier, record):
            raise UserError(
                f"{folder}: holds a run with another {changed[0]}; choose a new --date, "
                "or remove the folder"
            )
        prompt_record.has_ended(folder, earlier)
        run = dataclasses.replace(earlier.run, lm=record.run.lm)
        record = dataclasses.replace(record, valid=earlier.valid, run=run)
    prompt_record.write_record(folder, record)
    return record


def finish(
    folder: Path, record: PromptRecord, curve: dict[int, dict[str, float]], lm: Path
) -> PromptRecord:
    """Reduce the best checkpoint to what was trained, and complete the record, which ``begin``
    returned, from the learning curve. ``lm``: the LM's folder.
    """
    best, last = load_torch(folder / BEST), load_torch(folder / LAST)
    if "optimizer_history" in best:
        updates = best["optimizer_history"][-1]["num_updates"]
        best = {**_prompt_alone(best["model"], lm), "updates": updates}
        save_torch(best, folder / BEST)
    for between in folder.glob("checkpoint_*_*.pt"):  # fairseq's of the last validation
        between.unlink()
    scores = curve.get(best["updates"], {})
    if not scores and record.run.updates == best["updates"]:  # its log was removed
        scores = record.valid
    trained = sum(tensor.numel() for tensor in best["model"].values())
    record = dataclasses.replace(
        record,
        trained_parameters=record.lm_parameters if record.fine_tune else trained,
        valid={name: scores[name] for name in ("loss", "label_loss", "accuracy") if name in scores},
        files={name: sha256(folder / name) for name in (BEST, LAST)},
        run=dataclasses.replace(
            record.run,
            updates=best["updates"],
            total_updates=last["optimizer_history"][-1]["num_updates"],
            rounding=best["rounding"],
        ),
    )
    prompt_record.write_record(folder, record)
    return record


def _prompt_alone(state: dict[str, Tensor], lm: Path) -> dict[str, Any]:
    """A running state's weights under the published names. ``rounding``: the largest relative error
    of a layer's keys or values against what trained; it grows with the condition number of the LM's
    projections.

    A prompt trained ``projected`` is solved for anew: the LM may have been in half precision.
    """
    if KEYS not in state:
        return {"model": state, "rounding": 0.0}
    layers = load_unit_lm(lm).model.decoder.layers
    raw = Prompt.from_published_state(state, len(layers), BEST)
    raw.keys.data, raw.values.data = state[KEYS], state[VALUES]
    solved = prompts.in_input_space(raw, layers)
    pairs = zip(prompts.project(solved, layers), (state[KEYS], state[VALUES]))
    errors = [(found - aim).norm(dim=(1, 2)) / aim.norm(dim=(1, 2)) for found, aim in pairs]
    beside = {MAP: state[MAP]} if MAP in state else {}
    weights = {**solved.published_state(), **beside}
    return {"model": weights, "rounding": torch.cat(errors).max().item()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or a shared prompt. Raises ``UserError`` where there are none."""
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    state = load_torch(path, mapped=True).get("model")
    if not are_weights(state):
        raise UserError(f"{path}: no model in it; expected a prompt checkpoint")
    return state


def load(folder: Path, lm_folder: Path, name: str = BEST) -> tuple[PromptLanguageModel, UnitLM]:
    """The model of a checkpoint over its LM: see ``prompted``."""
    unit_lm = load_unit_lm(lm_folder)
    return prompted(folder / name, unit_lm, lm_folder), unit_lm


def prompted(path: Path, unit_lm: UnitLM, lm_folder: Path) -> PromptLanguageModel:
    """The checkpoint at ``path`` over the LM of ``lm_folder``, in evaluation mode.

    Reads our checkpoints, the published ones (prompt and LM weights in one file) and shared
    prompts. Several prompts may share one LM; a fine-tuned LM takes its place. Raises ``UserError``
    when the prompt was trained on another LM, and for another file than its record was written for.
    """
    state = read_weights(path)
    record = read_record(path.parent)
    if record is None:  # as published, the checkpoint holds its LM too
        if prompts.is_fine_tuned(state):
            load_weights(unit_lm.model, prompts.without_prompt(state), path)
        else:
            _check_its_lm(state, unit_lm, path, lm_folder)
        return PromptLanguageModel(unit_lm.model, _prompt(path, state, unit_lm, lm_folder)).eval()
    _check_recorded_lm(path, record, unit_lm, lm_folder)
    prompt = label_map = None
    if record.fine_tune:
        load_weights(unit_lm.model, state, path)
    else:
        prompt = _prompt(path, state, unit_lm, lm_folder)
        for kind, length in prompt.lengths.items():
            if length != getattr(record, kind):
                raise UserError(
                    f"{path}: a prompt with {kind} {length}, but {RECORD} beside it says "
                    f"{getattr(record, kind)}; take both from one source"
                )
    if record.training.get("verbalizer") == "learnable":
        names = list(record.verbal.values())
        label_map = LabelMap(names, unit_lm.dictionary, record.labels_per_utterance)
        label_map.load(state, str(path))
    prompt_record.check_file(
        path, record
    )  # last: what differs in a way that can be named was named
    return PromptLanguageModel(unit_lm.model, prompt, label_map).eval()


def _check_recorded_lm(path: Path, record: PromptRecord, unit_lm: UnitLM, lm_folder: Path) -> None:
    here, prompt = unit_lm.identity["dict_fingerprint"], f"but the prompt in {path.parent} was"
    if record.lm_fingerprint != unit_lm.fingerprint:
        raise UserError(
            f"{lm_folder}: its LM has fingerprint {unit_lm.fingerprint}, {prompt} trained on "
            f"{record.lm_fingerprint}; put that LM there, or train again"
        )
    if record.dict_fingerprint not in ("", here):
        raise UserError(
            f"{lm_folder / 'dict.txt'}: has fingerprint {here}, {prompt} trained with "
            f"{record.dict_fingerprint}; take the dict and the LM from one archive"
        )


def _check_its_lm(state: dict[str, Tensor], unit_lm: UnitLM, path: Path, lm_folder: Path) -> None:
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


def _prompt(path: Path, state: dict[str, Tensor], unit_lm: UnitLM, lm_folder: Path) -> Prompt:
    decoder = unit_lm.model.decoder
    prompt = Prompt.from_published_state(state, len(decoder.layers), str(path))
    if prompt.sep.shape[1] != decoder.embed_dim:
        raise UserError(
            f"{path}: a prompt for an LM {prompt.sep.shape[1]} wide, that of {lm_folder} has "
            f"{decoder.embed_dim}; this prompt belongs to another LM"
        )
    if not all(parameter.isfinite().all() for parameter in prompt.parameters()):
        raise UserError(f"{path}: holds values that are not finite; train it again")
    return prompt
