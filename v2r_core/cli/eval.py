"""`v2r eval`: how good an encoder is, from frozen features, or a reward, on labelled episodes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from v2r_core.cli.eval_reward import EvalReward
from v2r_core.deploy.bundle import MANIFEST
from v2r_core.encoders.zoo import create_encoder
from v2r_core.evaluate.features import (
    Embedder,
    bundle_embedder,
    class_numbers,
    embed_recordings,
    encoder_embedder,
    list_recordings,
    pixel_embedder,
)
from v2r_core.evaluate.probe import ProbeResult, knn_probe, linear_probe
from v2r_core.evaluate.protocols import FEW_STEPS, PROTOCOLS
from v2r_core.evaluate.robot import AXES, RobotReport, probe_embedder

PIXELS = "pixels"
RUN_FILE = "run.json"

Ticks = Callable[[int, int], None]
ProtocolName = Literal["moco", "mocov3", "simclr", "dino", "dinov2", "mae", "ijepa"]


@dataclass(frozen=True)
class Probe:
    """Probes frozen features: positions of gripper and object, or classes, on held-out videos."""

    model: tuple[str, ...]
    """What to probe, one or several: a name that `v2r models` lists, `pixels`, a bundle's folder, or the folder of a
    training run."""
    data: Path
    """Folder with `train` and `heldout`: videos from tools/render_experts.py, or a folder of videos or images for each
    class (those for knn and linear only)."""
    kind: Literal["robot", "knn", "linear"] = "robot"
    """robot: ridge regression to gripper and object positions. knn: 20 weighted neighbours, as DINO. linear: a linear
    classifier, trained as `protocol` says."""
    out: Path | None = None
    """JSON file to write the numbers to."""
    frames: int = 16
    """Frames of each video, evenly spaced."""
    protocol: ProtocolName = "moco"
    """Whose settings the linear classifier is trained with. All but moco's are made for a million images."""
    epochs: int | None = None
    """Epochs of the linear classifier; by default the protocol's."""
    views: int = 0
    """Random crops of each training frame that the linear classifier sees in turn; 0 for the frames as they are."""
    blocks: int = 1
    """Class tokens of so many last blocks as features (vision transformers only); 1 for the encoder's own output."""
    weights: Path | None = None
    """File with the weights, where `model` is a name that needs one."""
    size: int | None = None
    """Side of the encoder's input in pixels, where `model` is a name; by default as its weights were trained."""
    seed: int = 0
    """Of random weights, of crops and of the classifier."""

    def run(self) -> int:
        """Probes, prints a table, writes the report.

        Raises:
            ValueError, OSError: model or data cannot be used; the message says which and why.
        """
        if not self.model:
            raise ValueError("no model given; name one, pixels, a bundle or a run after --model")
        if self.frames < 1 or self.views < 0 or self.blocks < 1:
            raise ValueError("frames and blocks must be at least 1, views at least 0")
        reports: dict[str, dict[str, Any]] = {}
        for model in self.model:
            embedder = open_embedder(model, self.weights, self.size, self.seed, self.blocks)
            start = time.perf_counter()
            with _ticks(embedder.name) as tick:
                result = self._probe(embedder, tick)
            reports[model] = {**plain(asdict(result)), "seconds": round(time.perf_counter() - start, 1)}
        report = {"kind": self.kind, "data": str(self.data), "frames": self.frames, "seed": self.seed}
        if self.kind == "linear":
            report |= {"protocol": self.protocol, "epochs": self.epochs or PROTOCOLS[self.protocol].epochs}
            report |= {"views": self.views}
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps({**report, "models": reports}, indent=2) + "\n")
        console = Console()
        console.print(robot_table(reports) if self.kind == "robot" else _class_table(self.kind, reports))
        if self.kind == "linear" and (steps := min(report["steps"] for report in reports.values())) < FEW_STEPS:
            console.print(f"only {steps} steps: {self.protocol} is made for more data; add --epochs, or use moco")
        if self.out is not None:
            console.print(f"written to {self.out}")
        return 0

    def _probe(self, embedder: Embedder, tick: Ticks) -> RobotReport | ProbeResult:
        if self.kind == "robot":
            return probe_embedder(embedder, self.data, self.frames, tick)
        train, test = (list_recordings(self.data, split) for split in ("train", "heldout"))
        classes, train_labels, test_labels = class_numbers([r.label for r in train], [r.label for r in test])
        if len(classes) < 2:
            raise ValueError(f"{self.data}: one class only ({classes[0]}); at least two are needed")
        total = len(train) + len(test)
        views = self.views if self.kind == "linear" else 0
        fitted = embed_recordings(embedder, train, self.frames, views, self.seed, lambda done, _: tick(done, total))
        judged = embed_recordings(
            embedder, test, self.frames, on_progress=lambda done, _: tick(len(train) + done, total)
        )
        known = (fitted.features, train_labels[fitted.video], judged.features, test_labels[judged.video])
        if self.kind == "knn":
            return knn_probe(*known, k=min(20, len(fitted.video)))
        return linear_probe(*known, protocol=self.protocol, epochs=self.epochs, seed=self.seed)


