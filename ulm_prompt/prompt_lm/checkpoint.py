"""Checkpoints of prompts: how a training run begins and completes them, and how they are loaded."""

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

    Raises ``UserError`` if the folder contains another run, or a checkpoint of an unknown run.
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
        prompt_record.check_files(folder, earlier)
        run = dataclasses.replace(earlier.run, lm=record.run.lm)
        record = dataclasses.replace(record, valid=earlier.valid, run=run)
    prompt_record.write_record(folder, record)
    return record


def finish(
    folder: Path, record: PromptRecord, curve: dict[int, dict[str, float]], lm_folder: Path
) -> PromptRecord:
    """Reduce the best checkpoint to the trained weights, and complete the ``record`` of ``begin``.
    ``curve``: the scores on valid after each number of updates.
    """
    best, last = load_torch(folder / BEST), load_torch(folder / LAST)
    if "optimizer_history" in best:
        updates = best["optimizer_history"][-1]["num_updates"]
        best = {**_trained_weights(best["model"], lm_folder), "updates": updates}
        save_torch(best, folder / BEST)
    for extra in folder.glob("checkpoint_*_*.pt"):  # of the last validation, by fairseq
        extra.unlink()
    scores = curve.get(best["updates"], {})
    if not scores and record.run.updates == best["updates"]:  # the log was removed
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


@torch.no_grad()
def _trained_weights(state: dict[str, Tensor], lm_folder: Path) -> dict[str, Any]:
    """Return the weights of a training state under the published names, and ``rounding``.

    A prompt trained ``projected`` is solved for again, because the LM of the run may have been in
    half precision. ``rounding`` is the largest relative error of a layer's keys or values compared
    with the trained ones. It grows with the condition number of the LM's projections.
    """
    if KEYS not in state:
        return {"model": state, "rounding": 0.0}
    layers = load_unit_lm(lm_folder).model.decoder.layers
    trained = Prompt.from_published_state(state, len(layers), BEST)
    trained.keys.data, trained.values.data = state[KEYS], state[VALUES]
    solved = prompts.in_input_space(trained, layers)
    saved_tensors = map(torch.stack, prompts.project(solved.keys, solved.values, layers))
    pairs = zip(saved_tensors, (state[KEYS], state[VALUES]))
    errors = [(saved - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2)) for saved, exact in pairs]
    weights = solved.published_state()
    if MAP in state:
        weights[MAP] = state[MAP]
    return {"model": weights, "rounding": torch.cat(errors).max().item()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint or a shared prompt. Raises ``UserError`` if it has none."""
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    state = load_torch(path, mapped=True).get("model")
    if not are_weights(state):
        raise UserError(f"{path}: expected a prompt checkpoint, found no model")
    return state


def load(folder: Path, lm_folder: Path, name: str = BEST) -> tuple[PromptLanguageModel, UnitLM]:
    """Load a checkpoint and its LM. Return the prompted model (see ``prompted``) and the LM."""
    unit_lm = load_unit_lm(lm_folder)
    return prompted(folder / name, unit_lm, lm_folder), unit_lm


def prompted(path: Path, unit_lm: UnitLM, lm_folder: Path) -> PromptLanguageModel:
    """Load the checkpoint at ``path`` on the LM of ``lm_folder``. Return it in evaluation mode.

    Reads our checkpoints, published ones (prompt and LM weights in one file) and shared prompts.
    Several prompts may share ``unit_lm``. A fine-tuned LM replaces the weights of ``unit_lm``.
    Raises ``UserError`` if the prompt belongs to another LM, or the record to another file.
    """
    state = read_weights(path)
    record = read_record(path.parent)
    if record is None:  # a published checkpoint may also contain its LM
        if prompts.is_fine_tuned(state):
            load_weights(unit_lm.model, prompts.without_prompt(state), path)
        else:
            _compare_lm(state, unit_lm, path, lm_folder)
        prompt = _load_prompt(path, state, unit_lm, lm_folder)
        return PromptLanguageModel(unit_lm.model, prompt).eval()
    _check_recorded_lm(path, record, unit_lm, lm_folder)
    prompt = label_map = None
    if record.fine_tune:
        load_weights(unit_lm.model, state, path)
    else:
        prompt = _load_prompt(path, state, unit_lm, lm_folder)
        for kind, length in prompt.lengths.items():
            if length != getattr(record, kind):
                raise UserError(
                    f"{path}: a prompt with {kind} {length}, but {RECORD} beside it says "
                    f"{getattr(record, kind)}; take both files from the same source"
                )
    if record.training.get("verbalizer") == "learnable":
        names = list(record.verbal.values())
        label_map = LabelMap(names, unit_lm.dictionary, record.labels_per_utterance)
        prompts.copy_tensors({MAP: label_map.weight}, state, str(path))
    prompt_record.check_file(path, record)  # last: the checks above give clearer reasons
    return PromptLanguageModel(unit_lm.model, prompt, label_map).eval()


def _check_recorded_lm(path: Path, record: PromptRecord, unit_lm: UnitLM, lm_folder: Path) -> None:
    prompt = f"but the prompt in {path.parent} was trained"
    if record.lm_fingerprint != unit_lm.fingerprint:
        raise UserError(
            f"{lm_folder}: its LM has fingerprint {unit_lm.fingerprint}, {prompt} on "
            f"{record.lm_fingerprint}; use that LM, or train again"
        )
    fingerprint = unit_lm.identity["dict_fingerprint"]
    if record.dict_fingerprint not in ("", fingerprint):
        raise UserError(
            f"{lm_folder / 'dict.txt'}: has fingerprint {fingerprint}, {prompt} with "
            f"{record.dict_fingerprint}; take the dict and the LM from the same archive"
        )


def _compare_lm(state: dict[str, Tensor], unit_lm: UnitLM, path: Path, lm_folder: Path) -> None:
    for name, weight in unit_lm.model.state_dict().items():
        stored = state.get(name, weight)
        # --fp16 stored half precision: equal except for the rounding
        eps = torch.finfo(stored.dtype).eps if stored.is_floating_point() else 0.0
        same_shape = stored.shape == weight.shape
        if not same_shape or not torch.allclose(stored.float(), weight, rtol=eps, atol=1e-6):
            raise UserError(
                f"{path}: its LM differs from {lm_folder} in {name}; put its LM into that folder"
            )


def _load_prompt(path: Path, state: dict[str, Tensor], unit_lm: UnitLM, lm_folder: Path) -> Prompt:
    decoder = unit_lm.model.decoder
    prompt = Prompt.from_published_state(state, len(decoder.layers), str(path))
    if prompt.sep.shape[1] != decoder.embed_dim:
        raise UserError(
            f"{path}: the prompt has width {prompt.sep.shape[1]}, the LM in {lm_folder} has "
            f"{decoder.embed_dim}; this prompt belongs to another LM"
        )
    if not all(parameter.isfinite().all() for parameter in prompt.parameters()):
        raise UserError(f"{path}: contains values that are not finite; train the prompt again")
    return prompt
