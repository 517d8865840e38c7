"""How a unit LM is trained: a named file in ulm_prompt/config/ulm/, as fairseq's flags."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, write_json
from pipeline.runs import provenance
from ulm_prompt.prompt_data.tasks import CONFIG
from ulm_prompt.training.recipe import DTYPES, SCHEDULES, check_knobs, half_precision_flags


@dataclass
class UnitLMRecipe:
    """A file in config/ulm/; gslm.yaml says what each knob means."""

    decoder_layers: int = MISSING
    decoder_embed_dim: int = MISSING
    decoder_ffn_embed_dim: int = MISSING
    decoder_attention_heads: int = MISSING
    dropout: float = MISSING
    lr: float = MISSING
    lr_schedule: str = MISSING
    warmup_updates: int = MISSING
    clip_norm: float = MISSING
    tokens_per_sample: int = MISSING
    max_tokens: int = MISSING
    update_freq: int = MISSING
    max_update: int = MISSING
    sample_break_mode: str = MISSING
    topics: int = MISSING
    topic_weight: float = MISSING
    max_valid_utterances: int = MISSING
    seed: int = MISSING
    dtype: str = MISSING


CHOICES = {
    "lr_schedule": SCHEDULES,
    "sample_break_mode": ("eos", "none"),
    "dtype": DTYPES,
}
AT_LEAST = {
    "decoder_embed_dim": 4,  # for the sines of the positions
    **dict.fromkeys(("decoder_layers", "decoder_ffn_embed_dim", "decoder_attention_heads"), 1),
    **dict.fromkeys(("tokens_per_sample", "max_tokens", "update_freq", "max_update"), 1),
    **dict.fromkeys(("lr", "warmup_updates", "clip_norm", "topics", "topic_weight"), 0),
    **dict.fromkeys(("max_valid_utterances", "seed"), 0),
}


def load_unit_lm_recipe(name: str, overrides: Sequence[str]) -> UnitLMRecipe:
    """Read a recipe; ``overrides`` are ``--set`` flags. Raises ``UserError`` for an unknown recipe,
    knob or value.
    """
    recipe = load_config(UnitLMRecipe, CONFIG / "ulm" / f"{name}.yaml", overrides)
    check_knobs(recipe, CHOICES, AT_LEAST, ["dropout"])
    if recipe.decoder_embed_dim % recipe.decoder_attention_heads:
        raise UserError(
            f"recipe, decoder_attention_heads={recipe.decoder_attention_heads}: expected a divisor "
            f"of decoder_embed_dim={recipe.decoder_embed_dim}"
        )
    if recipe.topics and recipe.sample_break_mode != "eos":
        raise UserError(f"recipe, topics={recipe.topics}: needs sample_break_mode=eos")
    return recipe


def fairseq_flags(
    recipe: UnitLMRecipe, data_bin: Path, begin_from: Path | None = None
) -> list[object]:
    """The recipe as flags of fairseq-train: the stock model on our block task, with random weights
    or those of the LM in ``begin_from``.
    """
    schedule: list[object] = ["--lr-scheduler", recipe.lr_schedule]
    if recipe.lr_schedule == "cosine":
        schedule += ["--lr-period-updates", recipe.max_update - recipe.warmup_updates]
    begin = ["--begin-from", begin_from] if begin_from else []
    width = recipe.decoder_embed_dim
    return [
        data_bin,
        "--task", "unit_lm",
        "--arch", "transformer_lm_big",
        "--share-decoder-input-output-embed",
        "--decoder-layers", recipe.decoder_layers,
        "--decoder-embed-dim", width,
        "--decoder-input-dim", width,
        "--decoder-output-dim", width,
        "--decoder-ffn-embed-dim", recipe.decoder_ffn_embed_dim,
        "--decoder-attention-heads", recipe.decoder_attention_heads,
        "--dropout", recipe.dropout,
        "--attention-dropout", recipe.dropout,
        "--criterion", "unit_lm",
        "--topic-weight", recipe.topic_weight,
        "--optimizer", "adam",
        "--adam-betas", "(0.9, 0.98)",
        "--lr", recipe.lr,
        *schedule,
        "--warmup-updates", recipe.warmup_updates,
        "--clip-norm", recipe.clip_norm,
        "--tokens-per-sample", recipe.tokens_per_sample,
        "--sample-break-mode", recipe.sample_break_mode,
        "--max-tokens", recipe.max_tokens,
        "--update-freq", recipe.update_freq,
        "--max-update", recipe.max_update,
        "--seed", recipe.seed,
        *half_precision_flags(recipe.dtype),
        *begin,
    ]  # fmt: skip


# What a unit LM's run begins from, what it records, and what it leaves.


RUN, LAST = "run.json", "checkpoint_last.pt"  # beside each other
NEW_RUN = "ulm_prompt/train_ulm.py with a new --date"
OURS = "ulm.json"  # marks an LM that train_ulm.py made, and says how


def check_begins_from(folder: Path, recipe: UnitLMRecipe) -> str:
    """Fingerprint of the LM in ``folder``. Raises ``UserError`` when it is not of the recipe's
    size, or computes something else with such weights.
    """
    import torch

    from ulm_prompt.prompt_lm.lm import load_unit_lm

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
