"""A video reward for any agent: Gymnasium environments whose reward comes from what their camera shows.

    env = VideoReward(make_env("metaworld:door-close-v3"), "bundles/time", goal="success.mp4")
    stable_baselines3.SAC("CnnPolicy", env, buffer_size=20_000).learn(20_000)

No torch here: an environment in a process of its own, with its simulator and its reward, stays small. In one process
with a simulator, import torch (or Stable-Baselines3) before the first frame.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np

from v2r_core.deploy.bundle import Bundle, load_bundle
from v2r_core.deploy.goals import read_goal
from v2r_core.deploy.pacing import frames_apart
from v2r_core.deploy.stream import NoGoalError, Scorer
from v2r_core.rewards.goal import Goal
from v2r_core.rewards.reward import RewardSample
from v2r_core.rl.options import RewardMode
from v2r_core.video.resize import Frame

_OF_VALUES = ("potential", "value")


class VideoReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pays the agent with what a `Scorer` says of each new frame, where the environment knows better or not.

    With `r` the scorer's reward, `V` its value, and `sparse` the environment's `info["sparse"]`, or its own reward
    where it gives none, the agent gets

        alone       scale * r
        sparse      scale * r + sparse_weight * sparse
        potential   scale * (gamma * V' - V) + sparse_weight * sparse      shaping: Ng, Harada and Russell, 1999
        value       scale * V'                                             to be near the goal, not to come nearer

    Shaping telescopes: alone, with `sparse_weight=0`, it would pay all policies alike. A state in which the episode
    ends for good keeps its value.

    A frame that cannot be scored (out of distribution, a window still warming up) has the reward NaN. Then the agent
    gets 0 in its place, and it is counted; modes that pay values go on with the last one there was.

    Rewards that look at a window of frames (viper, diffusion) take every so manieth step, so that the frames of the
    window are as far apart in time as they were in training; a warning says so where steps are too long for that. An
    environment that does not say how long a step is has one frame a step. With n frames in the window, the first
    n - 1 of them have no reward.

    `info`, of `step` and of `reset`, has besides what the environment says:
        video_reward (float): the scorer's reward, before `scale`; NaN where there is none.
        value (float): the scorer's value; NaN for rewards that have none.
        progress (float): in [0, 1]; NaN without a demonstration.
        status (int): `v2r_core.deploy.stream.Status` of this frame.
        video_missing (int): steps since the reset that had no reward (in the modes that pay values: no value).

    Attributes:
        scorer: what scores. Its goal is the one in force.
        dt: seconds of one step, where the environment says.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        bundle: str | Path | Bundle | Scorer,
        *,
        mode: RewardMode = "alone",
        scale: float = 1.0,
        goal: Goal | str | Path | None = None,
        sparse_weight: float = 1.0,
        gamma: float = 0.99,
        render: bool = False,
    ) -> None:
        """Loads the bundle and makes the goal.

        Args:
            env: its observation is a frame, uint8 RGB (H, W, 3) of any size; or see `render`.
            bundle: a folder, a loaded bundle, or a scorer of one camera, which then belongs to this environment.
            mode: see above.
            scale: factor on the video's part of the reward.
            goal: a goal; or the path of a saved one (.safetensors), of a goal image, or of a demonstration video; None
                keeps that of the bundle.
            sparse_weight: factor on the environment's part; unused by `alone`.
            gamma: the agent's discount a step, in (0, 1]; used by `potential`.
            render: take the frames from `env.render()`, which must give rgb_array, and leave the observation as it is.

        Raises:
            BundleError, ProviderError: the bundle cannot be used.
            ValueError: an unknown mode, a number out of range, a mode of values for a reward without, a goal that
                does not fit, or no frames in the observation.
            NoGoalError: the reward needs a goal, and neither the bundle nor the caller has one.
            FileNotFoundError: no such goal.
        """
        super().__init__(env)
        _check_numbers(mode, scale, sparse_weight, gamma)
        if not render:
            _check_observation(env.observation_space)
        self.scorer = bundle if isinstance(bundle, Scorer) else _scorer(bundle, _seconds_a_step(env))
        if mode in _OF_VALUES and self.scorer.reward.kind != "value":
            raise ValueError(
                f"mode {mode!r} needs a reward with values; {self.scorer.reward_name!r} scores steps and has none; "
                "take 'alone' or 'sparse'"
            )
        if goal is not None:
            self.scorer.set_goal(goal if isinstance(goal, Goal) else read_goal(self.scorer, goal))
        if self.scorer.reward.needs_goal and self.scorer.goal is None:
            raise NoGoalError(
                f"the reward {self.scorer.reward_name!r} needs a goal and the bundle has none; give `goal`"
            )
        self._mode, self._scale, self._sparse_weight, self._gamma = mode, scale, sparse_weight, gamma
        self._render = render
        self._value = math.nan
        self._missing = 0

    @property
    def dt(self) -> float:
        """Seconds of one step. Raises AttributeError where the environment does not say."""
        return float(self.env.get_wrapper_attr("dt"))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode of the environment and of the scorer, which sees the first frame."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.scorer.reset()
        self._value, self._missing = math.nan, 0
        sample, found = self._look(observation)
        self._value = sample.value
        return observation, {**info, **found}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps the environment and scores the new frame."""
        observation, own, terminated, truncated, info = self.env.step(action)
        sample, found = self._look(observation)
        reward = self._scale * self._video(sample)
        if self._mode in ("sparse", "potential"):
            reward += self._sparse_weight * float(info.get("sparse", own))
        return observation, reward, terminated, truncated, {**info, **found, "video_missing": self._missing}

    def _video(self, sample: RewardSample) -> float:
        """The video's part of the reward, before `scale`."""
        before, now = self._value, sample.value
        if math.isfinite(now):
            self._value = now
        paid = {"value": now, "potential": self._gamma * now - before}.get(self._mode, sample.reward)
        if math.isfinite(paid):
            return paid
        self._missing += 1
        # Not 0, which would be more than any distance pays: agents would look for frames that cannot be scored.
        return self._value if self._mode == "value" and math.isfinite(self._value) else 0.0

    def _look(self, observation: Any) -> tuple[RewardSample, dict[str, Any]]:
        """Scores what is seen now; gives the sample and what `info` says of it."""
        sample, status = self.scorer.step(self._rendered() if self._render else observation)
        return sample, {
            "video_reward": sample.reward,
            "value": sample.value,
            "progress": sample.progress,
            "status": int(status),
            "video_missing": self._missing,
        }

    def _rendered(self) -> Frame:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray):
            raise ValueError(
                f"render() gave {type(frame).__name__}, uint8 (H, W, 3) expected; make {self.env} with "
                "render_mode='rgb_array'"
            )
        return frame


