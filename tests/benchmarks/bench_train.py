"""Compare our training step with the published method, on the same weights and batches.

python -m tests.benchmarks.bench_train [--steps N] [--dtype DTYPE]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.benchmarks import measure
from tests.benchmarks.measure import DEVICE, Result, random_model, read_split, report, timed
from tests.benchmarks.published import PAD, published_loss
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.data import batches_by_length
from ulm_prompt.prompt_lm.lm import choose_dtype
from ulm_prompt.prompt_lm.model import PromptLanguageModel

Batch = list[dict]


def batches(count: int) -> list[Batch]:
    """Return ``count`` batches of 32 utterances of KS, with lengths close to the average."""
    symbols = tiny.dictionary()
    rows = []
    for row in read_split("speech_commands", "train")[:5000]:
        units_and_labels = f"{row.units} <s> {row.labels} </s>".split()
        tokens = np.array([symbols.index(symbol) for symbol in units_and_labels])
        rows.append({"id": 0, "tokens": tokens, "separator": len(row.units.split())})
    sizes = np.array([len(row["tokens"]) for row in rows])
    index_batches = list(batches_by_length(np.arange(len(rows)), sizes, 4096, 32))
    index_batches.sort(key=lambda indices: abs(sizes[indices].mean() - sizes.mean()))
    return [[rows[index] for index in indices] for indices in index_batches[:count]]


def stepper(method: str, model: PromptLanguageModel) -> Callable[[Batch], Tensor]:
    """Return a training step: batch, forward, backward, Adam. The step returns the summed loss."""
    adam = torch.optim.Adam(model.prompt.parameters(), lr=5e-3)
    symbols = tiny.dictionary()
    criterion = tiny.criterion()

    def ours(batch: Batch) -> Tensor:
        return criterion(model, tiny.on(DEVICE, tiny.collate(batch)))[0]

    def published(batch: Batch) -> Tensor:
        rows = [torch.tensor([symbols.eos(), *row["tokens"]]) for row in batch]
        return published_loss(model, pad_sequence(rows, True, PAD).to(DEVICE))

    def step(batch: Batch) -> Tensor:
        torch.manual_seed(0)  # both methods draw the same dropout
        torch.set_flush_denormal(method == "ours")
        adam.zero_grad()
        loss = {"ours": ours, "published": published}[method](batch)
        (loss / sum(len(row["tokens"]) for row in batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.prompt.parameters(), 1.0)
        adam.step()
        return loss.detach()

    return step


def compare(shape: str, steps: int, dtype: torch.dtype) -> None:
    """Report milliseconds per step of both methods, which take turns."""
    models = {name: random_model(shape, 3, dropout=0.1) for name in ("published", "ours")}
    models["ours"].lm.to(dtype)
    models["ours"].prompt.load_state_dict(models["published"].prompt.state_dict())
    step = {name: stepper(name, model) for name, model in models.items()}
    data = batches(steps + 1)
    spent = {name: [] for name in step}
    for number, batch in enumerate(data):
        losses = {}
        for name in step:
            seconds, losses[name] = timed(lambda name=name, batch=batch: step[name](batch))
            if number:  # the first step only warms up
                spent[name].append(seconds)
        if not number:  # in later steps Adam has amplified rounding differences
            difference = abs(losses["ours"] / losses["published"] - 1).item()
    tokens = sum(len(row["tokens"]) for row in data[-1])
    parameters = sum(parameter.numel() for parameter in models["ours"].lm.parameters())
    published, ours = (float(np.median(spent[name])) for name in ("published", "ours"))
    width = models["ours"].lm.decoder.embed_dim
    report(
        Result(
            f"training step, {shape} LM, {tokens} tokens, {measure.dtype_name(dtype)}",
            1e3 * published,
            1e3 * ours,
            "ms",
            4 * parameters * tokens / ours / 1e9,
            measure.matrix_rate(dtype, *measure.product_shapes(tokens, width)),
            f"losses {difference:.0e} apart",
        )
    )


def peak_memory(method: str, shape: str, dtype: torch.dtype) -> tuple[float, float]:
    """Return the MB that two steps need beyond interpreter and weights, and the process's peak."""
    model = random_model(shape, 3, dropout=0.1)
    model.lm.to(dtype)
    step, data = stepper(method, model), batches(2)
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    for batch in data:
        step(batch)
    if DEVICE.type == "cuda":
        after = torch.cuda.max_memory_allocated() / 2**20
    else:
        after = resident("VmHWM")
    return after - before, after


def resident(field: str) -> float:
    """Return the MB of this process: now (``VmRSS``) or at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(field))


def compare_memory(shape: str, dtype: torch.dtype) -> None:
    """Report the memory of a step of both methods."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # new processes return freed memory
    published, peak = measure.run_isolated(peak_memory, "published", shape, torch.float32)
    ours, our_peak = measure.run_isolated(peak_memory, "ours", shape, dtype)
    note = f"{ours / published:.2f} times as much; process peaks {peak:.0f} and {our_peak:.0f} MB"
    what = f"memory of a step beyond the weights, {shape} LM, {measure.dtype_name(dtype)}"
    report(Result(what, published, ours, "MB", note=note))


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag(
        "--steps", type=int, default=5, help="steps at 151M; 10 times as many at 3.2M (default: 5)"
    )
    flag("--dtype", default="auto", help="second dtype: auto, bfloat16, float16 (default: auto)")
    args = parser.parse_args(arguments)
    dtype, reason = choose_dtype(args.dtype, DEVICE, parameters=151_263_232)
    print(f"{measure.machine()}; dtype {dtype}: {reason}")
    for shape, steps in (("3.2M", 10 * args.steps), ("151M", args.steps)):
        for lm_dtype in dict.fromkeys((torch.float32, dtype)):
            compare(shape, steps, lm_dtype)
            compare_memory(shape, lm_dtype)


if __name__ == "__main__":
    main(sys.argv[1:])
