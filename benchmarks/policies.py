r"""Does a policy learn from a video reward where a sparse one fails? DrQ-v2 on frozen embeddings, task by task.

    MUJOCO_GL=egl python benchmarks/make_episodes.py --train-noisy 30 --train-random 20 --tasks door-close ...
    tools/policy_bundles.sh out/episodes/train bundles door-close ...
    python -m benchmarks.policies --bundles bundles

Every reward trains the same agent from the same camera; goals are from one expert's episode, on a placement that is
none of those that are trained or tested on. After every `eval_every` steps the policy acts in 20 episodes without
noise. The checkpoint with the most successes there is judged on 20 other placements: that is what the table shows,
with the steps to the first evaluation with at least 0.9. A run ends early once all 20 succeed. What the JSON has
already is not run again.
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
    "uvd": [
        "--reward",
        "{bundles}/uvd-{task}",
        "--goal",
        "{bundles}/goals/uvd-{task}.safetensors",
        "--reward-scale",
        "10",
    ],
    "time": ["--reward", "{bundles}/time-{task}", "--reward-mode", "sparse", "--reward-scale", "20"],
    "time-goal": [
        "--reward",
        "{bundles}/time-goal-{task}",
        "--goal",
        "{bundles}/goals/time-goal-{task}.safetensors",
        "--reward-scale",
        "20",
    ],
    "viper": ["--reward", "{bundles}/viper-{task}", "--reward-mode", "sparse", "--novelty", "0.5"],
    "diffusion": ["--reward", "{bundles}/diffusion-{task}", "--reward-mode", "sparse", "--novelty", "0.95"],
}
"""time, viper and diffusion as their papers mix them with the sparse reward and novelty. The video models of the last
two are of all tasks together, standardised on the experts of one; the other bundles are of one task each."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    bundles: Path
    """Folder that tools/policy_bundles.sh wrote: eyes-TASK, vip-TASK, uvd-TASK, time-TASK, time-goal-TASK,
    goals/REWARD-TASK.safetensors, viper, diffusion; as far as they are asked for."""
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
    noise: tuple[float, ...] = ()
    """In place of the preset's exploration noise over the agent's steps, as `v2r rl train --noise` has it."""
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
        test: success of the best checkpoint, on placements that it was not chosen on.
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
    test: float
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
                f"{outcome.task} {outcome.reward} seed {outcome.seed}: {outcome.test:.2f} {outcome.curve} "
                f"{outcome.seconds:.0f} s"
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
        *(["--noise", *map(str, options.noise)] if options.noise else []),
        *(["--resume"] if (folder / "run.json").is_file() else []),
    ]
    began = time.perf_counter()
    call(command)
    seconds = time.perf_counter() - began
    judged = folder / "test.json"
    call([*(sys.executable, "-m", "v2r_core.cli", "rl", "eval", str(folder)), *("--out", str(judged))])
    return outcome_of(folder, task, reward, seed, seconds)


def call(command: list[str]) -> None:
    """Runs a command with one thread.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr[-2000:]}")


def outcome_of(folder: Path, task: str, reward: str, seed: int, seconds: float) -> Outcome:
    """Reads what a run logged."""
    lines: list[dict[str, Any]] = [line for line in read_metrics(folder) if line.get("eval/success") is not None]
    curve = [[line["step"], line["eval/success"]] for line in lines]
    good = [step for step, success in curve if success >= GOOD]
    repeat = read_run(folder)["recipe"]["action_repeat"]
    unpaid = (lines[-1].get("eval/unpaid") or 0.0) / (HORIZON / repeat)
    test = json.loads((folder / "test.json").read_text())["success"]
    return Outcome(
        task, reward, seed, int(curve[-1][0]), test, curve[-1][1], curve, good[0] if good else None, unpaid, seconds
    )


def table(found: list[Outcome]) -> Table:
    """Tasks by rewards: success of the best checkpoint, mean over seeds, and the steps to 0.9."""
    tasks, rewards = (list(dict.fromkeys(getattr(entry, name) for entry in found)) for name in ("task", "reward"))
    result = Table("reward", *tasks, title="success of the best checkpoint (steps to 0.9)")
    for reward in rewards:
        cells = []
        for task in tasks:
            runs = [entry for entry in found if (entry.task, entry.reward) == (task, reward)]
            good = [entry.good_at for entry in runs if entry.good_at is not None]
            steps = f" ({np.median(good):.0f})" if good else ""
            cells.append(f"{np.mean([entry.test for entry in runs]):.2f}{steps}" if runs else "")
        result.add_row(reward, *cells)
    return result


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
