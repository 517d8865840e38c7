"""The published files at full size, from download to answers, on files of random numbers.

python -m tests.reliability.rehearsal --workspace DIR [--layers 12 --width 1024]

Writes an LM archive and a HuBERT checkpoint as fairseq wrote them in 2021, with what they hold
beside the weights; no module of this repository takes part in that. A local server offers the
archive; the stages are called as a user types them. Prints seconds and peak memory of each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
UNITS, SYMBOLS = 100, 104
ARCHIVE = "textless_nlp/gslm/hubert/lm_km100/hubert100_lm.tgz"
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def transformer(prefix: str, layers: int, width: int) -> Shapes:
    """The layers that an LM and a HuBERT of fairseq's share, by name."""
    shapes: Shapes = {}
    for layer in range(layers):
        name = f"{prefix}.{layer}"
        for part in ("k", "v", "q"):
            shapes |= linear(f"{name}.self_attn.{part}_proj", width, width)
        shapes |= linear(f"{name}.self_attn.out_proj", width, width)
        shapes |= norm(f"{name}.self_attn_layer_norm", width)
        shapes |= linear(f"{name}.fc1", 4 * width, width) | linear(f"{name}.fc2", width, 4 * width)
        shapes |= norm(f"{name}.final_layer_norm", width)
    return shapes


def lm_shapes(layers: int, width: int) -> Shapes:
    """A ``transformer_lm_big`` as fairseq stored it until 2023."""
    return {
        "decoder.version": (1,),
        "decoder.embed_tokens.weight": (SYMBOLS, width),
        "decoder.embed_positions._float_tensor": (1,),
        **transformer("decoder.layers", layers, width),
        **norm("decoder.layer_norm", width),
        "decoder.output_projection.weight": (SYMBOLS, width),
    }


def hubert_shapes(layers: int, width: int, channels: int) -> Shapes:
    """hubert_base_ls960.pt's names."""
    shapes: Shapes = {"mask_emb": (width,), "label_embs_concat": (504, 256)}
    kernels = (10, 3, 3, 3, 3, 2, 2)
    for layer, kernel in enumerate(kernels):
        inputs = channels if layer else 1
        shapes[f"feature_extractor.conv_layers.{layer}.0.weight"] = (channels, inputs, kernel)
    shapes |= norm("feature_extractor.conv_layers.0.2", channels) | norm("layer_norm", channels)
    shapes |= linear("post_extract_proj", width, channels)
    shapes["encoder.pos_conv.0.bias"] = (width,)
    shapes["encoder.pos_conv.0.weight_g"] = (1, 1, 128)
    shapes["encoder.pos_conv.0.weight_v"] = (width, width // 16, 128)
    shapes |= transformer("encoder.layers", layers, width) | norm("encoder.layer_norm", width)
    return shapes | linear("final_proj", 256, width)


def checkpoint(shapes: Shapes, cfg: dict, **beside: object) -> dict:
    """Random weights, and what a trainer stored beside them: Adam's two moments of each, above
    all.
    """
    torch.manual_seed(0)
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, shape in shapes.items():
        is_norm = "norm" in name and name.endswith(".weight")
        weights[name] = torch.randn(shape) * 0.02 + (1.0 if is_norm else 0.0)
    if "decoder.version" in weights:
        weights["decoder.version"] = torch.tensor([3.0])
        weights["decoder.output_projection.weight"] = weights["decoder.embed_tokens.weight"]
    moments = {
        number: {"step": 9, **{key: torch.rand(shape) for key in ("exp_avg", "exp_avg_sq")}}
        for number, (name, shape) in enumerate(shapes.items())
        if name != "decoder.output_projection.weight"
    }
    return {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "criterion": None,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 9}],
        "task_state": {},
        "extra_state": {"epoch": 1, "val_loss": 2.5},
        "last_optimizer_state": {"state": moments, "param_groups": [{"lr": 5e-4, "eps": 1e-8}]},
        **beside,
    }


def write_lm_archive(server: Path, layers: int, width: int) -> None:
    """hubert100_lm.tgz with ``hubert100_lm/{checkpoint_best.pt,dict.txt}`` in it."""
    model = {
        "_name": "transformer_lm_big",
        "decoder_layers": layers,
        "decoder_embed_dim": width,
        "decoder_input_dim": width,
        "decoder_output_dim": width,
        "decoder_ffn_embed_dim": 4 * width,
        "decoder_attention_heads": width // 64,
        "decoder_normalize_before": True,
        "share_decoder_input_output_embed": True,
        "activation_fn": "relu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "tokens_per_sample": 3072,
        "max_target_positions": 3072,
    }
    folder = server / "hubert100_lm"
    folder.mkdir(parents=True)
    task = {"_name": "language_modeling", "data": "/checkpoint/data-bin"}
    state = checkpoint(lm_shapes(layers, width), {"model": model, "task": task})
    torch.save(state, folder / "checkpoint_best.pt")
    (folder / "dict.txt").write_text("".join(f"{unit} {9999 - unit}\n" for unit in range(UNITS)))
    archive = server / ARCHIVE
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=folder.name)
    shutil.rmtree(folder)


