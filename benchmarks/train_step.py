"""A training step of ours against lightly's, at equal settings: time as a ratio in one run, memory of the step.

python -m benchmarks.train_step            # all five methods; writes out/bench/train_step.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import lightly_methods
from benchmarks.devices import device_name, noise_batch
from benchmarks.lightly_methods import Size, TrainStep
from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon, Recipe
from v2r_core.training.loop import set_rates

METHODS = ("moco", "simclr", "dino", "mae", "ijepa")


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    out: Path = Path("out/bench/train_step.json")
    """Where the numbers go."""
    methods: tuple[str, ...] = METHODS
    """Which to measure."""
    steps: int = 8
    """Steps of a round."""
    rounds: int = 5
    """Rounds, ours and theirs in turn; ratios are medians over them."""
    threads: int = 1
    """CPU threads of both."""
    device: str = "cpu"
    """Where both compute: `cpu`, or `cuda` for a GPU."""
    memory: str = ""
    """Internal: measure the memory of `ours:METHOD` or `lightly:METHOD` in this process."""


def recipe(name: str, size: Size) -> Recipe:
    """Our recipe with the settings that lightly's side has."""
    tiny = load_method(name).recipe_type.tiny()
    changes: dict[str, dict[str, object]] = {
        "moco": {"architecture": "resnet18", "width": 1.0, "queue": size.queue, "bn_splits": 1, "dim": 128,
                 "optimizer": "sgd"},
        "simclr": {"depth": 18, "width": 1.0, "head_dim": 128, "optimizer": "momentum", "small_images": False},
        "dino": {
            "local_size": size.local, "local_count": size.locals, "prototypes": size.prototypes, "patch": size.patch,
            "head_hidden": 2048, "head_bottleneck": 256, "freeze_last_layer": 0,
        },
        "mae": {"decoder_width": size.decoder_width, "decoder_depth": size.decoder_depth, "patch": size.patch},
        "ijepa": {"predictor_width": size.decoder_width, "predictor_depth": size.decoder_depth, "patch": size.patch},
    }  # fmt: skip
    import dataclasses  # noqa: PLC0415

    return dataclasses.replace(tiny, batch_size=size.batch, size=size.image, **changes[name])


def ours(name: str, size: Size, device: str) -> TrainStep:
    """Our method with its own optimizer, driven as the training loop does it."""
    method_type = load_method(name)
    method = method_type(recipe(name, size), Horizon(1000, 10, size.batch, 1000 * size.batch)).to(device)
    optimizer = method.optimizer()
    number = 0

    def step(batch: dict[str, object]) -> float:
        nonlocal number
        number += 1
        outcome = method(batch, number)
        outcome.loss.backward()
        set_rates(optimizer, method, number)
        method.adjust_gradients(number)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(number)
        return float(outcome.loss.detach())

    return step


def lightly(name: str, size: Size, device: str) -> TrainStep:
    """Lightly's side of it; its modules have their masks and queues made on the device by torch's default."""
    with torch.device(device):
        inner: TrainStep = getattr(lightly_methods, name)(size)

    def step(batch: dict[str, object]) -> float:
        with torch.device(device):
            return inner(batch)

    return step


def compare(name: str, size: Size, options: Options) -> dict[str, float]:
    """Milliseconds a step (of processor time on a CPU), ours and theirs in turn, and the median ratio."""
    device = options.device
    batch = noise_batch(recipe(name, size), name, device)
    contenders = {"ours": ours(name, size, device), "lightly": lightly(name, size, device)}
    for step in contenders.values():
        step(batch)
        step(batch)
    seen: dict[str, list[float]] = {key: [] for key in contenders}
    for _ in range(options.rounds):
        for key, step in contenders.items():
            seen[key].append(_time(step, batch, options.steps, device))
    ratios = [theirs / mine for theirs, mine in zip(seen["lightly"], seen["ours"], strict=True)]
    return {
        "ours_ms": 1000 * statistics.median(seen["ours"]),
        "lightly_ms": 1000 * statistics.median(seen["lightly"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def peak_memory(which: str, size: Size, steps: int, device: str) -> float:
    """MB that building and running one contender adds to this process, a fresh one, or takes of the GPU's memory."""
    side, _, name = which.partition(":")
    batch = noise_batch(recipe(name, size), name, device)
    before = psutil.Process().memory_info().rss
    step = ours(name, size, device) if side == "ours" else lightly(name, size, device)
    for _ in range(steps):
        step(batch)
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return (peak * 1024 - before) / 1e6


def main(options: Options) -> int:
    """Measures, prints the table, writes the JSON; 1 if a bound is missed."""
    torch.set_num_threads(options.threads)
    size = Size()
    if options.memory:
        print(peak_memory(options.memory, size, 4, options.device))
        return 0
    console = Console()
    found: dict[str, dict[str, float]] = {}
    for name in options.methods:
        with console.status(f"measuring {name}"):
            found[name] = compare(name, size, options)
            for side in ("ours", "lightly"):
                found[name][f"{side}_mb"] = _memory_of(f"{side}:{name}", options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    where = {"threads": options.threads, "device": device_name(options.device)}
    options.out.write_text(json.dumps(where | {"methods": found}, indent=2) + "\n")
    table = Table("method", "ours ms", "lightly ms", "lightly / ours", "ours MB", "lightly MB", title="a training step")
    for name, row in found.items():
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        numbers = [f"{row[key]:.0f}" for key in ("ours_ms", "lightly_ms", "ours_mb", "lightly_mb")]
        table.add_row(name, *numbers[:2], spread, *numbers[2:])
    console.print(table)
    fast = sum(row["ratio"] >= 1.3 for row in found.values())
    missed = [name for name, row in found.items() if row["ratio"] < 1.0 or row["ours_mb"] > row["lightly_mb"]]
    console.print(f"at least 1.3 times lightly's speed: {fast}; slower or larger than lightly: {missed or 'none'}")
    return int(bool(missed) or fast < 2)


def _time(step: Callable[[dict[str, object]], float], batch: dict[str, object], steps: int, device: str) -> float:
    # Processor time: with one thread that of an idle machine, whatever else runs on this one.
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    for _ in range(steps):
        step(batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / steps


def _memory_of(which: str, options: Options) -> float:
    arguments = [sys.executable, "-m", "benchmarks.train_step", "--memory", which]
    arguments += ["--threads", str(options.threads), "--device", options.device]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=dict(os.environ))
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
