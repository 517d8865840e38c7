"""A run of train_ulm.py: its first LM, its settings for fairseq, its record and the new LM."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, write_json
from pipeline.runs import provenance
from ulm_prompt.prompt_data.prompt_record import BEST, LAST
from ulm_prompt.training.recipe import Settings, UnitLMRecipe, schedule_and_dtype

RUN = "run.json"  # the record of a run, next to LAST
OURS = "ulm.json"  # marks an LM that train_ulm.py made, and records how
NEW_RUN = "ulm_prompt/train_ulm.py with a new --date"


def unit_lm_settings(recipe: UnitLMRecipe, data_bin: Path, begin_from: Path | None) -> Settings:
    """Return fairseq's settings, except the knobs that fairseq knows by name. fairseq's own model
    starts from the LM in ``begin_from``, or from random weights.
    """
    width = recipe.decoder_embed_dim
    return {
        **schedule_and_dtype(recipe, whole_lm=True),
        "task": {"_name": "unit_lm", "data": str(data_bin), "begin_from": str(begin_from or "")},
        "model": {
            "_name": "transformer_lm_big",
            "share_decoder_input_output_embed": True,
            "decoder_input_dim": width,
            "decoder_output_dim": width,
            "attention_dropout": recipe.dropout,
            "add_bos_token": False,  # as fairseq's own language modelling task sets it
        },
        "criterion": {"_name": "unit_lm"},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)"},
    }


def check_begins_from(folder: Path, recipe: UnitLMRecipe) -> str:
    """Return the fingerprint of the LM in ``folder``. Raises ``UserError`` if its size differs from
    the recipe's, or if it computes something else with weights of this size.
    """
    from ulm_prompt.prompt_lm.lm import load_unit_lm

    lm = load_unit_lm(folder)
    decoder, layer = lm.untouched.decoder, lm.untouched.decoder.layers[0]
    expected = {"share_decoder_input_output_embed": True, "no_scale_embedding": False}
    expected |= {"activation_fn": "relu", **vars(recipe)}
    for name, value in {
        "decoder_layers": len(decoder.layers),
        "decoder_embed_dim": decoder.embed_tokens.embedding_dim,
        "decoder_ffn_embed_dim": layer.fc1.out_features,
        "decoder_attention_heads": layer.self_attn.num_heads,
        "share_decoder_input_output_embed": decoder.share_input_output_embed,
        "no_scale_embedding": decoder.embed_scale == 1.0,
        "activation_fn": layer.activation_fn.__name__,
    }.items():
        if value != expected[name]:
            raise UserError(
                f"--begin_from {folder}: an LM with {name}={value}, but the config has "
                f"{expected[name]}; choose the LM's --config, or --set the LM's sizes"
            )
    return lm.fingerprint


def first_dtype(save_dir: Path) -> str | None:
    """Return the dtype in which the run in ``save_dir`` began, or None if it has not begun."""
    if not (save_dir / LAST).exists():
        return None
    recipe = read_json(save_dir / RUN, NEW_RUN).get("recipe")
    return recipe.get("dtype") if isinstance(recipe, dict) else None


def record_run(
    save_dir: Path, recipe: UnitLMRecipe, texts: dict[str, Path], lm_fingerprint: str | None
) -> None:
    """Write run.json: the run's recipe, its text and the fingerprint of the LM that it begins from.
    Raises ``UserError`` if ``save_dir`` contains another run.
    """
    record = {
        "recipe": vars(recipe),
        "text": {split: sha256(text) for split, text in texts.items()},
        "begin_from": lm_fingerprint,
    }
    if (save_dir / LAST).exists():
        earlier = read_json(save_dir / RUN, NEW_RUN)
        if changed := [name for name, value in record.items() if earlier.get(name) != value]:
            raise UserError(
                f"{save_dir}: holds a run with another {changed[0]}; choose a new --date, "
                "or remove the folder"
            )
    write_json(save_dir / RUN, record)


def is_of_another_run(folder: Path, save_dir: Path) -> bool:
    """Return whether ``folder`` contains an LM of train_ulm.py that was not made from the best
    checkpoint in ``save_dir``. LMs of old versions do not record their checkpoint: True.
    """
    path, best = folder / OURS, save_dir / BEST
    recorded = read_json(path, NEW_RUN).get("checkpoint") if path.exists() else None
    return path.exists() and not (best.exists() and recorded == sha256(best))


def publish(save_dir: Path, folder: Path) -> float:
    """Write the best LM of ``save_dir`` and the hash of its checkpoint into ``folder``, in the
    released layout. Returns the LM's valid loss in bits.
    """
    from pipeline.torch_files import load_torch, save_torch

    state = load_torch(save_dir / BEST)
    loss = state["extra_state"]["best"]
    with replacing_folder(folder) as fresh:
        shutil.copyfile(save_dir / "dict.txt", fresh / "dict.txt")
        model = {"cfg": {"model": state["cfg"]["model"]}, "model": state["model"]}
        save_torch(model, fresh / BEST)
        record = {"valid_loss_bits": loss, "checkpoint": sha256(save_dir / BEST), **provenance()}
        write_json(fresh / OURS, record)
    return loss
