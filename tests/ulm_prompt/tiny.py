"""Tiny unit LMs, prompts and corpora that tests make themselves."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture

from pipeline.rows import Row, write_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt

UNITS = 100
LABELS = {"speech_commands": 1, "fluent_commands": 3}


def dictionary() -> Dictionary:
    symbols = Dictionary()
    for unit in range(UNITS):
        symbols.add_symbol(str(unit))
    return symbols


def settings(layers: int, width: int, heads: int, **others: object) -> argparse.Namespace:
    values = argparse.Namespace(
        arch="transformer_lm",
        decoder_layers=layers,
        decoder_embed_dim=width,
        decoder_ffn_embed_dim=4 * width,
        decoder_attention_heads=heads,
        share_decoder_input_output_embed=True,
        dropout=0.0,
        tokens_per_sample=512,
        **others,
    )
    base_lm_architecture(values)
    return values


def lm(layers: int = 3, width: int = 32, heads: int = 4, seed: int = 0) -> TransformerLanguageModel:
    """A stock LM with random weights, biases and norms included."""
    torch.manual_seed(seed)
    symbols = dictionary()
    source = argparse.Namespace(source_dictionary=symbols, target_dictionary=symbols)
    model = TransformerLanguageModel.build_model(settings(layers, width, heads), source)
    for name, parameter in model.named_parameters():
        if "embed_tokens" not in name:
            is_norm = "layer_norm.weight" in name
            torch.nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=0.2)
    return model.eval()


def prompted(length: int = 5, seed: int = 0, infix: bool = False) -> PromptLanguageModel:
    torch.manual_seed(seed + 1)
    model = lm(seed=seed)
    return PromptLanguageModel(model, Prompt(3, length, 32, infix=infix)).eval()


def write_lm(folder: Path, model: TransformerLanguageModel | None = None, **shape: int) -> None:
    """Save an LM in the released layout, with the old ``args`` that the released ones have."""
    model = model or lm(**shape)
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"layers": 3, "width": 32, "heads": 4, **shape}
    torch.save(
        {"args": settings(**shape), "model": model.state_dict()}, folder / "checkpoint_best.pt"
    )
    lines = [f"{unit} 1\n" for unit in range(UNITS)]
    (folder / "dict.txt").write_text("".join(lines))


def rows(downstream: str, count: int, seed: int) -> list[Row]:
    """Random units of random length; the last ones tell the labels, so that a random LM can be
    prompted.
    """
    generator = random.Random(seed)
    made = []
    for number in range(count):
        units = [generator.randrange(12, UNITS) for _ in range(generator.randint(4, 12))]
        labels = [4 * slot + generator.randrange(4) for slot in range(LABELS[downstream])]
        columns = [" ".join(map(str, values)) for values in (units + labels, labels)]
        made.append(Row(f"{seed}/{number}.wav", *columns))
    return made


def write_corpus(
    root: Path, unit_model: str = "tiny100", downstream: str = "speech_commands"
) -> None:
    """Quantised splits whose sizes are no multiple of 8."""
    workspace = Workspace(root)
    for seed, (split, count) in enumerate({"train": 203, "valid": 37, "test": 29}.items()):
        write_rows(workspace.rows(downstream, unit_model, split), rows(downstream, count, seed))
