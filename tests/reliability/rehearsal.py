"""Run the pipeline from download to answers on random files of the published size and format.

python -m tests.reliability.rehearsal --workspace DIR [--layers 12 --width 1024]

It writes an LM archive and a HuBERT checkpoint as fairseq wrote them in 2021, with more in them
than the weights. A local server offers the archive. The stages run as a user runs them.
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
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import soundfile
import torch

from tests.conftest import REPOSITORY
from tests.preprocess import ssl_checkpoints
from tests.ulm_prompt import tiny

ARCHIVE = "textless_nlp/gslm/hubert/lm_km100/hubert100_lm.tgz"


def checkpoint(weights: dict[str, torch.Tensor], cfg: dict[str, object]) -> dict[str, object]:
    """Return a checkpoint as a trainer saves it, with Adam's two moments of every weight."""
    moments = {
        number: {"step": 9, **{key: torch.rand(weight.shape) for key in ("exp_avg", "exp_avg_sq")}}
        for number, weight in enumerate(weights.values())
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
    }


def write_lm_archive(server: Path, layers: int, width: int) -> None:
    """Write hubert100_lm.tgz, which contains ``hubert100_lm/{checkpoint_best.pt,dict.txt}``."""
    shape = {"layers": layers, "width": width, "heads": width // 64}
    weights = {
        **tiny.lm(**shape).state_dict(),
        "decoder.version": torch.tensor([3.0]),
        "decoder.embed_positions._float_tensor": torch.zeros(1),
    }
    model = {"_name": "transformer_lm_big", **vars(tiny.settings(**shape))}
    folder = server / "hubert100_lm"
    folder.mkdir(parents=True)
    cfg = {"model": model, "task": {"_name": "language_modeling", "data": "/checkpoint/data-bin"}}
    torch.save(checkpoint(weights, cfg), folder / "checkpoint_best.pt")
    lines = [f"{unit} {9999 - unit}\n" for unit in range(tiny.UNITS)]
    (folder / "dict.txt").write_text("".join(lines))
    archive = server / ARCHIVE
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=folder.name)
    shutil.rmtree(folder)


def write_hubert(path: Path, layers: int, width: int, channels: int) -> None:
    """Write a HuBERT Base checkpoint, and next to it a k-means of its features."""
    convolutions = f"[({channels},10,5)] + [({channels},3,2)] * 4 + [({channels},2,2)] * 2"
    ssl_checkpoints.hubert(
        path,
        spread=False,
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=width // 64,
        conv_feature_layers=convolutions,
    )
    state = torch.load(path, weights_only=False)
    torch.save({**checkpoint(state["model"], state["cfg"]), **state}, path)
    centres = np.random.default_rng(0).standard_normal((tiny.UNITS, width)).astype(np.float32)
    np.savez(path.with_name("base100_km.npz"), centres=centres)


def serve(folder: Path) -> str:
    """Serve ``folder`` on localhost; return the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def run_isolated(name: str, function: Callable[..., object], *args: object) -> None:
    """Call ``function`` in a new process, because the stages inherit this process's peak memory."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    _print_cost(name, process.pid)


def step(script: str, workspace: Path, *flags: object) -> None:
    """Run a stage script as a user does."""
    command = map(str, [sys.executable, REPOSITORY / script, *flags, "--workspace", workspace])
    process = subprocess.Popen(list(command), stdout=subprocess.DEVNULL)
    process.returncode = _print_cost(f"`{Path(script).name} {flags[0]}`", process.pid)


def _print_cost(name: str, pid: int) -> int:
    """Wait for a process that has just started; print its time and peak memory."""
    start = time.perf_counter()
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    seconds, gib = time.perf_counter() - start, usage.ru_maxrss / 2**20
    print(f"| {name} | {seconds:.0f} | {gib:.2f} |", flush=True)
    return status


def rehearse(workspace: Path, layers: int, width: int, channels: int, clips: int) -> None:
    """Run every step in a new ``workspace``."""
    server = workspace / "server"
    print("| | s | GiB |\n|---|---|---|")
    run_isolated("LM archive", write_lm_archive, server, layers, width)
    example = REPOSITORY / "preprocess" / "speech_commands" / "data" / "example100"
    shutil.copytree(example, workspace / "preprocess/speech_commands/data/hubert100")
    lm = ("hubert100", "--only", "lm", "--base_url", serve(server))
    step("pretrained_models/download.py", workspace, *lm)
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        step(f"ulm_prompt/{name}.py", workspace, "--prompt_task", "KS")
    run = ("--prompt_task", "KS", "--unit_model", "hubert100")
    step("ulm_prompt/train.py", workspace, "--date", "d", *run, "--set", "max_update=2")
    # --max_labels: with random weights no answer ends
    sampling = ("--model_date", "d", "--sample_date", "d", "--max_labels", 3)
    step("ulm_prompt/sample.py", workspace, *sampling, *run)
    base = workspace / "pretrained_models" / "base.pt"
    run_isolated("HuBERT", write_hubert, base, layers, width * 3 // 4, channels)
    (workspace / "pretrained_models" / "my_unit_models.yaml").write_text(
        "checkpoints: {base: {path: pretrained_models/base.pt}}\n"
        "unit_models: {base100: {feature_type: hubert, checkpoint: base, layer: 2, clusters: 100}}"
    )
    table = workspace / "corpora" / "table"
    table.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for number in range(clips):
        soundfile.write(table / f"{number}.wav", 0.1 * rng.standard_normal(16_000), 16_000)
        lines.append(f"{number}.wav,word,{('train', 'valid', 'test')[number % 3]}")
    (table / "table.csv").write_text("\n".join(lines) + "\n")
    task = ("--downstream", "table", "--unit_model", "base100")
    step("preprocess/runner.py", workspace, "--action=generate_manifest", *task)
    step("preprocess/runner.py", workspace, "--action=quantized", *task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, required=True, help="a new folder")
    parser.add_argument("--layers", type=int, default=12, help="layers of both (default: 12)")
    parser.add_argument("--width", type=int, default=1024, help="LM; HuBERT: 3/4 (default: 1024)")
    args = parser.parse_args()
    rehearse(args.workspace.resolve(), args.layers, args.width, channels=512, clips=60)


if __name__ == "__main__":
    main()
