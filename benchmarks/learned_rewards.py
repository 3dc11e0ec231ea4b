"""What a learned reward costs on the robot: milliseconds a frame, one thread, frame by frame as the node does it.

    python -m benchmarks.learned_rewards BUNDLE... [--out out/bench] [--seconds 4] [--rounds 3]

All variants of a bundle take turns, so that a busy machine hits them alike; ratios are of medians of the same run. What
frames show does not matter to the time that they take, as long as none is sorted out as unlike the training's: so there
is no threshold here.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from v2r_core import CLIPS
from v2r_core.deploy.bundle import Bundle, load_bundle
from v2r_core.deploy.runtime import NetworkSession, Session
from v2r_core.rewards import make_reward
from v2r_core.rewards.goal import goal_from_images
from v2r_core.video.resize import Frame, resize_frame
from v2r_core.video.source import open_video

SPEEDS = ("exact", "five_calls", "two_calls", "one_call")
FRAMES = 32


@dataclass(frozen=True)
class Bench:
    """Options."""

    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `v2r export` wrote."""
    out: Path = Path("out/bench")
    """Folder for learned_rewards.json."""
    seconds: float = 4.0
    """Time of each variant in each round; three frames at least."""
    rounds: int = 3
    """How often every variant has its turn."""


@dataclass(frozen=True)
class Cost:
    """What one frame costs.

    Attributes:
        reward: name, and variant if it has several.
        encoder_ms, network_ms, reward_ms, step_ms: medians; the reward is what comes after the encoder, its network
            and what the host does; the step is all of it, from a camera frame of 640x480 to a sample.
        calls: of the network.
        frames_per_s: that one thread could score.
        wanted_per_s: that the window wants; None if it has no rate.
        faster, faster_reward: times as fast as the exact one, of step_ms and of reward_ms; None without variants.
    """

    bundle: str
    reward: str
    encoder_ms: float
    network_ms: float
    reward_ms: float
    step_ms: float
    calls: float
    frames_per_s: float
    wanted_per_s: float | None
    faster: float | None
    faster_reward: float | None


class TimedNetwork:
    """A network that notes how long its calls take."""

    def __init__(self, network: NetworkSession) -> None:
        self._network = network
        self.seconds, self.calls = 0.0, 0

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[Any]:
        """Runs it."""
        start = time.perf_counter()
        result = self._network(**inputs)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return result


class Variant:
    """A reward that is measured frame by frame.

    Attributes:
        frames: (encoder, network, reward, step) seconds and number of calls, one row a frame whose window was full.
    """

    def __init__(self, bundle: Bundle, session: Session, parameters: Mapping[str, Any]) -> None:
        spec, tensors = bundle.manifest.reward, bundle.tensors()
        if "quantization_threshold" in tensors:
            tensors["quantization_threshold"] = np.float32([1e9])
        networks = {name: NetworkSession(bundle, name, ["cpu"], threads=1) for name in bundle.manifest.networks}
        self._networks = {name: TimedNetwork(network) for name, network in networks.items()}
        self._bundle, self._session = bundle, session
        self._reward = make_reward(
            spec.name, session, {**spec.parameters, **parameters}, networks=self._networks, tensors=tensors
        )
        if self._reward.needs_goal:
            self._reward.reset(goal_from_images(np.ones((1, 1, session.embedding_dim), np.float32), "any"))
        self.frames: list[tuple[float, float, float, float, int]] = []

    def step(self, frame: Frame) -> None:
        """Scores one frame as `Scorer.step` does."""
        for network in self._networks.values():
            network.seconds, network.calls = 0.0, 0
        start = time.perf_counter()
        prepared = resize_frame(frame, self._bundle.preprocess)[None]
        before = time.perf_counter()
        embedding = self._session(prepared)
        between = time.perf_counter()
        sample = self._reward.observe(embedding)
        end = time.perf_counter()
        if np.isfinite(sample.reward):
            calls = sum(network.calls for network in self._networks.values())
            network = sum(network.seconds for network in self._networks.values())
            self.frames.append((between - before, network, end - between, end - start, calls))


