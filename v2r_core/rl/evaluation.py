"""How good a policy is: episodes without noise, on placements that no training episode has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.rollouts import Episode, Rollouts, Setup

EVALUATION_SEEDS = 500_000_000
"""Where the seeds of evaluations during training begin; see `training_seed` for those of training."""
TEST_SEEDS = 600_000_000
"""Where those of evaluations afterwards begin: a checkpoint that was chosen on some placements is judged on others."""
TRAINING_SEEDS = 1_000_000
"""Of a training whose own seed is so small that they lie below those of evaluations."""
DRAWN_SEEDS = range(700_000_000, 2**32 - 49, 50)
"""Where the others take theirs from, fifty in a row: MetaWorld draws so many placements at once."""

Act = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From a stack of rows to an action."""


@dataclass(frozen=True)
class Evaluation:
    """What the episodes came to.

    Attributes:
        episodes: all of them.
    """

    episodes: list[Episode]

    @property
    def success(self) -> float:
        """Share of episodes in which the task was done."""
        return float(np.mean([episode.success for episode in self.episodes]))

    @property
    def steps_to_success(self) -> float:
        """Median environment steps until the task was done, over episodes in which it was; NaN without one."""
        found = [episode.done_at for episode in self.episodes if episode.success]
        return float(np.median(found)) if found else float("nan")

    def numbers(self) -> dict[str, float]:
        """For the log: shares and means over the episodes."""
        return {
            "eval/success": self.success,
            "eval/return": float(np.mean([sum(episode.rewards) for episode in self.episodes])),
            "eval/sparse": float(np.mean([episode.sparse for episode in self.episodes])),
            "eval/dense": float(np.mean([episode.dense for episode in self.episodes])),
            "eval/steps_to_success": self.steps_to_success,
            "eval/unpaid": float(np.mean([episode.unpaid for episode in self.episodes])),
        }


def training_seed(seed: int, episode: int) -> int:
    """Seed of an episode of training: none that an evaluation has, and one that every simulator takes.

    Args:
        seed: of the training, 0 or more.
        episode: counted from 0.

    Returns:
        In [1_000_000, 500_000_000) or [700_000_000, 2**32).
    """
    if seed < EVALUATION_SEEDS // TRAINING_SEEDS - 1 and episode < TRAINING_SEEDS:
        return (seed + 1) * TRAINING_SEEDS + episode
    block, number = divmod(episode, DRAWN_SEEDS.step)
    drawn = int(np.random.SeedSequence((seed, block)).generate_state(1, np.uint64)[0])
    return DRAWN_SEEDS[drawn % len(DRAWN_SEEDS)] + number


class Evaluator:
    """Environments for evaluation, kept between evaluations.

    Args:
        setup: of the task.
        stack: frames of an observation.
        episodes: of each evaluation; their seeds are the same every time.
        workers: environments side by side.
        keep_frames: keep the camera's frames of the first episode.
        first_seed: of the first episode; each of the others has one more.
    """

    def __init__(
        self,
        setup: Setup,
        stack: int,
        episodes: int,
        workers: int = 1,
        keep_frames: bool = False,
        first_seed: int = EVALUATION_SEEDS,
    ) -> None:
        self._stack = stack
        self._seeds = [first_seed + number for number in range(episodes)]
        self._workers = min(workers, episodes)
        self._keep_frames = keep_frames
        self._rollouts = Rollouts(setup, self._seeds[: self._workers], keep_frames)
        self._fresh = True

    @property
    def seconds_a_step(self) -> float:
        """Simulated seconds between two actions."""
        return self._rollouts.seconds_a_step

    def run(self, act: Act) -> Evaluation:
        """Acts through all episodes."""
        rollouts = self._rollouts
        waiting = list(self._seeds)
        first = [waiting.pop(0) for _ in range(self._workers)]
        rollouts.filming = self._keep_frames
        if not self._fresh:
            rollouts.begin(first)
        self._fresh = False
        done: list[Episode] = []
        active = [True] * self._workers
        while any(active):
            # One that has nothing left to do steps along until the others are through.
            rollouts.send([act(observation) for observation in rollouts.observations(self._stack)])
            over = rollouts.receive()
            starts: list[int | None] = []
            for number, ended in enumerate(over):
                if ended and active[number]:
                    done.append(rollouts.episodes[number])
                    # Frames come through a pipe, and only the first episode's are wanted.
                    rollouts.filming &= number != 0
                    active[number] = bool(waiting)
                starts.append((waiting.pop(0) if waiting else self._seeds[number]) if ended else None)
            if any(active):
                rollouts.begin(starts)
        return Evaluation(sorted(done, key=lambda episode: episode.seed))

    def close(self) -> None:
        """Ends the processes."""
        self._rollouts.close()