Eval = Annotated[Probe, tyro.conf.subcommand("probe")] | Annotated[EvalReward, tyro.conf.subcommand("reward")]


def open_embedder(
    model: str, weights: Path | None = None, size: int | None = None, seed: int = 0, blocks: int = 1
) -> Embedder:
    """Opens whatever can make features of frames.

    Args:
        model: name of an encoder, `pixels`, or the folder of a bundle or of a training run.
        weights: file with the weights of a named encoder.
        size: side of a named encoder's input in pixels.
        seed: of a named encoder's random weights.
        blocks: see `encoder_embedder`.

    Raises:
        ValueError: no such encoder, or a folder that is neither bundle nor run.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() and (folder / MANIFEST).is_file():
        if blocks > 1:
            raise ValueError(f"{model}: a bundle has one output; leave --blocks away")
        return bundle_embedder(folder)
    if folder.is_dir() and (folder / RUN_FILE).is_file():
        from v2r_core.training.checkpoint import load_run_encoder  # noqa: PLC0415 (Accelerate takes seconds)

        return encoder_embedder(load_run_encoder(folder), blocks)
    if folder.is_dir():
        raise ValueError(f"{model}: neither a bundle ({MANIFEST}) nor a training run ({RUN_FILE}) in this folder")
    if model == PIXELS:
        return pixel_embedder()
    return encoder_embedder(create_encoder(model, weights, seed=seed, size=size), blocks)


def robot_table(reports: dict[str, dict[str, Any]]) -> Table:
    """R2 of each coordinate, a column for each model; coordinates that do not move are left out and counted.

    Args:
        reports: by model, `RobotReport` as a dictionary, None where a number is undefined.
    """
    table = Table("R2, held-out videos", *reports, title="robot probe")
    columns = [_robot_rows(report) for report in reports.values()]
    for label in columns[0]:
        numbers = [column[label] for column in columns]
        if label == "mean, gripper":
            table.add_section()
        if any(number is not None for number in numbers):
            table.add_row(label, *("-" if number is None else f"{number:.3f}" for number in numbers))
    undefined = next(iter(reports.values()))["undefined"]
    table.caption = f"{undefined} coordinates do not move and have no R2"
    return table


def _robot_rows(report: dict[str, Any]) -> dict[str, float | None]:
    rows = {f"gripper {axis}": r2 for axis, r2 in zip(AXES, report["gripper"]["r2"], strict=True)}
    for task, regression in report["objects"].items():
        rows |= {f"{task}: object {axis}": r2 for axis, r2 in zip(AXES, regression["r2"], strict=True)}
    means = {"mean, gripper": "gripper_mean", "mean, objects": "object_mean", "mean of both": "mean"}
    return rows | {label: report[key] for label, key in means.items()}


def _class_table(kind: str, reports: dict[str, dict[str, Any]]) -> Table:
    table = Table("model", "top 1, %", "top 5, %", "training top 1, %", "s", title=f"{kind} probe, held-out videos")
    for name, report in reports.items():
        numbers = (report["top1"], report["top5"], report["train_top1"])
        table.add_row(name, *(f"{number:.1f}" for number in numbers), f"{report['seconds']:.0f}")
    return table


def plain(value: Any) -> Any:
    """JSON has no NaN: undefined numbers become null."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _ticks(name: str) -> Iterator[Ticks]:
    """A progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(f"{name}: videos", total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)
