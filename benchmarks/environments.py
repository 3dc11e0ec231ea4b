"""Environment steps a second with a picture of each: `make_env` against the environment's own `render`.

    python -m benchmarks.environments [--out out/bench] [--seconds 5] [--rounds 3]

Needs the `sim` extra and headless OpenGL. Every variant runs in a process of its own, on one thread, and they take
turns, so that a busy machine hits them alike; ratios are medians over the rounds of the same run. All take random
actions and give square frames of the same size; FrankaKitchen is drawn at its own 480 pixels and resized, by both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

NAMES = ("metaworld:door-close-v3", "dm_control:cartpole-balance", "gym:FrankaKitchen-v1")
Variant = Literal["simulator", "own", "ours"]
VARIANTS: tuple[Variant, ...] = ("simulator", "own", "ours")
WARM_UP = 3
"""Steps before the clock starts: the first picture makes the renderer."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """Options."""

    names: tuple[str, ...] = NAMES
    """Environments, as `make_env` names them."""
    out: Path = Path("out/bench")
    """Folder for environments.json."""
    size: int = 128
    """Side of the frames in pixels."""
    seconds: float = 5.0
    """Time of each variant in each round."""
    rounds: int = 3
    """How often every variant has its turn."""


@dataclass(frozen=True)
class Speed:
    """Steps a second of one environment, medians over the rounds.

    Attributes:
        name: of the environment.
        simulator: without a picture: what no renderer can exceed.
        own: with the environment's own `render`.
        ours: with `make_env`.
        ratio: ours over own, median over the rounds.
    """

    name: str
    simulator: float
    own: float
    ours: float
    ratio: float


def ours(name: str, size: int) -> Step:
    """A step of `make_env`."""
    from v2r_core.rl.envs import make_env  # noqa: PLC0415

    env = make_env(name, size=size, horizon=10**6)
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def step() -> object:
        _, _, terminated, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        return env.reset(seed=0) if terminated else None

    return step


def without_us(name: str, size: int, rendered: bool) -> Step:
    """A step of the environment as its package gives it, with its own picture or with none."""
    kind, _, task = name.partition(":")
    make = {"metaworld": _metaworld, "dm_control": _dm_control, "gym": _gymnasium}[kind]
    return make(task, size, rendered)


def _metaworld(task: str, size: int, rendered: bool) -> Step:
    import metaworld  # noqa: PLC0415

    env = metaworld.ALL_V3_ENVIRONMENTS[task](render_mode="rgb_array", camera_name="corner2", width=size, height=size)
    env.max_path_length = 10**6
    env.set_task(metaworld.MT1(task, seed=0).train_tasks[0])
    env.reset()
    rng = np.random.default_rng(0)

    def step() -> object:
        env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        return env.render() if rendered else None

    return step


def _dm_control(task: str, size: int, rendered: bool) -> Step:
    from dm_control import suite  # noqa: PLC0415

    env = suite.load(*task.split("-", 1), task_kwargs={"random": 0, "time_limit": float("inf")})
    env.reset()
    spec = env.action_spec()
    rng = np.random.default_rng(0)

    def step() -> object:
        env.step(rng.uniform(spec.minimum, spec.maximum, spec.shape))
        return env.physics.render(size, size, camera_id=0) if rendered else None

    return step


def _gymnasium(task: str, size: int, rendered: bool) -> Step:
    import gymnasium  # noqa: PLC0415
    import gymnasium_robotics  # noqa: PLC0415

    from v2r_core.video.resize import Preprocess, resize_frame  # noqa: PLC0415

    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make(task, render_mode="rgb_array", max_episode_steps=10**6)
    env.reset(seed=0)
    env.action_space.seed(0)

    def step() -> object:
        env.step(env.action_space.sample())
        return resize_frame(env.render(), Preprocess(size)) if rendered else None

    return step


def speed(name: str, variant: Variant, size: int, seconds: float) -> float:
    """Steps a second of one variant; runs in a process of its own."""
    warnings.filterwarnings("ignore")
    step = ours(name, size) if variant == "ours" else without_us(name, size, variant == "own")
    for _ in range(WARM_UP):
        step()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return count / passed


def measured(name: str, options: Bench) -> Speed:
    """All variants of one environment, in turn."""
    rounds: list[dict[Variant, float]] = []
    for _ in range(options.rounds):
        found: dict[Variant, float] = {}
        for variant in VARIANTS:
            # A fresh interpreter each: an OpenGL context does not survive a fork, and no variant inherits another's.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[variant] = pool.submit(speed, name, variant, options.size, options.seconds).result()
        rounds.append(found)
    medians = {variant: statistics.median(found[variant] for found in rounds) for variant in VARIANTS}
    return Speed(name, **medians, ratio=statistics.median(found["ours"] / found["own"] for found in rounds))


def main(options: Bench) -> int:
    """Measures, prints a table and writes environments.json."""
    # Set here for the processes that measure.
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ["OMP_NUM_THREADS"] = os.environ["LP_NUM_THREADS"] = "1"
    console = Console()
    speeds = []
    for name in options.names:
        with console.status(f"measuring {name}"):
            speeds.append(measured(name, options))
    table = Table("environment", "simulator alone", "own render", "make_env", "ratio")
    for found in speeds:
        rates = (found.simulator, found.own, found.ours)
        table.add_row(found.name, *(f"{rate:.1f}" for rate in rates), f"{found.ratio:.1f}x")
    console.print(table, "steps/s; the simulator alone takes no picture; one thread")
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "renderer": os.environ["MUJOCO_GL"]}
    about = {"size": options.size, "seconds": options.seconds, "rounds": options.rounds, **machine}
    result = {"about": about, "environments": [asdict(found) for found in speeds]}
    (options.out / "environments.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Bench, description=__doc__)))
