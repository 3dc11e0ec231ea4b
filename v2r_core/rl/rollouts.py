"""Episodes from environments that run in processes of their own, while the agent learns in this one.

A simulator draws with OpenGL libraries that do not go together with torch in one process, and drawing takes as long as
an update: so both get a process each. Episodes are held here until they are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray

from v2r_core.rl.envs import EnvironmentFailure, make_env
from v2r_core.rl.observation import Observed, Step, make_observer
from v2r_core.rl.options import Task
from v2r_core.rl.wrappers import VideoReward
from v2r_core.video.resize import Frame

_INFO = ("sparse", "dense", "success", "env_steps", "video_reward")


@dataclass(frozen=True)
class Setup:
    """What an environment of a task needs to know of the agent.

    Attributes:
        task: what is to be done.
        size: side of the agent's frames in pixels, if it sees pixels.
        action_repeat: environment steps for an action.
        gamma: discount an agent step, for potential rewards.
    """

    task: Task
    size: int
    action_repeat: int
    gamma: float


def make_task_env(setup: Setup) -> Observed:
    """The environment of a task, paid for by its reward, as the agent sees it."""
    task = setup.task
    env: gymnasium.Env[Any, Any] = make_env(
        task.env, size=task.camera, action_repeat=setup.action_repeat, horizon=task.horizon or None
    )
    if task.paid_by_bundle:
        env = VideoReward(
            env,
            task.reward,
            mode=task.reward_mode,
            scale=task.reward_scale * (1 - task.novelty),
            goal=task.goal or None,
            gamma=setup.gamma,
        )
    return Observed(env, partial(make_observer, task.observation, setup.size))


def _make_apart(parent: int, setup: Setup) -> Observed:
    """The same in a process of its own, which leaves the group of its parent.

    Ctrl-C goes to a whole group, and the parent still needs its environments when it saves. They end with their pipe,
    however the parent ends.
    """
    if os.getpid() != parent:  # the parent makes one too, to see what kind of spaces there are
        os.setpgrp()
    return make_task_env(setup)


@contextmanager
def _alive() -> Iterator[None]:
    """What a process leaves that was killed, or that a simulator took with it, is a failure of its environment."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise EnvironmentFailure("the process of an environment was killed, or crashed") from error


@dataclass
class Episode:
    """An episode, complete or in progress: T steps and T + 1 rows.

    Attributes:
        seed: of the environment.
        rows: what the agent saw, that after the reset first.
        actions: (A,) float32 each, in [-1, 1].
        rewards: what the agent is paid, before novelty.
        terminated: True if the environment says that nothing can follow.
        success: True if the task was done at any moment.
        done_at: environment steps until it was done first, -1 if it never was.
        sparse: sum of the sparse reward.
        dense: sum of what the simulator pays.
        unpaid: steps in which a bundle's reward was not available.
        env_steps: environment steps, action repeats counted.
        frames: camera frames, where they are kept.
    """

    seed: int
    rows: list[NDArray[Any]] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    success: bool = False
    done_at: int = -1
    sparse: float = 0.0
    dense: float = 0.0
    unpaid: int = 0
    env_steps: int = 0
    frames: list[Frame] = field(default_factory=list)

    def stack(self, count: int) -> NDArray[Any]:
        """The newest `count` rows, oldest first, the first one of the episode repeated where there are fewer."""
        rows = self.rows[-count:]
        return np.stack([rows[0]] * (count - len(rows)) + rows)


