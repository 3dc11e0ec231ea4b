"""Renders the episodes that rewards are trained and judged on: MetaWorld, five behaviours, labels from the simulator.

Needs the `sim` extra and headless OpenGL: MUJOCO_GL=egl python -m benchmarks.make_episodes. Three splits, each a
folder with an `episodes.json` that v2r_core/evaluate/episodes.py describes:

    OUT/train/expert/<task>/<seed>.mp4     what rewards are trained on, and goals are taken from
    OUT/train/random/<task>/<seed>.mp4     a few, for methods that use failures
    OUT/train/noisy/<task>/<seed>.mp4      where asked for, for rewards that have to see more than the best way
    OUT/heldout/<behaviour>/<task>/<seed>.mp4         the same tasks, other placements of the objects
    OUT/heldout_tasks/<behaviour>/<task>/<seed>.mp4   tasks that training does not have, with one expert more a task
                                                      (seed 0), whose end is the goal

The behaviours, with their grade: 4 expert; 3 noisy (wanders, but gets there); 2 half (stops half way, then holds
still); 1 wrong_goal (steers to a target 10 to 16 cm beside the true one); 0 random. All of a task and seed start alike,
and those that fail last exactly as long as the expert, so that duration tells nothing. Experts start each seed at
another placement, and end 8 control steps after the task is done.

Labels: task, seed, behaviour, quality; success at the end, and the frame from which on it holds; the simulator's dense
reward of each frame; for experts the frames where the scripted policy takes up a new stage (its waypoint jumps by more
than 4 cm in a step, or its gripper command changes; none for the one of door-close, which jumps to and fro).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

# Run as a script too, and tools/ is no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import tyro
from metaworld_scene import Scene, write_video
from rich.console import Console
from rich.progress import Progress

from benchmarks.behaviours import (
    ENV_POLICY_MAP,
    LONGEST,
    QUALITY,
    SUCCEEDING,
    TRIES,
    Act,
    Expert,
    Rollout,
    make_actor,
    roll,
    stage_marks,
)
from v2r_core.evaluate.episodes import EpisodeIndex, Labels, write_index

TASKS = (
    "assembly",
    "button-press",
    "button-press-topdown",
    "door-close",
    "door-open",
    "drawer-close",
    "drawer-open",
    "hammer",
    "window-close",
    "window-open",
)
HELDOUT_TASKS = ("faucet-open", "plate-slide")
HELDOUT_SEED = 1000
"""Seed of the first held-out episode; training starts at 0."""
SPARE_PLACEMENT = 10_000
PARTS = ".parts"


@dataclass(frozen=True)
class Options:
    """Options of the renderer."""

    out: Path = Path("out/episodes")
    """Folder to write to. Episodes that are there already are kept."""
    tasks: tuple[str, ...] = TASKS
    """Tasks of train and heldout."""
    heldout_tasks: tuple[str, ...] = HELDOUT_TASKS
    """Tasks of heldout_tasks."""
    train: int = 20
    """Experts of each task to train on."""
    train_random: int = 4
    """Random rollouts of each task in train."""
    train_noisy: int = 0
    """Experts with noise of each task in train, on placements of their own."""
    heldout: int = 5
    """Held-out seeds of each task, with an episode of each behaviour."""
    size: int = 128
    """Side of the pictures in pixels."""
    every: int = 2
    """Control steps from frame to frame."""
    longest: int = LONGEST
    """Most control steps of an episode."""
    processes: int = 2
    """How many episodes are rendered at a time."""


@dataclass(frozen=True)
class Job:
    """The episodes of one task and some seeds in one split."""

    split: str
    task: str
    seeds: tuple[int, ...]
    behaviours: tuple[str, ...]

    def part(self, out: Path, seed: int) -> Path:
        """Where the labels of one seed are kept until all are there."""
        return out / self.split / PARTS / f"{self.task}_{seed}_{'_'.join(self.behaviours)}.json"


def jobs(options: Options) -> Iterator[Job]:
    """The work, in pieces of one seed of one task at least.

    Raises:
        ValueError: an unknown task.
    """
    everything = tuple(QUALITY)
    heldout = tuple(range(HELDOUT_SEED, HELDOUT_SEED + options.heldout))
    for task in (*options.tasks, *options.heldout_tasks):
        if f"{task}-v3" not in ENV_POLICY_MAP:
            known = ", ".join(sorted(name.removesuffix("-v3") for name in ENV_POLICY_MAP))
            raise ValueError(f"task {task!r} is unknown; there are {known}")
    for task in options.tasks:
        yield Job("heldout", task, heldout, everything)
        yield Job("train", task, tuple(range(options.train)), ("expert",))
        yield Job("train", task, tuple(range(options.train_random)), ("random",))
        yield Job("train", task, tuple(range(options.train, options.train + options.train_noisy)), ("noisy",))
    for task in options.heldout_tasks:
        yield Job("heldout_tasks", task, (0,), ("expert",))
        yield Job("heldout_tasks", task, heldout, everything)


@dataclass(frozen=True)
class Drawn:
    """One episode and how it came about.

    Attributes:
        rollout: with pictures.
        stages: frames at which a new stage begins; None where that is not known.
        redrawn: attempts that did not do what the behaviour's name says.
        as_named: this one does.
    """

    rollout: Rollout
    stages: list[int] | None
    redrawn: int
    as_named: bool


class Studio:
    """Draws the episodes of one task."""

    def __init__(self, task: str, options: Options) -> None:
        self._task, self._options = task, options
        self._scene = Scene(task, options.size, options.every)
        self._placed: dict[int, tuple[int, Rollout, int]] = {}

    @property
    def fps(self) -> int:
        """Frame rate of the videos."""
        return self._scene.fps

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._scene.close()

    def _roll(self, placement: int, act: Act, steps: int, until_done: bool, render: bool = False) -> Rollout:
        return roll(self._scene, placement, act, steps, self._options.every, until_done, render)

    def placement(self, seed: int) -> tuple[int, Rollout, int]:
        """The first placement of a seed at which the expert succeeds, its episode there, and how many were given up."""
        if seed not in self._placed:
            for failed in range(TRIES):
                placement = SPARE_PLACEMENT + TRIES * seed + failed if failed else seed
                expert = self._roll(placement, Expert(self._task), self._options.longest, until_done=True)
                if expert.success[-1]:
                    break
            self._placed[seed] = placement, expert, failed
        return self._placed[seed]

    def draw(self, seed: int, behaviour: str) -> Drawn:
        """An episode that does what its name says, or the last of `TRIES`."""
        placement, expert, redrawn = self.placement(seed)
        wanted = behaviour in SUCCEEDING
        steps = expert.steps if behaviour != "noisy" else min(2 * expert.steps, self._options.longest)
        number = 0
        if behaviour != "expert":
            for redrawn in range(TRIES):
                number = redrawn
                act = make_actor(self._task, behaviour, seed, number, expert.done_at)
                if self._roll(placement, act, steps, wanted).success[-1] == wanted:
                    break
        act = make_actor(self._task, behaviour, seed, number, expert.done_at)
        rollout = self._roll(placement, act, steps, wanted, render=True)
        stages = stage_marks(act, rollout.success, self._options.every) if isinstance(act, Expert) and wanted else None
        return Drawn(rollout, stages, redrawn, rollout.success[-1] == wanted)


def labels_of(drawn: Drawn, file: str, task: str, seed: int, behaviour: str, fps: int) -> Labels:
    """The labels of an episode, see the docstring of this file."""
    success = drawn.rollout.success
    missed = [frame for frame, done in enumerate(success) if not done]
    return Labels(
        file=file,
        task=task,
        seed=seed,
        behaviour=behaviour,
        quality=QUALITY[behaviour],
        success=success[-1],
        success_frame=missed[-1] + 1 if success[-1] else None,
        stages=drawn.stages,
        dense_reward=drawn.rollout.rewards,
        fps=fps,
        frames=len(success),
    )


def render(job: Job, options: Options) -> int:
    """Renders what is missing of a job, in a process of its own; gives the number of new videos."""
    warnings.filterwarnings("ignore")
    missing = [seed for seed in job.seeds if not job.part(options.out, seed).is_file()]
    if not missing:
        return 0
    root = options.out / job.split
    studio = Studio(job.task, options)
    try:
        for seed in missing:
            made = []
            for behaviour in job.behaviours:
                drawn = studio.draw(seed, behaviour)
                file = Path(behaviour) / job.task / f"{seed}.mp4"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                write_video(root / file, drawn.rollout.frames, studio.fps)
                labels = labels_of(drawn, str(file), job.task, seed, behaviour, studio.fps)
                counts = {"redrawn": drawn.redrawn, "as_named": drawn.as_named}
                made.append({"labels": labels.model_dump(), **counts})
            # The labels come last and by renaming: where there are some, their videos are whole.
            part = job.part(options.out, seed)
            partial = part.with_suffix(".partial")
            partial.write_text(json.dumps(made))
            partial.rename(part)
    finally:
        studio.close()
    return len(missing) * len(job.behaviours)


def write_split(work: list[Job], split: str, options: Options) -> dict[str, Counter[str]]:
    """Gathers the labels of a split into its `episodes.json`.

    Returns:
        For each behaviour how many episodes there are, succeeded, were redrawn, and do not do what their name says.
    """
    own = [job for job in work if job.split == split]
    entries = [
        entry for job in own for seed in job.seeds for entry in json.loads(job.part(options.out, seed).read_text())
    ]
    entries.sort(key=lambda entry: entry["labels"]["file"])
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        count = counts.setdefault(entry["labels"]["behaviour"], Counter())
        count.update(
            episodes=1,
            succeeded=int(entry["labels"]["success"]),
            redrawn=entry["redrawn"],
            otherwise=int(not entry["as_named"]),
        )
    about: dict[str, str | int | float] = {"made by": "benchmarks/make_episodes.py", "split": split}
    for behaviour, count in counts.items():
        about[behaviour] = ", ".join(f"{number} {name}" for name, number in count.items())
    labels = [Labels.model_validate(entry["labels"]) for entry in entries]
    write_index(options.out / split, EpisodeIndex(about=about, episodes=labels))
    return counts


def main(options: Options) -> int:
    """Renders everything and says how long it took and how the behaviours did."""
    console = Console()
    start = time.perf_counter()
    work = list(jobs(options))
    for job in work:
        (options.out / job.split / PARTS).mkdir(parents=True, exist_ok=True)
    videos = 0
    # A fresh interpreter each: an OpenGL context does not survive a fork.
    with (
        ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool,
        Progress(console=console) as bar,
    ):
        line = bar.add_task("rendering", total=len(work))
        for future in as_completed([pool.submit(render, job, options) for job in work]):
            videos += future.result()
            bar.advance(line)
    seconds = time.perf_counter() - start
    for split in dict.fromkeys(job.split for job in work):
        for behaviour, count in write_split(work, split, options).items():
            console.print(f"{split}/{behaviour}: " + ", ".join(f"{number} {name}" for name, number in count.items()))
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    console.print(f"{videos} new videos in {seconds:.0f} s; {size / 1e6:.1f} MB together")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