def camera_frames() -> list[Frame]:
    """Frames of a camera of 640x480."""
    with open_video(CLIPS / "success.mp4") as video:
        chosen = [frame for frame, _ in zip(video, range(FRAMES), strict=False)]
    rows, columns = (
        np.linspace(0, side - 1, wanted).astype(int)
        for side, wanted in zip(chosen[0].shape[:2], (480, 640), strict=True)
    )
    return [np.ascontiguousarray(frame[rows][:, columns]) for frame in chosen]


def measure(folder: Path, options: Bench) -> list[Cost]:
    """The costs of a bundle's reward, and of its faster forms if it has any.

    Raises:
        BundleError: it does not load.
        ValueError: it has no number to give, whatever it is shown.
    """
    bundle = load_bundle(folder)
    spec = bundle.manifest.reward
    session = Session(bundle, "fp32", ["cpu"], threads=1)
    named = {f"{spec.name} {speed}": {"speed": speed} for speed in SPEEDS} if spec.name == "diffusion" else {}
    variants = {name: Variant(bundle, session, chosen) for name, chosen in (named or {spec.name: {}}).items()}
    shown = camera_frames()
    for _ in range(options.rounds):
        for variant in variants.values():
            end, number = time.perf_counter() + options.seconds, 0
            while time.perf_counter() < end or number < 3:
                variant.step(shown[number % len(shown)])
                number += 1
    return _costs(bundle, variants)


def _costs(bundle: Bundle, variants: Mapping[str, Variant]) -> list[Cost]:
    costs: list[Cost] = []
    for name, variant in variants.items():
        if not variant.frames:
            raise ValueError(f"{bundle.path}: no frame got a reward; measure for longer than its window")
        encoder, network, own, step, calls = (statistics.median(each) for each in zip(*variant.frames, strict=True))
        exact = costs[0] if costs else None
        costs.append(
            Cost(
                bundle=bundle.manifest.name,
                reward=name,
                encoder_ms=encoder * 1e3,
                network_ms=network * 1e3,
                reward_ms=own * 1e3,
                step_ms=step * 1e3,
                calls=calls,
                frames_per_s=1 / step,
                wanted_per_s=bundle.manifest.reward.rate,
                faster=_ratio(exact.step_ms if exact else step * 1e3, step * 1e3, variants),
                faster_reward=_ratio(exact.reward_ms if exact else own * 1e3, own * 1e3, variants),
            )
        )
    return costs


def _ratio(exact_ms: float, ms: float, variants: Mapping[str, Variant]) -> float | None:
    return exact_ms / ms if len(variants) > 1 else None


def main(options: Bench) -> int:
    """Measures, prints a table, writes learned_rewards.json."""
    console = Console()
    costs: list[Cost] = []
    for folder in options.bundles:
        with console.status(f"measuring {folder}"):
            costs += measure(folder, options)
    host = {"machine": platform.machine(), "cores": os.cpu_count(), "onnxruntime": onnxruntime.__version__}
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / "learned_rewards.json"
    written.write_text(json.dumps({"host": host, "costs": [asdict(cost) for cost in costs]}, indent=2) + "\n")
    table = Table(title="One frame, one thread, medians", caption="window/s: what the reward's window wants")
    headings = ("reward", "encoder ms", "calls", "network ms", "reward ms", "step ms", "frames/s", "window/s")
    for heading in (*headings, "step x exact", "reward x exact"):
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for cost in costs:
        numbers = (cost.encoder_ms, cost.calls, cost.network_ms, cost.reward_ms, cost.step_ms, cost.frames_per_s)
        optional = (cost.wanted_per_s, cost.faster, cost.faster_reward)
        row = [f"{numbers[0]:.2f}", f"{numbers[1]:.0f}", *(f"{number:.2f}" for number in numbers[2:])]
        table.add_row(cost.reward, *row, *("-" if x is None else f"{x:.1f}" for x in optional))
    console.print(table)
    console.print(f"written to {written}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Bench, description=__doc__)))
