"""What acts in the episodes that judge a reward: MetaWorld's scripted experts, and four ways to be worse.

Each behaviour does what its name says, by the simulator's word: an expert succeeds, the three failing ones do not.
What comes out otherwise is drawn again, and counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

# Run as a script too, and tools/ is no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import metaworld_scene  # first: it chooses the renderer before MuJoCo is imported
from metaworld.policies import ENV_POLICY_MAP

QUALITY = {"expert": 4, "noisy": 3, "half": 2, "wrong_goal": 1, "random": 0}
"""Grade of each behaviour."""
SUCCEEDING = frozenset({"expert", "noisy"})

GOAL, OBJECT = slice(-3, None), slice(4, 7)
READS_GOAL = frozenset({"assembly", "plate-slide"})
"""Tasks whose expert is misled by a displaced goal; those of the others look at the object, and are misled by that."""

REST = 8
"""Control steps that are still recorded after the task is done."""
LONGEST = 200
"""Most control steps of an expert."""
TRIES = 12
NOISE, NOISE_MEMORY = 0.7, 0.8
"""Standard deviation of the noise on velocities within -1 and 1, and its correlation from step to step."""
HELD = 5
"""Control steps that a random action is held for; fresh noise in every step would hardly move the arm."""

JUMP = 0.04
"""Metres that the expert's waypoint moves in one step only when it takes up a new stage; the hand moves 0.017."""
GRIP_JUMP = 0.3
SHORTEST_STAGE = 5
"""Frames. Of marks closer than this only the first counts: an expert closes its gripper just before it lifts."""

Action = NDArray[np.float64]
Act = Callable[[NDArray[np.float64], int], Action]


class Expert:
    """A scripted policy that can be told a displaced target, and that tells when it takes up a new stage.

    MetaWorld's policies are chains of conditions that choose a waypoint. A new stage is where the waypoint jumps or
    the gripper's command does.

    Attributes:
        stages: control steps at which a new stage began.
        wavers: it went back to a waypoint that it had left; then its stages are no stages of the task.
    """

    def __init__(self, task: str, shift: tuple[float, float] = (0.0, 0.0)) -> None:
        """Makes the policy.

        Args:
            task: MetaWorld's name without the version.
            shift: metres along x and y by which the target that it observes is displaced.
        """
        self._policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self._module = sys.modules[type(self._policy).__module__]
        self._where = GOAL if task in READS_GOAL else OBJECT
        self._shift = np.array([*shift, 0.0])
        self._waypoint = self._previous = np.full(3, np.nan)
        self._grip = np.nan
        self.stages: list[int] = []
        self.wavers = False
        self._left: list[Action] = []

    def __call__(self, observation: NDArray[np.float64], step: int) -> Action:
        """The action in [-1, 1], (4,): three velocities and the gripper's effort."""
        # The policies write into what they get.
        seen = observation.copy()
        seen[self._where] += self._shift
        move = self._module.move

        def recorded(from_xyz: Action, to_xyz: Action, p: float) -> Action:
            self._waypoint = np.array(to_xyz)
            return np.asarray(move(from_xyz, to_xyz, p=p))

        with mock.patch.object(self._module, "move", recorded):
            action = np.clip(np.asarray(self._policy.get_action(seen), np.float64), -1, 1)
        moved = bool(np.linalg.norm(self._waypoint - self._previous) > JUMP)
        if moved:
            self.wavers |= any(np.linalg.norm(self._waypoint - left) < JUMP for left in self._left)
            self._left.append(self._previous)
        if moved or abs(action[3] - self._grip) > GRIP_JUMP:
            self.stages.append(step)
        self._previous, self._grip = self._waypoint, action[3]
        return action


def noisy(task: str, rng: np.random.Generator, deviation: float) -> Act:
    """An expert whose hand wanders: noise that remembers, so that it does not cancel out from step to step."""
    expert = Expert(task)
    noise = np.zeros(3)

    def act(observation: NDArray[np.float64], step: int) -> Action:
        nonlocal noise
        noise = NOISE_MEMORY * noise + rng.normal(0, deviation * np.sqrt(1 - NOISE_MEMORY**2), 3)
        action = expert(observation, step)
        action[:3] = np.clip(action[:3] + noise, -1, 1)
        return action

    return act