class Rollouts:
    """Environments side by side, one step at a time.

    Args:
        setup: the task and what the agent needs.
        seeds: seed of the first episode of each environment.
        filming: see below.

    Attributes:
        filming: keep the camera frames of the first environment, for a video.
        episodes: the one in progress in each environment.
        seconds_a_step: simulated seconds between two actions.
    """

    def __init__(self, setup: Setup, seeds: Sequence[int], filming: bool = False) -> None:
        self._task = setup.task
        self.filming = filming
        make = partial(_make_apart, os.getpid(), setup)
        with _alive():
            self._envs = AsyncVectorEnv([make] * len(seeds), context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        self.action_dim = int(np.prod(self._envs.single_action_space.shape or (0,)))
        self.episodes = [Episode(seed) for seed in seeds]
        try:
            with _alive():
                (self.seconds_a_step, *_) = self._envs.get_attr("dt")
            self.begin(seeds)
        except BaseException:
            self.close()
            raise

    @_alive()
    def begin(self, seeds: Sequence[int | None]) -> None:
        """Starts an episode in every environment that is given a seed."""
        mask = np.array([seed is not None for seed in seeds])
        if not mask.any():
            return
        begun = {number: Episode(seed) for number, seed in enumerate(seeds) if seed is not None}
        for number, episode in begun.items():
            self.episodes[number] = episode
        # The vector environment wants a number for those too that it leaves alone.
        rows, _ = self._envs.reset(seed=[seed or 0 for seed in seeds], options={"reset_mask": mask})
        for number, episode in begun.items():
            episode.rows.append(rows[number].copy())
        if mask[0]:
            self._take_frames()

    def observations(self, stack: int) -> list[NDArray[Any]]:
        """What the agent sees in each environment: (stack, ...)."""
        return [episode.stack(stack) for episode in self.episodes]

    @_alive()
    def send(self, actions: Sequence[NDArray[np.float32]]) -> None:
        """Lets every environment act; returns at once."""
        self._sent = [np.asarray(action, np.float32) for action in actions]
        self._envs.step_async(np.stack(self._sent))

    @_alive()
    def receive(self) -> list[bool]:
        """Waits for what `send` began, and writes it into the episodes.

        Returns:
            For each environment, True if its episode is over.

        Raises:
            EnvironmentFailure: an environment raised, or its process died; all of them are gone.
        """
        rows, paid, terminated, truncated, infos = self._envs.step_wait()
        for number, action in enumerate(self._sent):
            # A key is missing where no environment gave it.
            info = {key: infos[key][number] for key in _INFO if key in infos}
            self._note(number, action, (rows[number].copy(), float(paid[number]), bool(terminated[number]), info))
        self._take_frames()
        over: list[bool] = (terminated | truncated).tolist()
        return over

    @_alive()
    def come_back(self, histories: Sequence[tuple[int, Sequence[NDArray[np.float32]]]]) -> None:
        """Comes back to the middle of episodes by their seeds and actions: exact, as simulators repeat themselves.

        Args:
            histories: seed and actions of each environment's episode so far.
        """
        self._envs.set_attr("history", list(histories))
        for number, (first, steps) in enumerate(self._envs.call("come_back")):
            seed, actions = histories[number]
            self.episodes[number] = Episode(seed, rows=[first])
            for action, step in zip(actions, steps, strict=True):
                self._note(number, action, step)

    def close(self) -> None:
        """Ends the processes, whatever they are at; Gymnasium's own `close` waits for an answer of the dead."""
        for process in self._envs.processes:
            process.terminate()
        for process in self._envs.processes:
            process.join()
        for pipe in self._envs.parent_pipes:
            if pipe is not None:  # Gymnasium's mark of an environment that raised
                pipe.close()
        self._envs.closed = True

    def _note(self, number: int, action: NDArray[np.float32], step: Step) -> None:
        row, paid, terminated, info = step
        episode = self.episodes[number]
        sparse, dense = float(info["sparse"]), float(info["dense"])
        episode.rows.append(row)
        episode.actions.append(action)
        episode.rewards.append(self._pay(paid, sparse, dense))
        episode.terminated = terminated
        episode.env_steps = int(info["env_steps"])
        if bool(info["success"]) and not episode.success:
            episode.success, episode.done_at = True, episode.env_steps
        episode.sparse += sparse
        episode.dense += dense
        episode.unpaid += int(self._task.paid_by_bundle and not np.isfinite(info["video_reward"]))

    def _pay(self, paid: float, sparse: float, dense: float) -> float:
        if self._task.paid_by_bundle:
            return paid
        return {"sparse": sparse, "dense": dense, "none": 0.0}[self._task.reward]

    def _take_frames(self) -> None:
        if self.filming:
            frame: Frame = self._envs.get_attr("last_frame")[0]
            self.episodes[0].frames.append(frame)
