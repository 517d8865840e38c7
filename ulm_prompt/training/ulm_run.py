"""What a run of train_ulm.py begins from, what fairseq is told, what it records and leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, write_json
from pipeline.runs import provenance
from ulm_prompt.prompt_data.prompt_record import BEST, LAST
from ulm_prompt.training.recipe import Settings, UnitLMRecipe, schedule_and_dtype

RUN = "run.json"  # beside LAST
OURS = "ulm.json"  # marks an LM that train_ulm.py made, and says how
NEW_RUN = "ulm_prompt/train_ulm.py with a new --date"


def unit_lm_settings(recipe: UnitLMRecipe, data_bin: Path, begin_from: Path | None) -> Settings:
    """What fairseq is told beside the knobs that it knows by name: the stock model, with random
    weights or those of the LM in ``begin_from``.
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
            "add_bos_token": False,  # fairseq's own language modelling task would say so
        },
        "criterion": {"_name": "unit_lm"},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)"},
    }


def check_begins_from(folder: Path, recipe: UnitLMRecipe) -> str:
    """Fingerprint of the LM in ``folder``. Raises ``UserError`` when its size is not the recipe's,
    or when it computes something else with such weights.
    """
    from ulm_prompt.prompt_lm.lm import load_unit_lm

    lm = load_unit_lm(folder)
    decoder, layer = lm.untouched.decoder, lm.untouched.decoder.layers[0]
    trained_here = {"share_decoder_input_output_embed": True, "no_scale_embedding": False}
    trained_here |= {"activation_fn": "relu", **vars(recipe)}
    for name, value in {
        "decoder_layers": len(decoder.layers),
        "decoder_embed_dim": decoder.embed_tokens.embedding_dim,
        "decoder_ffn_embed_dim": layer.fc1.out_features,
        "decoder_attention_heads": layer.self_attn.num_heads,
        "share_decoder_input_output_embed": decoder.share_input_output_embed,
        "no_scale_embedding": decoder.embed_scale == 1.0,
        "activation_fn": layer.activation_fn.__name__,
    }.items():
        if value != trained_here[name]:
            raise UserError(
                f"--begin_from {folder}: an LM with {name}={value}, but the config has "
                f"{trained_here[name]}; choose its --config, or --set its sizes"
            )
    return lm.fingerprint


def begun_in(save_dir: Path) -> str | None:
    """The dtype in which the unit LM's run in ``save_dir`` began; None without a run."""
    if not (save_dir / LAST).exists():
        return None
    recipe = read_json(save_dir / RUN, NEW_RUN).get("recipe")
    return recipe.get("dtype") if isinstance(recipe, dict) else None


def check_same_run(
    save_dir: Path, recipe: UnitLMRecipe, texts: dict[str, Path], begins_from: str | None = None
) -> None:
    """Record what the run trains on, and the fingerprint of the LM that it begins from. Raises
    ``UserError`` when ``save_dir`` holds another run.
    """
    record = {
        "recipe": vars(recipe),
        "text": {split: sha256(text) for split, text in texts.items()},
        "begin_from": begins_from,
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
    """Whether ``folder`` holds an LM of train_ulm.py that was not made from the best checkpoint in
    ``save_dir``, or by an earlier version, whose record does not say from which.
    """
    path, best = folder / OURS, save_dir / BEST
    recorded = read_json(path, NEW_RUN).get("checkpoint") if path.exists() else None
    return path.exists() and not (best.exists() and recorded == sha256(best))


def publish(save_dir: Path, folder: Path) -> float:
    """Write the best LM of ``save_dir`` into ``folder`` in the released layout, and by which
    checkpoint it was made. Returns its valid loss in bits.
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