def write_hubert(path: Path, layers: int, width: int, channels: int) -> None:
    """A HuBERT Base file, and a k-means for its features beside it."""
    model = {
        "_name": "hubert",
        "extractor_mode": "default",
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": width // 64,
        "conv_feature_layers": f"[({channels},10,5)] + [({channels},3,2)] * 4 + "
        f"[({channels},2,2)] * 2",
        "label_rate": 50,
        "final_dim": 256,
        "untie_final_proj": False,
    }
    task = {"_name": "hubert_pretraining", "normalize": False, "sample_rate": 16_000}
    shapes = hubert_shapes(layers, width, channels)
    torch.save(checkpoint(shapes, {"model": model, "task": task}), path)
    centres = np.random.default_rng(0).standard_normal((UNITS, width)).astype(np.float32)
    np.savez(path.with_name("base100_km.npz"), centres=centres)


def serve(folder: Path) -> str:
    """Offer ``folder`` on localhost; returns its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def apart(function: Callable[..., object], *args: object) -> None:
    """Call it in a process of its own: a stage's peak memory would begin with this one's."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def step(script: str, workspace: Path, *flags: object) -> str:
    """Run a stage script as a user does; print and return its time and peak memory."""
    command = [sys.executable, REPOSITORY / script, *flags, "--workspace", workspace]
    begin = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} exited with {process.returncode}:\n{printed}")
    seconds, gib = time.perf_counter() - begin, usage.ru_maxrss / 2**20
    print(f"| `{Path(script).name} {flags[0]}` | {seconds:.0f} | {gib:.2f} |", flush=True)
    return printed


def rehearse(workspace: Path, layers: int, width: int, channels: int, clips: int) -> None:
    """Everything, in a new ``workspace``."""
    server = workspace / "server"
    apart(write_lm_archive, server, layers, width)
    print(f"LM archive: {(server / ARCHIVE).stat().st_size / 1e9:.2f} GB\n")
    print("| | s | GiB |\n|---|---|---|")
    example = REPOSITORY / "preprocess" / "speech_commands" / "data" / "example100"
    shutil.copytree(example, workspace / "preprocess/speech_commands/data/hubert100")
    lm = ("hubert100", "--only", "lm", "--base_url", serve(server))
    step("pretrained_models/download.py", workspace, *lm)
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        step(f"ulm_prompt/{name}.py", workspace, "--prompt_task", "KS")
    run = ("--prompt_task", "KS", "--unit_model", "hubert100")
    step("ulm_prompt/train.py", workspace, "--date", "d", *run, "--set", "max_update=2")
    sampled = ("--model_date", "d", "--sample_date", "d", "--max_labels", 3)  # none would end
    step("ulm_prompt/sample.py", workspace, *sampled, *run)
    base = workspace / "pretrained_models" / "base.pt"
    apart(write_hubert, base, layers, width * 3 // 4, channels)
    print(f"HuBERT: {base.stat().st_size / 1e9:.2f} GB")
    (workspace / "pretrained_models" / "my_unit_models.yaml").write_text(
        "checkpoints: {base: {path: pretrained_models/base.pt}}\n"
        "unit_models: {base100: {feature_type: hubert, checkpoint: base, layer: 2, clusters: 100}}"
    )
    table = workspace / "corpora" / "table"
    table.mkdir(parents=True)
    import soundfile

    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for number in range(clips):
        soundfile.write(table / f"{number}.wav", 0.1 * rng.standard_normal(16_000), 16_000)
        lines.append(f"{number}.wav,word,{('train', 'valid', 'test')[number % 3]}")
    (table / "table.csv").write_text("\n".join(lines) + "\n")
    units = ("--downstream", "table", "--unit_model", "base100")
    step("preprocess/runner.py", workspace, "--action=generate_manifest", *units)
    step("preprocess/runner.py", workspace, "--action=quantized", *units)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, required=True, help="a new folder")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024, help="of the LM; HuBERT: 3/4 of it")
    parser.add_argument("--channels", type=int, default=512, help="of HuBERT's convolutions")
    parser.add_argument("--clips", type=int, default=60, help="of a second, to quantise")
    args = parser.parse_args()
    rehearse(args.workspace.resolve(), args.layers, args.width, args.channels, args.clips)


if __name__ == "__main__":
    main()
