"""Does pre-training on the robot's videos pay? Each method's tiny preset against its own random initialisation.

    MUJOCO_GL=egl python tools/render_experts.py && python -m benchmarks.pretrain

For every method and seed: the robot probe of the untrained encoder, training on the videos of `train`, the probe again
(v2r_core/evaluate/robot.py; the held-out videos are used for nothing else). Both encoders are probed as they would run
on a robot, in evaluation mode: batch norm of the untrained one has its initial statistics. Beside them stand ImageNet's
EfficientNet-Lite0 and 16 x 16 thumbnails. What the JSON has already is not measured again, and a run that was cut short
goes on.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2r_core.cli.eval import PIXELS, open_embedder, plain
from v2r_core.encoders.encoder import Encoder
from v2r_core.encoders.zoo import DEFAULT_ENCODER
from v2r_core.evaluate.features import Embedder, encoder_embedder
from v2r_core.evaluate.robot import probe_embedder
from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon, Recipe
from v2r_core.methods.runs import RUN, read_run
from v2r_core.training.checkpoint import latest_checkpoint, load_run_encoder, step_of
from v2r_core.training.loop import train
from v2r_core.training.options import RunOptions

METHODS = ("moco", "simclr", "simclrv2", "dino", "dinov2", "mae", "ijepa", "vjepa")
REFERENCES = (DEFAULT_ENCODER, PIXELS)

Report = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    data: Path = Path("out/experts")
    """Folder that tools/render_experts.py wrote."""
    methods: tuple[str, ...] = METHODS
    """Which methods."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order and views."""
    frames: int = 16
    """Frames of each video that are probed."""
    every: int = 6
    """Every so manieth frame starts a training example; with 1, `tiny` takes six times as long on these videos."""
    out: Path = Path("out/bench/pretrain.json")
    """Where the numbers go."""
    runs: Path = Path("out/bench/pretrain")
    """Folder of the training runs and of the decoded frames."""
    workers: int = 2
    """Processes that decode and augment."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""


def main(options: Options) -> int:
    """Measures what is missing, writes after each measurement, prints."""
    console = Console()
    report = read_report(options)
    for name in REFERENCES:
        if name not in report["references"]:
            report["references"][name] = probe(open_embedder(name), options)
            write_report(options.out, report)
    for method in options.methods:
        done = report["methods"].setdefault(method, {})
        for seed in options.seeds:
            if str(seed) in done:
                continue
            done[str(seed)] = measure(method, seed, options)
            write_report(options.out, report)
            before, after = (done[str(seed)][when]["mean"] for when in ("before", "after"))
            console.print(f"{method}, seed {seed}: {before:.3f} -> {after:.3f} ({done[str(seed)]['train_s']:.0f} s)")
    console.print(table(report))
    return 0


def measure(method: str, seed: int, options: Options) -> Report:
    """Probe, training, probe, for one method and seed."""
    recipe = load_method(method).recipe_type.tiny()
    before = probe(encoder_embedder(untrained(method, recipe, seed)), options)
    start = time.perf_counter()
    run = trained(method, recipe, seed, options)
    seconds = time.perf_counter() - start
    after = probe(encoder_embedder(load_run_encoder(run)), options)
    return {"before": before, "after": after, "train_s": round(seconds, 1)}


def untrained(method: str, recipe: Recipe, seed: int) -> Encoder:
    """The encoder that training starts from: `train` builds the method after the same seeding."""
    torch.manual_seed(seed)
    # The horizon decides about schedules only.
    horizon = Horizon(steps_per_epoch=1, epochs=recipe.epochs, batch_size=recipe.batch_size, examples=recipe.batch_size)
    return load_method(method)(recipe, horizon).encoder().eval()


def trained(method: str, recipe: Recipe, seed: int, options: Options) -> Path:
    """Folder of the finished run."""
    run = options.runs / f"{method}-{seed}"
    how = RunOptions(
        seed=seed,
        workers=options.workers,
        every=options.every,
        cache=options.runs / "frames",
        resume=(run / RUN).is_file(),
        cpu=options.cpu,
    )
    train(method, recipe, [options.data / "train"], run, how)
    horizon = Horizon(**read_run(run)["horizon"])
    if step_of(latest_checkpoint(run)) < horizon.steps:
        raise SystemExit(f"{run}: stopped by a signal; start again to go on")
    return run


def probe(embedder: Embedder, options: Options) -> Report:
    """The robot probe as JSON takes it, with its time in seconds."""
    start = time.perf_counter()
    result: Report = plain(asdict(probe_embedder(embedder, options.data, options.frames)))
    return result | {"probe_s": round(time.perf_counter() - start, 1)}


def read_report(options: Options) -> Report:
    """What was measured so far.

    Raises:
        ValueError: the numbers there are of other data; they must not be mixed.
    """
    settings = {"data": str(options.data), "frames": options.frames, "every": options.every}
    if not options.out.is_file():
        return {"settings": settings, "references": {}, "methods": {}}
    report: Report = json.loads(options.out.read_text())
    if report["settings"] != settings:
        raise ValueError(f"{options.out} holds numbers of {report['settings']}, not {settings}; choose another --out")
    return report


def write_report(path: Path, report: Report) -> None:
    """Writes under another name first, so that an interruption costs one measurement and not all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)


def table(report: Report) -> Table:
    """Means over the seeds, with the standard deviation between them."""
    title = "robot probe: mean R2 of gripper and objects, held-out videos"
    shown = Table("", "before", "after", "gain", "wins", "gripper", "objects", "s", title=title)
    for name, result in report["references"].items():
        numbers = (f"{result[key]:.3f}" for key in ("gripper_mean", "object_mean"))
        shown.add_row(name, "", f"{result['mean']:.3f}", "", "", *numbers, "")
    shown.add_section()
    for method, seeds in report["methods"].items():
        runs = list(seeds.values())
        if not runs:
            continue
        before, after = (np.array([run[when]["mean"] for run in runs]) for when in ("before", "after"))
        shown.add_row(
            method,
            spread(before),
            spread(after),
            spread(after - before),
            f"{int((after > before).sum())}/{len(runs)}",
            *(f"{np.mean([run['after'][key] for run in runs]):.3f}" for key in ("gripper_mean", "object_mean")),
            f"{np.mean([run['train_s'] for run in runs]):.0f}",
        )
    shown.caption = "before: untrained; after: trained, gripper and objects too; s: seconds of training"
    return shown


def spread(values: NDArray[np.float64]) -> str:
    """Mean, and standard deviation where there are several values."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean}±{np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
