"""Tiny unit LMs, prompts and corpora for the tests."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture

from pipeline.rows import Row, write_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_lm.data import RowDataset
from ulm_prompt.prompt_lm.losses import LabelCrossEntropy
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import LabelMap, Prompt

PAD, EOS, SYMBOLS = 1, 2, 104
UNITS = 100
MAPPED = [9, 4, 11, 6, 5, 10, 7, 8]  # the symbols that ``sample`` uses as labels
LABELS = {"speech_commands": 1, "fluent_commands": 3}


def dictionary() -> Dictionary:
    symbols = Dictionary()
    for unit in range(UNITS):
        symbols.add_symbol(str(unit))
    return symbols


def settings(layers: int, width: int, heads: int, **more: object) -> argparse.Namespace:
    values = argparse.Namespace(
        arch="transformer_lm",
        decoder_layers=layers,
        decoder_embed_dim=width,
        decoder_ffn_embed_dim=4 * width,
        decoder_attention_heads=heads,
        share_decoder_input_output_embed=True,
        dropout=0.0,
        tokens_per_sample=512,
        **more,
    )
    base_lm_architecture(values)
    return values


def lm(layers: int = 3, width: int = 32, heads: int = 4, seed: int = 0) -> TransformerLanguageModel:
    """Return fairseq's LM with random weights, biases and norms."""
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


def mapped(noise: float = 0.3) -> PromptLanguageModel:
    """Return ``prompted()`` with a learnable verbalizer and three labels per utterance."""
    model = prompted()
    label_map = LabelMap([dictionary()[unit] for unit in MAPPED], dictionary(), 3)
    torch.manual_seed(8)
    label_map.weight.data += noise * torch.randn_like(label_map.weight)
    return PromptLanguageModel(model.lm, model.prompt, label_map).eval()


def collate(rows: list[dict]) -> dict:
    """Return a batch of rows as RowDataset makes it."""
    dataset = RowDataset.__new__(RowDataset)
    dataset.pad, dataset.eos, dataset.rank, dataset.world = PAD, EOS, 0, 1
    return dataset.collater(rows)


def sample(count: int = 8, seed: int = 0) -> dict:
    """Return a batch of rows whose three labels are their first three units."""
    generator = np.random.default_rng(seed)
    units = [generator.integers(4, 12, generator.integers(4, 20)).tolist() for _ in range(count)]
    return collate(
        [
            {"id": number, "tokens": np.array([*row, 0, *row[:3], EOS]), "separator": len(row)}
            for number, row in enumerate(units)
        ]
    )


def on(device: str | torch.device, sample: dict) -> dict:
    """Return the batch on ``device``."""
    sample["net_input"] = {name: value.to(device) for name, value in sample["net_input"].items()}
    return sample | {name: sample[name].to(device) for name in ("target", "is_label")}


def criterion(loss_on: str = "published") -> LabelCrossEntropy:
    return LabelCrossEntropy(argparse.Namespace(target_dictionary=dictionary()), loss_on)


def write_lm(folder: Path, model: TransformerLanguageModel | None = None, **shape: int) -> None:
    """Save an LM in the layout of the released LMs, with their old ``args``."""
    model = model or lm(**shape)
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"layers": 3, "width": 32, "heads": 4, **shape}
    state = {"args": settings(**shape), "model": model.state_dict()}
    torch.save(state, folder / "checkpoint_best.pt")
    lines = [f"{unit} 1\n" for unit in range(UNITS)]
    (folder / "dict.txt").write_text("".join(lines))


def rows(downstream: str, count: int, seed: int) -> list[Row]:
    """Return rows of random units and length. The last units equal the labels, so that a prompt of
    a random LM can learn them.
    """
    generator = random.Random(seed)
    result = []
    for number in range(count):
        units = [generator.randrange(12, UNITS) for _ in range(generator.randint(4, 12))]
        labels = [4 * slot + generator.randrange(4) for slot in range(LABELS[downstream])]
        columns = [" ".join(map(str, values)) for values in (units + labels, labels)]
        result.append(Row(f"{seed}/{number}.wav", *columns))
    return result


def write_corpus(
    root: Path, unit_model: str = "tiny100", downstream: str = "speech_commands"
) -> None:
    """Write quantised splits whose sizes are not multiples of 8."""
    workspace = Workspace(root)
    for seed, (split, count) in enumerate({"train": 203, "valid": 37, "test": 29}.items()):
        write_rows(workspace.rows(downstream, unit_model, split), rows(downstream, count, seed))