def _seconds_a_step(env: gymnasium.Env[Any, Any]) -> float:
    """NaN where the environment does not say."""
    try:
        return float(env.get_wrapper_attr("dt"))
    except AttributeError:
        return math.nan


def _scorer(bundle: str | Path | Bundle, dt: float) -> Scorer:
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    rate = loaded.manifest.reward.rate
    if rate is None or not math.isfinite(dt):
        return Scorer(loaded, threads=1, paced=True)
    steps = frames_apart(dt, 1 / rate)
    if steps < 1:
        warnings.warn(
            f"a step lasts {dt:.3g} s, frames in the window of {loaded.manifest.reward.name!r} were {1 / rate:.3g} s "
            "apart in training; take a smaller action repeat",
            stacklevel=4,
        )
    return Scorer(loaded, parameters={"stride": max(steps, 1)}, threads=1)


def _check_numbers(mode: str, scale: float, sparse_weight: float, gamma: float) -> None:
    if mode not in get_args(RewardMode):
        raise ValueError(f"mode is {mode!r}, one of {', '.join(get_args(RewardMode))} expected")
    for name, value in (("scale", scale), ("sparse_weight", sparse_weight)):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, a finite number expected")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}, above 0 and at most 1 expected")


def _check_observation(space: gymnasium.Space[Any]) -> None:
    shape = space.shape or ()
    if space.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise ValueError(
            f"observation space is {space}, frames uint8 (H, W, 3) expected; with render=True they come from render()"
        )