def half(task: str, stop: int) -> Act:
    """The expert up to control step `stop`; then it holds still, and holds what it has."""
    expert = Expert(task)
    grip = 0.0

    def act(observation: NDArray[np.float64], step: int) -> Action:
        nonlocal grip
        if step >= stop:
            return np.array([0.0, 0.0, 0.0, grip])
        action = expert(observation, step)
        grip = float(action[3])
        return action

    return act


def wrong_goal(task: str, rng: np.random.Generator) -> Act:
    """The expert, whose target lies 10 to 16 cm from where it believes it: mostly to the side."""
    distance, angle = rng.uniform(0.10, 0.16), rng.uniform(-0.6, 0.6) + np.pi * rng.integers(2)
    expert = Expert(task, (distance * np.cos(angle), distance * np.sin(angle)))
    return expert


def random_actions(rng: np.random.Generator) -> Act:
    """Uniform actions, each held for some steps."""
    actions = rng.uniform(-1, 1, (LONGEST // HELD + 1, 4))
    return lambda observation, step: actions[step // HELD]


def make_actor(task: str, behaviour: str, seed: int, number: int, done_at: int) -> Act:
    """What acts in one episode.

    Args:
        task: MetaWorld's name without the version.
        behaviour: a key of `QUALITY`.
        seed: of the episode.
        number: which attempt this is, below `TRIES`.
        done_at: control step after which the expert had done the task at the same placement.
    """
    rng = np.random.default_rng([seed, sorted(ENV_POLICY_MAP).index(f"{task}-v3"), QUALITY[behaviour], number])
    if behaviour == "expert":
        return Expert(task)
    if behaviour == "noisy":
        return noisy(task, rng, NOISE * (1 - 0.7 * number / TRIES))
    if behaviour == "half":
        return half(task, round(done_at * (0.5 - 0.4 * number / TRIES)))
    return wrong_goal(task, rng) if behaviour == "wrong_goal" else random_actions(rng)


@dataclass
class Rollout:
    """One episode, a row a frame.

    Attributes:
        frames: uint8 RGB; empty if nothing was rendered.
        rewards: the simulator's dense reward; None for the first frame, which no action led to.
        success: whether the task is done.
        steps: control steps.
        done_at: first control step after which the task was done, `steps` if none.
    """

    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=lambda: [None])
    success: list[bool] = field(default_factory=lambda: [False])
    steps: int = 0
    done_at: int = 0


def roll(
    scene: metaworld_scene.Scene, placement: int, act: Act, steps: int, every: int, until_done: bool, render: bool
) -> Rollout:
    """One episode.

    Args:
        scene: the task.
        placement: see `Scene.place`.
        act: what acts.
        steps: most control steps.
        every: control steps from frame to frame.
        until_done: end when the task has been done for `REST` steps.
        render: take pictures; without, everything else is the same at a twentieth of the time.
    """
    observation = scene.place(placement)
    rollout = Rollout([scene.picture()] if render else [])
    done = 0
    for step in range(steps):
        observation, reward, _, _, info = scene.env.step(act(observation, step).astype(np.float32))
        done += int(info["success"])
        rollout.steps += 1
        rollout.done_at += not done
        if rollout.steps % every:
            continue
        if render:
            rollout.frames.append(scene.picture())
        rollout.rewards.append(round(float(reward), 4))
        rollout.success.append(bool(info["success"]))
        if until_done and done > REST:
            break
    return rollout


def stage_marks(expert: Expert, success: list[bool], every: int) -> list[int] | None:
    """Frames at which an expert took up a new stage.

    Stages shorter than `SHORTEST_STAGE` belong to the one before; what comes after the success, or shortly before it,
    is none.

    Args:
        expert: after its episode.
        success: (T,) whether the task is done, a row a frame.
        every: control steps from frame to frame.

    Returns:
        Ascending frame numbers; None for an expert that wavers.
    """
    if expert.wavers:
        return None
    end = success.index(True) if True in success else len(success)
    marks: list[int] = []
    for step in expert.stages:
        frame = -(-step // every)
        if frame - (marks[-1] if marks else 0) >= SHORTEST_STAGE and end - frame >= SHORTEST_STAGE:
            marks.append(frame)
    return marks
