"""What a unit LM's run begins from, what it records, and what it leaves."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, write_json
from pipeline.provenance import provenance
from ulm_prompt.unit_lm_recipe import UnitLMRecipe

RUN, LAST = "run.json", "checkpoint_last.pt"  # beside each other
NEW_RUN = "ulm_prompt/train_ulm.py with a new --date"
OURS = "ulm.json"  # marks an LM that train_ulm.py made, and says how


def check_begins_from(folder: Path, recipe: UnitLMRecipe) -> str:
    """Fingerprint of the LM in ``folder``. Raises ``UserError`` when it is not of the recipe's
    size, or computes something else with such weights.
    """
    import torch

    from ulm_prompt.prompt_lm.frozen_lm import load_unit_lm

    lm = load_unit_lm(folder)
    layers = lm.model.decoder.layers
    for knob, found in {
        "decoder_layers": len(layers),
        "decoder_embed_dim": lm.model.decoder.embed_tokens.embedding_dim,
        "decoder_ffn_embed_dim": layers[0].fc1.out_features,
        "decoder_attention_heads": layers[0].self_attn.num_heads,
    }.items():
        expected = getattr(recipe, knob)
        if found != expected:
            raise UserError(
                f"--begin_from {folder}: an LM with {knob}={found}, but the config has {expected}; "
                f"choose its --config, or --set {knob}={found}"
            )
    decoder = lm.model.decoder
    for setting, as_ours in {
        "share_decoder_input_output_embed": decoder.share_input_output_embed,
        "no_scale_embedding": decoder.embed_scale != 1.0,
        "activation_fn": layers[0].activation_fn in (torch.nn.functional.relu, torch.relu),
    }.items():
        if not as_ours:
            raise UserError(f"--begin_from {folder}: another {setting} than the LMs trained here")
    return lm.fingerprint


def begun_in(save_dir: Path) -> str | None:
    """The dtype that the run there began in, if there is one."""
    if not (save_dir / LAST).exists():
        return None
    recipe = read_json(save_dir / RUN, NEW_RUN).get("recipe")
    return recipe.get("dtype") if isinstance(recipe, dict) else None


def check_same_run(
    save_dir: Path, recipe: UnitLMRecipe, texts: dict[str, Path], begins_from: str | None = None
) -> None:
    """Record what the run trains on, and the fingerprint of the LM that it begins from. Raises
    ``UserError`` when another run lies there.
    """
    record = {
        "recipe": dataclasses.asdict(recipe),
        "text": {split: sha256(text) for split, text in texts.items()},
        "begin_from": begins_from,
    }
    path = save_dir / RUN
    if (save_dir / LAST).exists():
        earlier = read_json(path, NEW_RUN)
        for name, value in record.items():
            if earlier.get(name) != value:
                raise UserError(
                    f"{save_dir}: holds a run with another {name}; choose a new --date, "
                    "or remove the folder"
                )
    write_json(path, record)


def publish(checkpoint: Path, dictionary: Path, folder: Path) -> float:
    """Leave the LM as the released ones lie, without the optimizer's state; return its valid loss
    in bits.
    """
    from pipeline.torch_files import load_torch, save_torch

    state = load_torch(checkpoint)
    with replacing_folder(folder) as fresh:
        shutil.copyfile(dictionary, fresh / "dict.txt")
        save_torch(
            {"cfg": {"model": state["cfg"]["model"]}, "model": state["model"]},
            fresh / "checkpoint_best.pt",
        )
        write_json(fresh / OURS, {"valid_loss_bits": state["extra_state"]["best"], **provenance()})
    return state["extra_state"]["best"]
