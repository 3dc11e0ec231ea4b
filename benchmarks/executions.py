"""How well does one demonstration judge other executions? MetaWorld's scripted experts, the shipped encoder, controls.

Needs the `sim` extra and headless OpenGL: MUJOCO_GL=egl python -m benchmarks.executions. For each of four tasks, six
executions by the expert, each with the object elsewhere; three that stop after 45 % of the expert's time; three with
random actions. Three of the successes serve as the demonstration in turn, everything else is scored against it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from v2r_core.rl.rendering import Camera  # first: it chooses the renderer before MuJoCo is imported

# isort: split
import metaworld
import mujoco
import numpy as np
import tyro
from metaworld.policies import (
    SawyerButtonPressV3Policy,
    SawyerDoorCloseV3Policy,
    SawyerDrawerOpenV3Policy,
    SawyerWindowOpenV3Policy,
)
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.baselines import RandomEncoder, pixel_embedding
from v2r_core.rewards.goal import goal_from_demonstration
from v2r_core.rewards.goal_distance import GoalDistance
from v2r_core.rewards.quality import voc
from v2r_core.rewards.reward import RewardCurve

EXPERTS = {
    "drawer-open-v3": SawyerDrawerOpenV3Policy,
    "door-close-v3": SawyerDoorCloseV3Policy,
    "button-press-v3": SawyerButtonPressV3Policy,
    "window-open-v3": SawyerWindowOpenV3Policy,
}
HEIGHT, WIDTH = 480, 640
EPISODES, FAILURES, DEMONSTRATIONS = 6, 3, 3
LONGEST, REST = 150, 8
STOP_AT = 0.45
END = 5

Embeddings = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    out: Path = Path("out/bench/executions.json")
    """Where the numbers go."""


@dataclass(frozen=True)
class Execution:
    """One run: its task, how it was driven (expert, half, random), whether it succeeded, and its embeddings."""

    task: str
    episode: int
    kind: str
    success: bool
    embeddings: Embeddings


def main(options: Options) -> int:
    """Renders, scores, prints and writes."""
    warnings.filterwarnings("ignore")
    scorer = Scorer(load_bundle(DEFAULT_BUNDLE))
    encoders: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
        "EfficientNet-Lite0": scorer.session,
        "random encoder": RandomEncoder(),
        "pixels": pixel_embedding,
    }
    plan = [(task, n, kind) for task in EXPERTS for kind in ("expert", "half", "random") for n in range(EPISODES)]
    plan = [(task, n, kind) for task, n, kind in plan if kind == "expert" or n < FAILURES]
    runs: list[Execution] = []
    length: dict[str, int] = {}
    for task, episode, kind in track(plan, "rendering"):
        frames, success = render(task, episode, kind, length.get(task, LONGEST))
        length.setdefault(task, len(frames))
        prepared = [scorer.prepare(frame) for frame in frames]
        embeddings = {name: np.concatenate([embed(f[None]) for f in prepared]) for name, embed in encoders.items()}
        runs.append(Execution(task, episode, kind, success, embeddings))
    report = {name: summarise(runs, name) for name in encoders}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    table = Table(title=f"{len(EXPERTS)} tasks, {DEMONSTRATIONS} demonstrations each")
    table.add_column("")
    for name in encoders:
        table.add_column(name, justify="right")
    for key in next(iter(report.values())):
        table.add_row(key, *(f"{numbers[key]:.2f}" for numbers in report.values()))
    Console().print(table)
    return 0


def render(task: str, episode: int, kind: str, expert_length: int) -> tuple[list[NDArray[np.uint8]], bool]:
    """Frames, uint8 RGB, of one run, one for each control step, and whether the task was done."""
    benchmark = metaworld.MT1(task, seed=0)
    env = benchmark.train_classes[task]()
    env.set_task(benchmark.train_tasks[episode])
    observation, _ = env.reset()
    shown, view = mujoco.MjvOption(), mujoco.MjvCamera()
    shown.sitegroup[:] = 0
    view.lookat[:] = (0.02, 0.67, 0.12)
    view.azimuth, view.elevation, view.distance = 165, -33, 1.25
    camera = Camera(env.model, (HEIGHT, WIDTH), view, shown)
    policy, rng = EXPERTS[task](), np.random.default_rng(episode)
    frames, done = [], 0
    limit = LONGEST if kind == "expert" else expert_length
    while len(frames) < limit and done <= REST:
        frames.append(camera.picture(env.data))
        action = np.clip(policy.get_action(observation), -1, 1)
        if kind == "random":
            action = rng.uniform(-1, 1, 4)
        elif kind == "half" and len(frames) > STOP_AT * expert_length:
            action = np.zeros(4)
        observation, _, _, _, info = env.step(action)
        done += int(info["success"])
    camera.close()
    return frames, done > 0


def summarise(runs: list[Execution], encoder: str) -> dict[str, float]:
    """The numbers of one encoder over all tasks and demonstrations."""
    success_end, failure_end, progress_voc, value_voc, unlike, unlike_other = [], [], [], [], [], []
    for demonstration in runs:
        if demonstration.kind != "expert" or demonstration.episode >= DEMONSTRATIONS or not demonstration.success:
            continue
        reward = GoalDistance(lambda frames: frames)
        goal = goal_from_demonstration(demonstration.embeddings[encoder], "demonstration")
        for run in runs:
            if run is demonstration:
                continue
            reward.reset(goal)
            curve = RewardCurve.from_samples(reward.observe(row[None]) for row in run.embeddings[encoder])
            times = np.arange(len(curve), dtype=np.float64)
            outside = float((curve.uncertainty > 1).mean())
            if run.task != demonstration.task:
                unlike_other.append(outside)
            elif run.success and run.kind == "expert":
                success_end.append(curve.progress[-END:].mean())
                progress_voc.append(voc(curve.progress, times))
                value_voc.append(voc(curve.value, times))
                unlike.append(outside)
            else:
                failure_end.append(curve.progress[-END:].mean())
    pairs = np.array([(s > f) + 0.5 * (s == f) for s in success_end for f in failure_end])
    return {
        "final progress, successes: mean": float(np.mean(success_end)),
        "final progress, successes: lowest": float(np.min(success_end)),
        "final progress, failures: mean": float(np.mean(failure_end)),
        "final progress, failures: highest": float(np.max(failure_end)),
        "success against failure, AUROC of final progress": float(pairs.mean()),
        "progress against time (Spearman), successes": float(np.nanmean(progress_voc)),
        "value against time (Spearman), successes": float(np.nanmean(value_voc)),
        "frames out of distribution, successes": float(np.mean(unlike)),
        "frames out of distribution, other tasks": float(np.mean(unlike_other)),
    }


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
