"""Renders MetaWorld's scripted experts as training videos, with the true positions of gripper and object beside them.

Needs the `sim` extra and headless OpenGL: MUJOCO_GL=egl python tools/render_experts.py. Eight tasks; each seed is
another placement of the object, and no held-out placement occurs in training. Written are

    OUT/train/<task>_<seed>.mp4      H.264, a key frame every 8 frames, so that reading at random places is cheap
    OUT/train/<task>_<seed>.npz      T rows, one a frame, metres, world coordinates:
        gripper (T, 3), opening (T,) in [0, 1], object (T, 3), object2 (T, 3, NaN where the task has one object),
        and task, seed, success (the expert got there)
    OUT/heldout/...                  the same with other seeds
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import metaworld_scene  # first: it chooses the renderer before MuJoCo is imported
import numpy as np
import tyro
from metaworld import policies
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

EXPERTS = {
    "reach": policies.SawyerReachV3Policy,
    "push": policies.SawyerPushV3Policy,
    "drawer-open": policies.SawyerDrawerOpenV3Policy,
    "drawer-close": policies.SawyerDrawerCloseV3Policy,
    "door-close": policies.SawyerDoorCloseV3Policy,
    "button-press": policies.SawyerButtonPressV3Policy,
    "window-open": policies.SawyerWindowOpenV3Policy,
    "hammer": policies.SawyerHammerV3Policy,
}
REST = 8
"""Control steps that are still recorded after the task is done."""


@dataclass(frozen=True)
class Options:
    """Options of the renderer."""

    out: Path = Path("out/experts")
    """Folder to write to. Videos that are there already are kept."""
    tasks: tuple[str, ...] = tuple(EXPERTS)
    """Which tasks."""
    train: int = 20
    """Training videos of each task."""
    heldout: int = 8
    """Held-out videos of each task."""
    first_seed: int = 0
    """Seed of the first training video; the held-out ones follow the training ones."""
    size: int = 128
    """Side of the pictures in pixels."""
    every: int = 2
    """Control steps from frame to frame."""
    longest: int = 160
    """Most control steps of a video."""
    noise: float = 0.3
    """Standard deviation of what is added to each of the expert's velocities, which are within -1 and 1."""
    processes: int = 2
    """How many videos are rendered at a time."""


@dataclass(frozen=True)
class Job:
    """The videos of one task in one split."""

    task: str
    split: str
    seeds: range


@dataclass(frozen=True)
class Episode:
    """Frames, uint8 RGB, one state a frame (MetaWorld's first 14 observations), and whether the task was done."""

    frames: list[NDArray[np.uint8]]
    states: list[NDArray[np.float64]]
    success: bool


def run_expert(scene: metaworld_scene.Scene, task: str, seed: int, options: Options) -> Episode:
    """One episode of the expert with noise on its actions."""
    observation = scene.place(seed)
    policy = EXPERTS[task]()
    rng = np.random.default_rng([seed, list(EXPERTS).index(task)])
    episode = Episode([], [], False)
    done = 0
    for step in range(options.longest):
        if step % options.every == 0:
            episode.frames.append(scene.picture())
            episode.states.append(observation[:14].copy())
        action = np.clip(policy.get_action(observation), -1, 1)
        action[:3] = np.clip(action[:3] + rng.normal(0, options.noise, 3), -1, 1)
        observation, _, _, _, info = scene.env.step(action.astype(np.float32))
        done += int(info["success"])
        if done > REST:
            break
    return Episode(episode.frames, episode.states, done > 0)


def write_truth(path: Path, episode: Episode, task: str, seed: int) -> None:
    """Writes what the docstring of this file lists."""
    states = np.stack(episode.states)
    second = states[:, 11:14]
    np.savez_compressed(
        path,
        gripper=states[:, 0:3],
        opening=states[:, 3],
        object=states[:, 4:7],
        # MetaWorld leaves the second object at the origin, inside the arm's foot, where there is none.
        object2=second if second.any() else np.full_like(second, np.nan),
        task=np.array(task),
        seed=np.array(seed),
        success=np.array(episode.success),
    )


def render(job: Job, options: Options) -> list[tuple[str, int, bool]]:
    """Renders what is missing of a job, in a process of its own.

    Returns:
        For each new video its name, its number of frames and whether the expert succeeded.
    """
    warnings.filterwarnings("ignore")
    folder = options.out / job.split
    missing = [seed for seed in job.seeds if not (folder / f"{job.task}_{seed}.mp4").is_file()]
    if not missing:
        return []
    rendered = []
    scene = metaworld_scene.Scene(job.task, options.size, options.every)
    try:
        for seed in missing:
            episode = run_expert(scene, job.task, seed, options)
            name = f"{job.task}_{seed}"
            write_truth(folder / f"{name}.npz", episode, job.task, seed)
            # The video comes last and by renaming: where there is one, it is whole and has its numbers.
            metaworld_scene.write_video(folder / f"{name}.part", episode.frames, scene.fps)
            (folder / f"{name}.part").rename(folder / f"{name}.mp4")
            rendered.append((name, len(episode.frames), episode.success))
    finally:
        scene.close()
    return rendered


def jobs(options: Options) -> Iterator[Job]:
    """Splits the work so that the processes end at about the same time."""
    middle = options.first_seed + options.train
    splits = {"train": range(options.first_seed, middle), "heldout": range(middle, middle + options.heldout)}
    for task in options.tasks:
        if task not in EXPERTS:
            raise ValueError(f"task {task!r} is unknown; there are {', '.join(EXPERTS)}")
        for split, seeds in splits.items():
            (options.out / split).mkdir(parents=True, exist_ok=True)
            half = seeds.start + len(seeds) // 2
            yield from (Job(task, split, part) for part in (seeds[: half - seeds.start], seeds[half - seeds.start :]))


def main(options: Options) -> int:
    """Renders everything and says how long it took."""
    console = Console()
    start = time.perf_counter()
    work = list(jobs(options))
    rendered: list[tuple[str, int, bool]] = []
    # A fresh interpreter each: an OpenGL context does not survive a fork.
    with (
        ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool,
        Progress(console=console) as bar,
    ):
        line = bar.add_task("rendering", total=len(work))
        for future in as_completed([pool.submit(render, job, options) for job in work]):
            rendered += future.result()
            bar.advance(line)
    seconds = time.perf_counter() - start
    frames = sum(count for _, count, _ in rendered)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    console.print(f"{len(rendered)} videos, {frames} frames in {seconds:.0f} s ({frames / seconds:.0f} frames/s)")
    console.print(f"{sum(done for *_, done in rendered)} of {len(rendered)} succeeded; {size / 1e6:.1f} MB together")
    for task in options.tasks:
        own = [done for name, _, done in rendered if name.rpartition("_")[0] == task]
        console.print(f"  {task}: {sum(own)} of {len(own)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
