"""What a GPU brings: training steps of every method in each precision, views, and a frame through the shipped encoder.

    python -m benchmarks.gpu                   # writes out/bench/gpu.json

A step is one of the loop's, on views of noise, so no decoding is in it. The presets are the papers' own, with as many
examples as `--batch` says (what a run calls `--accumulate` makes up the rest), and `tiny` as it is. A method that does
not run on this GPU is a row with the reason, and the exit code is 1.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.devices import device_name, noise_batch
from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import Precision, load_bundle
from v2r_core.deploy.gpu import gpu_name
from v2r_core.deploy.runtime import Session
from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon, Method
from v2r_core.training.loop import set_rates
from v2r_core.video.augment import View, dino_views, moco_v2_views, simclr_views
from v2r_core.video.draws import draw_look, uniforms_needed
from v2r_core.video.photometric import render

METHODS = ("moco", "simclr", "simclrv2", "dino", "dinov2", "mae", "ijepa", "vjepa")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    out: Path = Path("out/bench/gpu.json")
    """Where the numbers go."""
    methods: tuple[str, ...] = METHODS
    """Which to measure."""
    presets: tuple[str, ...] = ("tiny", "paper")
    """Which of their presets."""
    precisions: tuple[str, ...] = ("no", "bf16", "fp16")
    """Which arithmetic."""
    batch: int = 64
    """Examples of a step of the papers' presets; an eighth of it for clips."""
    steps: int = 10
    """Steps that are timed, after three that are not."""
    device: str = "cuda"
    """Where to compute; `cpu` to try the benchmark itself."""


def measure_method(name: str, preset: str, options: Options) -> dict[str, dict[str, float | str]]:
    """For each precision: examples a second, milliseconds a step, and the memory at its peak; or why it did not run."""
    method_type, device = load_method(name), options.device
    recipe = method_type.recipe_type.presets()[preset]
    if preset != "tiny":
        clips = method_type.data(recipe).frames > 1
        recipe = dataclasses.replace(recipe, batch_size=max(1, options.batch // 8) if clips else options.batch)
    torch.manual_seed(0)
    method = method_type(recipe, Horizon(1000, 10, recipe.batch_size, 1000 * recipe.batch_size)).to(device)
    batch, optimizer = noise_batch(recipe, name, device), method.optimizer()
    found: dict[str, dict[str, float | str]] = {}
    for precision in options.precisions:
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            found[precision] = _steps(method, optimizer, batch, precision, options)
        except (RuntimeError, FloatingPointError) as error:
            found[precision] = {"error": str(error).split("\n")[0]}
    return found


def _steps(
    method: Method, optimizer: torch.optim.Optimizer, batch: dict[str, object], precision: str, options: Options
) -> dict[str, float | str]:
    device = options.device
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def step(number: int) -> float:
        with torch.autocast(device, DTYPES.get(precision, torch.bfloat16), enabled=precision != "no"):
            outcome = method(batch, number)
        scaler.scale(outcome.loss).backward()
        set_rates(optimizer, method, number)
        scaler.unscale_(optimizer)
        method.adjust_gradients(number)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(number)
        return float(outcome.loss.detach())

    losses = [step(number) for number in range(3)]
    start = time.perf_counter()
    losses += [step(number) for number in range(3, 3 + options.steps)]
    _wait(device)
    seconds = (time.perf_counter() - start) / options.steps
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"losses {losses}")
    names: list[str] = batch["names"]  # type: ignore[assignment]
    return {
        "examples": len(names),
        "examples_per_s": len(names) / seconds,
        "ms": 1000 * seconds,
        "gb": 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9,
        "first_loss": losses[0],
    }


def measure_views(device: str) -> dict[str, dict[str, float]]:
    """Views a second that are coloured in one batch of 64 from 224 pixels, on the device and on one CPU thread."""
    cases: dict[str, View] = {
        "moco v2": moco_v2_views(224)[0],
        "simclr": simclr_views(224)[0],
        "dino, second": dino_views(224, 96, 8)[1],
    }
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (64, 1, 224, 224, 3), dtype=np.uint8))
    found = {}
    for name, view in cases.items():
        look = draw_look(view, rng.random((64, uniforms_needed(view))), rng.random())
        found[name] = {
            where: 64 / _seconds(partial(render, pixels.to(where), look), where, 20 if where != "cpu" else 3)
            for where in dict.fromkeys(("cpu", device))
        }
    return found


def measure_encoder(device: str) -> dict[str, dict[str, float | str]]:
    """Milliseconds of one frame, and frames a second in batches of 32, of the shipped bundle by ONNX Runtime."""
    bundle = load_bundle(DEFAULT_BUNDLE)
    found: dict[str, dict[str, float | str]] = {}
    cases: list[tuple[str, Precision]] = [("cpu", "fp32")]
    cases += [] if device == "cpu" else [("cuda", "fp32"), ("cuda", "fp16")]
    for provider, precision in cases:
        session = Session(bundle, precision, [provider], batch=32)
        key = f"{provider} {precision}"
        found[key] = {"provider": session.provider, "ms": session.warm_up(), "self_check": session.self_check()}
        session.warm_up(32)
        found[key]["frames_per_s"] = 32_000 / session.warm_up(32)
    return found


def _seconds(work: Callable[[], object], device: str, times: int) -> float:
    work()
    taken = []
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main(options: Options) -> int:
    """Measures, prints the tables, writes the JSON after each method; 1 if something did not run."""
    torch.set_num_threads(1)
    console = Console()
    rows: dict[str, dict[str, float | str]] = {}
    found: dict[str, object] = {"device": device_name(options.device), "gpu": gpu_name(), "torch": torch.__version__}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def write(**more: object) -> None:
        found.update(more)
        options.out.write_text(json.dumps(found, indent=2) + "\n")

    write(views=measure_views(options.device), encoder=measure_encoder(options.device))
    console.print_json(data={"views_per_s": found["views"], "encoder": found["encoder"]})
    for name in options.methods:
        for preset in options.presets:
            with console.status(f"measuring {name} {preset}"):
                steps = measure_method(name, preset, options)
            rows |= {f"{name} {preset} {precision}": row for precision, row in steps.items()}
            write(steps=rows)
    table = Table("method", "preset", "precision", "examples", "examples/s", "ms a step", "GB", title="a training step")
    for key, row in rows.items():
        columns = ("examples", "examples_per_s", "ms", "gb")
        table.add_row(*key.split(), *([str(row["error"])] if "error" in row else [f"{row[k]:.4g}" for k in columns]))
    console.print(table)
    return int(any("error" in row for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
