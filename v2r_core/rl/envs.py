"""Simulated tasks as pixel environments with one interface: MetaWorld, the DeepMind Control Suite, any of Gymnasium's.

    env = make_env("metaworld:door-close-v3", size=128, action_repeat=3, horizon=120)
    frame, info = env.reset(seed=3)
    frame, reward, terminated, truncated, info = env.step(env.action_space.sample())

In worker processes, each with a renderer of its own (an OpenGL context does not survive a fork):

    gymnasium.vector.AsyncVectorEnv([functools.partial(make_env, name)] * 2, context="spawn")

No torch here. Mesa, the software renderer, loads with the first frame, not when an environment is made; if torch is in
the process, import it before that: Mesa first and then torch ends in a crash.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from v2r_core.rl.simulation import Simulation
from v2r_core.video.resize import Frame, Preprocess, resize_frame

SEEDS = 1000
"""An episode without a seed takes one below this, so seeds from here on show placements that training never saw."""

KINDS = ("metaworld", "dm_control", "gym")


class EnvironmentFailure(RuntimeError):
    """A simulator raised, or gave what is no reward or no picture; the message has its name, the step and the cause.

    The episode is lost. `reset` may be tried; else make the environment again.
    """


def make_env(
    name: str,
    *,
    size: int = 128,
    action_repeat: int = 1,
    horizon: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> PixelEnv:
    """Makes a pixel environment.

    Args:
        name: one of
            * "metaworld:door-close-v3" (or without "-v3"): MetaWorld, seen from the arm's right;
            * "dm_control:cartpole-balance": the DeepMind Control Suite, domain and task;
            * "gym:FrankaKitchen-v1": any Gymnasium id that renders rgb_array, see `GymnasiumTask`.
        size: side of the frames in pixels.
        action_repeat: steps of the simulator that each action is taken for.
        horizon: steps of the simulator after which an episode is truncated; None takes the environment's own limit
            (MetaWorld 500, most of dm_control 1000).
        options: keyword arguments of a Gymnasium environment; the others have none.

    Raises:
        ValueError: unknown name, a number out of range, options that nobody takes.
        ImportError: a package of the `sim` extra is missing.
    """
    kind, _, task = name.partition(":")
    for key, value in (("size", size), ("action_repeat", action_repeat), ("horizon", horizon)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {key} is {value}, at least 1 expected")
    if kind not in KINDS or not task:
        known = ", ".join(f"{known}:..." for known in KINDS)
        raise ValueError(f"environment {name!r} is unknown; names are {known}, e.g. metaworld:door-close-v3")
    if options and kind != "gym":
        raise ValueError(f"{name}: options {dict(options)} given; only a gym:... environment takes some")
    try:
        simulation = _simulation(kind, task, size, horizon, options or {})
    except ImportError as error:
        raise ImportError(f"{name}: {error}; pip install 'v2r_ros[sim]'") from error
    make = functools.partial(make_env, name, size=size, action_repeat=action_repeat, horizon=horizon, options=options)
    return PixelEnv(name, simulation, size, action_repeat, horizon or simulation.limit, make)


def _simulation(kind: str, task: str, size: int, horizon: int | None, options: Mapping[str, Any]) -> Simulation:
    # Imported when wanted: each brings packages that the others do without.
    if kind == "metaworld":
        from v2r_core.rl.metaworld import MetaWorldTask  # noqa: PLC0415

        return MetaWorldTask(task, size)
    if kind == "dm_control":
        from v2r_core.rl.dmc import ControlSuiteTask  # noqa: PLC0415

        return ControlSuiteTask(task, size, horizon)
    from v2r_core.rl.gymnasium_task import GymnasiumTask  # noqa: PLC0415

    return GymnasiumTask(task, horizon, options)


class PixelEnv(gymnasium.Env[Frame, NDArray[np.float32]]):
    """A simulated task, seen through its camera. Make one with `make_env`; a pickled one is made again by its name.

    `step` gives, besides the frame, the reward and the two flags, in `info`:
        success (bool): the task was done after any of the repeated steps. Always False where the simulator does not
            know what success is, as in dm_control.
        sparse (float): 1 in a step with success, else 0; where there is no success, the same as dense.
        dense (float): the simulator's own reward, summed over the repeats; also what `step` returns.
        env_steps (int): steps of the simulator since the reset, repeats counted.
        state (float64 (39,)): MetaWorld only: its own observation, which `metaworld.expert` acts on.
    `reset` gives env_steps, state likewise, and seed (int): the one that makes the same episode again.

    Attributes:
        observation_space: Box(0, 255, (size, size, 3), uint8), RGB.
        action_space: Box(-1, 1, (A,), float32), stretched to the simulator's own bounds; what lies outside is clipped.
        name: as `make_env` got it.
        simulation: the task in its simulator; `simulation.env` is the simulator's own environment.
        dt: seconds of one `step`, repeats included; NaN where the simulator does not say.
        focal_length: of the camera, in pixels of the frames; NaN where it is not known.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's)
    render_mode: Literal["rgb_array"] = "rgb_array"

    def __init__(
        self,
        name: str,
        simulation: Simulation,
        size: int,
        action_repeat: int,
        horizon: int | None,
        make: Callable[[], PixelEnv],
    ) -> None:
        """See `make_env`. `make` makes the same again; `horizon` is None where the simulator keeps count itself."""
        self.name, self.simulation = name, simulation
        self.dt = simulation.dt * action_repeat
        self.focal_length = simulation.focal_length * size
        self._size, self._repeat, self._horizon, self._make = Preprocess(size), action_repeat, horizon, make
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, simulation.low.shape, np.float32)
        self._centre = (simulation.high + simulation.low) / 2
        self._reach = (simulation.high - simulation.low) / 2
        self._steps = 0
        self._over = True
        self._frame: Frame | None = None

    def __reduce__(self) -> tuple[Callable[[], PixelEnv], tuple[()]]:
        return self._make, ()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: decides the placement of all objects: equal seeds and actions give equal episodes. None draws one
                below `SEEDS`, from a generator that the last seed given to `reset` began.
            options: unused.

        Returns:
            The first frame, uint8 RGB (size, size, 3), and `info`.

        Raises:
            EnvironmentFailure: the simulator raised.
        """
        super().reset(seed=seed)
        number = int(self.np_random.integers(SEEDS)) if seed is None else seed
        self._steps, self._over = 0, True
        with self._guarded(f"reset with seed {number}"):
            state = self.simulation.reset(number)
            frame = self._picture()
        self._over = False
        return frame, {"seed": number, "env_steps": 0, **({} if state is None else {"state": state})}

    def step(self, action: NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Takes an action for `action_repeat` steps of the simulator, or until the episode ends.

        Args:
            action: (A,) in [-1, 1].

        Returns:
            Frame, uint8 RGB (size, size, 3); the simulator's reward, summed; whether the episode ended for good;
            whether it was cut off at the horizon; `info`.

        Raises:
            ValueError: an action of another size, or a number in it that is not finite.
            gymnasium.error.ResetNeeded: the episode is over.
            EnvironmentFailure: the simulator raised; the episode is over.
        """
        command = self._command(action)
        if self._over:
            raise gymnasium.error.ResetNeeded(f"{self.name}: no episode in progress; call reset() before step()")
        self._over = True
        dense, success, knows = 0.0, False, False
        for _ in range(self._repeat):
            with self._guarded(f"step {self._steps + 1} of the episode"):
                outcome = self.simulation.step(command)
                if not np.isfinite(outcome.reward):
                    raise ValueError(f"its reward is {outcome.reward}")
            self._steps += 1
            dense += outcome.reward
            knows |= outcome.success is not None
            success |= bool(outcome.success)
            terminated = outcome.terminated
            truncated = outcome.truncated or self._steps == self._horizon
            if terminated or truncated:
                break
        with self._guarded(f"picture after step {self._steps} of the episode"):
            frame = self._picture()
        self._over = terminated or truncated
        info: dict[str, Any] = {
            "success": success,
            "sparse": float(success) if knows else dense,
            "dense": dense,
            "env_steps": self._steps,
        }
        if outcome.state is not None:
            info["state"] = outcome.state
        return frame, dense, terminated, truncated, info

    def render(self) -> Frame | None:
        """The newest frame, uint8 RGB (size, size, 3); None before the first reset."""
        return self._frame

    def close(self) -> None:
        """Frees the simulator and the renderer."""
        self.simulation.close()

    def _command(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """The action between the simulator's own bounds."""
        array = np.asarray(action, np.float64)
        expected = self._centre.shape
        if array.shape != expected:
            raise ValueError(f"{self.name}: action has shape {array.shape}, {expected} expected")
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise ValueError(f"{self.name}: {bad} of the {array.size} numbers of the action are not finite: {array}")
        # Around the centre, so that bounds of -1 and 1 leave every bit of the action as it is.
        return self._centre + np.clip(array, -1, 1) * self._reach

    def _picture(self) -> Frame:
        # A copy: some environments draw the next picture into the same memory.
        self._frame = np.array(resize_frame(self.simulation.picture(), self._size))
        return self._frame

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise EnvironmentFailure(f"{self.name}: {what} failed: {type(error).__name__}: {error}") from error
