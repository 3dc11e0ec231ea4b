r"""Does a policy learn from a video reward where a sparse one fails? DrQ-v2 on frozen embeddings, task by task.

    MUJOCO_GL=egl python benchmarks/make_episodes.py --train-noisy 30
    v2r train vip --preset tiny --data out/episodes/train/{expert,noisy}/door-close --out runs/vip-door-close
    v2r export runs/vip-door-close --half-weights --out bundles/vip-door-close
    v2r rl observe --data out/episodes/train/{expert,noisy,random}/door-close --out bundles/eyes-door-close
    v2r goal out/episodes/train/expert/door-close/0.mp4 --model bundles/vip-door-close \
        --executions out/episodes/train/{expert,noisy}/door-close --out bundles/goals/vip-door-close.safetensors; ...
    python -m benchmarks.policies --bundles bundles

Every reward trains the same agent from the same camera; goals are from one expert's episode, on a placement that is
none of those that are trained or tested on. Success is that of 20 episodes without noise on unseen
placements, after every `eval_every` steps; the table shows the last one, and the steps to the first with at least 0.9.
A run ends early once all 20 succeed. What the JSON has already is not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from v2r_core.methods.runs import read_run
from v2r_core.training.log import read_metrics

GOOD = 0.9
HORIZON = 120
TASKS = ("door-close", "window-open", "window-close", "button-press", "drawer-open", "door-open")

# Of `v2r rl train`.
REWARDS: dict[str, list[str]] = {
    "sparse": ["--reward", "sparse"],
    "dense": ["--reward", "dense"],
    "novelty": ["--reward", "sparse", "--novelty", "0.95"],
    "vip": ["--reward", "{bundles}/vip-{task}", "--goal", "{bundles}/goals/vip-{task}.safetensors"],
    "vip-sparse": [
        "--reward",
        "{bundles}/vip-{task}",
        "--goal",
        "{bundles}/goals/vip-{task}.safetensors",
        "--reward-mode",
        "sparse",
    ],
    "uvd": ["--reward", "{bundles}/uvd-{task}", "--goal", "{bundles}/goals/uvd-{task}.safetensors"],
    "time": ["--reward", "{bundles}/time-{task}", "--reward-mode", "sparse"],
    "time-goal": [
        "--reward",
        "{bundles}/time-goal-{task}",
        "--goal",
        "{bundles}/goals/time-goal-{task}.safetensors",
        "--reward-mode",
        "value",
    ],
    "viper": ["--reward", "{bundles}/viper-{task}", "--reward-mode", "sparse", "--novelty", "0.5"],
    "diffusion": ["--reward", "{bundles}/diffusion-{task}", "--reward-mode", "sparse", "--novelty", "0.95"],
}
"""time, viper and diffusion as their papers mix them with the sparse reward and novelty; a bundle is of one task."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    bundles: Path
    """Folder with the bundles vip-TASK, uvd-TASK, time-TASK, ... as far as they are asked for, eyes-TASK of every task,
    and goals/REWARD-TASK.safetensors."""
    tasks: tuple[str, ...] = TASKS
    """Which tasks."""
    rewards: tuple[str, ...] = tuple(REWARDS)
    """Which rewards."""
    seeds: tuple[int, ...] = (0,)
    """Of each run."""
    steps: int = 15_000
    """Environment steps of a run."""
    eval_every: int = 3_000
    """Environment steps between two evaluations."""
    jobs: int = 1
    """Runs side by side, one thread each."""
    out: Path = Path("out/bench/policies.json")
    """Where the numbers go."""
    runs: Path = Path("out/bench/policies")
    """Where the runs go."""


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        task, reward, seed: of the run.
        steps: environment steps until its end.
        success: of the last evaluation.
        curve: [steps, success] of every evaluation.
        good_at: steps of the first evaluation with at least 0.9; None if there is none.
        unpaid: share of an evaluation's steps without a video reward, in the last one.
        seconds: of the run, evaluations included.
    """

    task: str
    reward: str
    seed: int
    steps: int
    success: float
    curve: list[list[float]]
    good_at: float | None
    unpaid: float
    seconds: float


def main(options: Options) -> int:
    """Runs what is missing and prints the table."""
    found = [Outcome(**entry) for entry in json.loads(options.out.read_text())] if options.out.is_file() else []
    done = {(entry.task, entry.reward, entry.seed) for entry in found}
    wanted = [key for key in product(options.tasks, options.rewards, options.seeds) if key not in done]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    console = Console()
    with ThreadPoolExecutor(options.jobs) as pool:
        for future in as_completed([pool.submit(run, options, *key) for key in wanted]):
            outcome = future.result()
            found.append(outcome)
            options.out.write_text(json.dumps([asdict(entry) for entry in found], indent=1) + "\n")
            console.print(
                f"{outcome.task} {outcome.reward} seed {outcome.seed}: {outcome.curve} {outcome.seconds:.0f} s"
            )
    console.print(table(found))
    return 0


def run(options: Options, task: str, reward: str, seed: int) -> Outcome:
    """Trains one policy in a process of its own.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    folder = options.runs / f"{task}-{reward}-{seed}"
    values = {"bundles": str(options.bundles), "task": task}
    words = [word.format(**values) for word in REWARDS[reward]]
    command = [
        *(sys.executable, "-m", "v2r_core.cli", "rl", "train", "--env", f"metaworld:{task}-v3", "--preset", "tiny"),
        *("--observation", str(options.bundles / f"eyes-{task}"), "--horizon", str(HORIZON), "--seed", str(seed)),
        *("--steps", str(options.steps), "--eval-every", str(options.eval_every), "--stop-at", "1", "--no-video"),
        *("--threads", "1", "--out", str(folder), *words),
        *(["--resume"] if (folder / "run.json").is_file() else []),
    ]
    began = time.perf_counter()
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr[-2000:]}")
    return outcome_of(folder, task, reward, seed, time.perf_counter() - began)


def outcome_of(folder: Path, task: str, reward: str, seed: int, seconds: float) -> Outcome:
    """Reads what a run logged."""
    lines: list[dict[str, Any]] = [line for line in read_metrics(folder) if line.get("eval/success") is not None]
    curve = [[line["step"], line["eval/success"]] for line in lines]
    good = [step for step, success in curve if success >= GOOD]
    repeat = read_run(folder)["recipe"]["action_repeat"]
    unpaid = (lines[-1].get("eval/unpaid") or 0.0) / (HORIZON / repeat)
    return Outcome(
        task, reward, seed, int(curve[-1][0]), curve[-1][1], curve, good[0] if good else None, unpaid, seconds
    )


def table(found: list[Outcome]) -> Table:
    """Tasks by rewards: the last success, mean over seeds, and the steps to 0.9."""
    tasks, rewards = (list(dict.fromkeys(getattr(entry, name) for entry in found)) for name in ("task", "reward"))
    result = Table("reward", *tasks, title="success of the last evaluation (steps to 0.9)")
    for reward in rewards:
        cells = []
        for task in tasks:
            runs = [entry for entry in found if (entry.task, entry.reward) == (task, reward)]
            good = [entry.good_at for entry in runs if entry.good_at is not None]
            steps = f" ({np.median(good):.0f})" if good else ""
            cells.append(f"{np.mean([entry.success for entry in runs]):.2f}{steps}" if runs else "")
        result.add_row(reward, *cells)
    return result


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
