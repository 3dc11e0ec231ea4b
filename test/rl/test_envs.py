"""Pixel environments: what `make_env` promises, on an environment that does as it is told, and on the simulators."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from toy_environment import Dial

from v2r_core.rl.envs import SEEDS, EnvironmentFailure, PixelEnv, make_env
from v2r_core.video.resize import Preprocess, resize_frame

NAME = "gym:V2R/Dial-v0"
STILL = np.zeros(2, np.float32)
SIMULATORS = Path(__file__).with_name("simulator_checks.py")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("V2R/Dial-v0", Dial, max_episode_steps=50)
    yield
    del gymnasium.registry["V2R/Dial-v0"]


def dial(size: int = 32, action_repeat: int = 1, horizon: int | None = None, **options: Any) -> PixelEnv:
    return make_env(NAME, size=size, action_repeat=action_repeat, horizon=horizon, options=options)


def inner(env: PixelEnv) -> Dial:
    return env.simulation.env.unwrapped


def test_the_frame_is_what_is_rendered_resized_as_everywhere() -> None:
    env = dial()
    frame, info = env.reset(seed=7)
    assert env.observation_space.contains(frame) and env.action_space.shape == (2,)
    assert (frame.shape, info["seed"], info["env_steps"]) == ((32, 32, 3), 7, 0)
    np.testing.assert_array_equal(frame, resize_frame(inner(env).render(), Preprocess(32)))
    after, *_ = env.step(STILL)
    np.testing.assert_array_equal(after, resize_frame(inner(env).render(), Preprocess(32)))
    np.testing.assert_array_equal(env.render(), after)
    assert (after != frame).any()


def test_a_frame_stays_what_it_was_when_the_next_is_drawn_into_the_same_memory() -> None:
    env = make_env(NAME, size=60, options={"side": 60})
    inner(env)._picture = np.zeros((60, 60, 3), np.uint8)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(STILL)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


@pytest.mark.parametrize(("success", "key"), [((2,), "success"), ((2,), "is_success")])
def test_action_repeat_sums_rewards_and_keeps_a_success_in_between(success: tuple[int, ...], key: str) -> None:
    env = dial(action_repeat=3, success=success, key=key)
    env.reset(seed=0)
    action = np.array([0.3, -0.7], np.float32)
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (1 + 2 + 3, False, False)
    assert info == {"success": True, "sparse": 1.0, "dense": 6.0, "env_steps": 3}
    assert [list(sent) for sent in inner(env).actions] == [list(action)] * 3
    _, reward, *_, info = env.step(STILL)
    assert info == {"success": False, "sparse": 0.0, "dense": 15.0, "env_steps": 6} and reward == 15
    assert env.dt == pytest.approx(3 / 20)
    assert np.isnan(env.focal_length)


def test_without_a_word_of_success_sparse_is_the_own_reward() -> None:
    env = dial(action_repeat=2, success=None)
    env.reset(seed=0)
    assert env.step(STILL)[4] == {"success": False, "sparse": 3.0, "dense": 3.0, "env_steps": 2}


def test_repeats_stop_where_the_episode_ends() -> None:
    env = dial(action_repeat=4, ends=6)
    env.reset(seed=0)
    assert env.step(STILL)[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated, info["env_steps"]) == (5 + 6, True, False, 6)


@pytest.mark.parametrize(("horizon", "steps"), [(5, 5), (None, 50), (60, 60)])
def test_the_horizon_truncates(horizon: int | None, steps: int) -> None:
    env = dial(action_repeat=2, horizon=horizon)
    env.reset(seed=0)
    for _ in range((steps - 1) // 2):
        assert env.step(STILL)[2:4] == (False, False)
    _, _, terminated, truncated, info = env.step(STILL)
    assert (terminated, truncated, info["env_steps"]) == (False, True, steps)


def test_actions_are_stretched_to_the_bounds_and_clipped() -> None:
    env = dial(low=(-2.0, 1.0), high=(4.0, 1.5))
    env.reset(seed=0)
    for action in ([0.5, 0.0], [-1.0, 1.0], [7.0, -9.0]):
        env.step(np.array(action, np.float32))
    np.testing.assert_allclose(inner(env).actions, [[2.5, 1.25], [-2.0, 1.5], [4.0, 1.0]])


def test_bounds_of_one_change_no_bit_of_an_action() -> None:
    env = dial()
    env.reset(seed=0)
    action = np.float32([1 / 3, -1e-12])
    env.step(action)
    assert inner(env).actions[0].tobytes() == action.tobytes()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), r"gym:V2R/Dial-v0: action has shape \(3,\), \(2,\) expected"),
        (np.zeros((1, 2)), r"shape \(1, 2\), \(2,\) expected"),
        (np.array([np.nan, 0.0]), r"1 of the 2 numbers of the action are not finite: \[nan"),
        (np.array([np.inf, np.nan]), r"2 of the 2 numbers"),
    ],
)
def test_a_bad_action_is_refused_and_nothing_moves(action: np.ndarray, message: str) -> None:
    env = dial()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert not inner(env).actions
    assert env.step(STILL)[4]["env_steps"] == 1


@pytest.mark.parametrize(
    ("options", "where", "cause"),
    [
        ({"raises": 3}, "step 3 of the episode", "OSError: the motor is hot"),
        ({"odd": 3}, "step 3 of the episode", "ValueError: its reward is nan"),
    ],
)
def test_an_environment_that_raises_names_itself_the_step_and_the_cause(
    options: dict[str, int], where: str, cause: str
) -> None:
    env = dial(action_repeat=2, **options)
    env.reset(seed=0)
    env.step(STILL)
    with pytest.raises(EnvironmentFailure, match=rf"gym:V2R/Dial-v0: {where} failed: {cause}") as caught:
        env.step(STILL)
    assert isinstance(caught.value.__cause__, OSError | ValueError)
    # As it comes out of a worker process.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(STILL)
    env.reset(seed=0)
    assert env.step(STILL)[4]["env_steps"] == 2


def test_a_reset_that_raises_may_be_tried_again() -> None:
    env = dial(raises=0)
    with pytest.raises(EnvironmentFailure, match="reset with seed 4 failed: OSError: the motor is hot"):
        env.reset(seed=4)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(STILL)
    env.reset(seed=4)
    env.step(STILL)


def test_an_environment_without_a_picture_fails_by_name() -> None:
    with pytest.raises(EnvironmentFailure, match=r"gym:V2R/Dial-v0: reset with seed 0 failed: .*uint8 expected"):
        dial(blind=True).reset(seed=0)


def test_nothing_is_stepped_before_the_first_or_after_the_last_step() -> None:
    env = dial(ends=1)
    with pytest.raises(gymnasium.error.ResetNeeded, match="gym:V2R/Dial-v0"):
        env.step(STILL)
    env.reset(seed=0)
    env.step(STILL)
    with pytest.raises(gymnasium.error.ResetNeeded, match="gym:V2R/Dial-v0"):
        env.step(STILL)


def test_an_episode_without_a_seed_can_be_made_again() -> None:
    env = dial()
    env.reset(seed=11)
    drawn = [env.reset()[1]["seed"] for _ in range(5)]
    assert len(set(drawn)) > 1 and all(0 <= seed < SEEDS for seed in drawn)
    assert inner(env).seeds == [11, *drawn]
    env.reset(seed=11)
    assert [env.reset()[1]["seed"] for _ in range(5)] == drawn
    frame, info = env.reset()
    np.testing.assert_array_equal(env.reset(seed=info["seed"])[0], frame)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("door-close", "'door-close' is unknown; names are metaworld:"),
        ("atari:pong", "'atari:pong' is unknown"),
        ("gym:", "'gym:' is unknown"),
        ("gym:V2R/Nothing-v0", "'V2R/Nothing-v0': "),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(name)


@pytest.mark.parametrize(("key", "value"), [("size", 0), ("action_repeat", 0), ("horizon", 0), ("horizon", -3)])
def test_numbers_out_of_range(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}, at least 1 expected"):
        make_env(NAME, **{key: value})  # type: ignore[arg-type]


def test_options_that_nobody_takes() -> None:
    with pytest.raises(ValueError, match=r"only a gym:\.\.\. environment takes some"):
        make_env("metaworld:reach", options={"width": 3})


class _Numbers(Dial):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gymnasium.spaces.Discrete(3)


class _Endless(Dial):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode, high=(1.0, np.inf))


class _Dark(Dial):
    metadata = {"render_modes": []}  # noqa: RUF012


@pytest.mark.filterwarnings("ignore:.*is being initialised with render_mode")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Numbers, r"has actions Discrete\(3\), a Box \(A,\) with finite bounds expected"),
        (_Endless, r"has actions Box.*inf.* with finite bounds expected"),
        (_Dark, "has no render mode 'rgb_array'"),
    ],
)
def test_what_cannot_be_a_pixel_environment_is_refused(kind: type[Dial], message: str) -> None:
    gymnasium.register("V2R/Odd-v0", kind)
    try:
        with pytest.raises(ValueError, match=message):
            make_env("gym:V2R/Odd-v0")
    finally:
        del gymnasium.registry["V2R/Odd-v0"]


def test_a_pickled_environment_is_made_again() -> None:
    env = dial(size=24, action_repeat=2, horizon=4, success=(1,))
    env.reset(seed=3)
    again = pickle.loads(pickle.dumps(env))  # noqa: S301
    assert again.name == NAME and again.observation_space == env.observation_space
    np.testing.assert_array_equal(again.reset(seed=3)[0], env.reset(seed=3)[0])
    assert again.step(STILL)[4] == env.step(STILL)[4]
    assert again.step(STILL)[3]


def test_nothing_here_loads_torch_or_a_simulator() -> None:
    code = """
import sys
import v2r_core.rl.envs, v2r_core.rl.wrappers, v2r_core.rl.gymnasium_task
print([name for name in ("torch", "mujoco", "metaworld", "dm_control") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def simulated(check: str) -> dict[str, Any]:
    """Runs one function of simulator_checks.py in a process of its own: what it loads crashes torch in this one."""
    done = subprocess.run(
        [sys.executable, str(SIMULATORS), check],
        env={"MUJOCO_GL": "egl", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last.startswith("skip"):
        pytest.skip(last)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-4000:]}"
    assert "EGLError" not in done.stderr, "a renderer was not freed in time"
    found: dict[str, Any] = json.loads(last)
    return found


def have(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.mark.slow
@have("metaworld")
def test_metaworld() -> None:
    found = simulated("metaworld_task")
    assert not found["mesa_before_the_first_frame"]
    assert found["dt"] == pytest.approx(3 / 80)
    assert found["focal_length"] == pytest.approx(32 / np.tan(np.radians(22.5)))
    assert found["placement_is_metaworlds"]
    assert found["repeats_exactly"] and found["repeats_in_another_environment"] and not found["other_seed_is_the_same"]
    assert found["frame_spread"] > 10
    assert found["names_are_the_same_task"]
    assert found["expert"] == {"success": True, "sparse": 1.0, "dense_is_the_own_sum": True}
    assert found["own_limit"] == [500, False, True]
    assert found["longer_than_the_own_limit"] == [600, False, True]
    assert re.search(r"no task 'dor-close'; .*door-close-v3", found["unknown"])
    cause = "step 1 of the episode failed: AssertionError: boom"
    assert found["raised"] == f"EnvironmentFailure: metaworld:door-close: {cause}"


@have("mujoco")
def test_a_focal_length_says_where_things_are_seen() -> None:
    found = simulated("cameras")
    assert all(count >= 10 for count in np.diff([0, *found["used"]]))
    assert max(found["away"]) < 0.3  # of a pixel; half a one is what a wrong middle of the picture would cost
    expected = [0.5 / np.tan(np.radians(fovy) / 2) for fovy in (38, 50)]
    assert found["focal"] == pytest.approx(expected)
    assert found["unknown"] == [True, True]


@pytest.mark.slow
@have("dm_control")
def test_dm_control() -> None:
    found = simulated("control_suite_task")
    assert not found["mesa_before_the_first_frame"]
    assert found["dt"] == pytest.approx(0.02)
    assert found["focal_length"] == pytest.approx(32 / np.tan(np.radians(22.5)))
    assert found["repeats_exactly"] and not found["other_seed_is_the_same"]
    assert found["frame_spread"] > 10
    assert found["own_limit"] == [1000, False, True]
    assert found["longer_than_the_own_limit"] == [1200, False, True]
    assert found["discount_zero"] == [2, True, False]
    assert found["info"]["success"] is False and found["info"]["sparse"] == found["info"]["dense"] > 0
    assert found["bounds_are_stretched"]
    assert re.search("no task 'cartpole-balanse'; .*cartpole-balance", found["unknown"])
    assert "take another task" in found["unseen"]
    assert found["chosen_renderer"] == os.environ.get("MUJOCO_GL", "egl")


@pytest.mark.slow
@have("gymnasium_robotics")
def test_franka_kitchen() -> None:
    found = simulated("kitchen_task")
    assert found["action_dim"] == 9 and found["dt"] == pytest.approx(1 / 12)
    assert found["repeats_exactly"]
    assert found["frame_spread"] > 10
    assert found["shadows"] == 0
    assert found["before"] == {"success": False, "sparse": 0.0, "dense": 0.0, "env_steps": 1}
    # One of two tasks is paid for, but success is both.
    assert found["one_of_two"] == {"success": False, "sparse": 0.0, "dense": 1.0, "env_steps": 2}
    assert found["both"] == {"success": True, "sparse": 1.0, "dense": 1.0, "env_steps": 3}
    assert found["terminated"]


@pytest.mark.slow
@have("dm_control", "torch")
def test_torch_lives_beside_a_simulator_if_it_came_first() -> None:
    assert simulated("torch_beside")["frame_spread"] > 10


@pytest.mark.slow
@have("metaworld")
def test_two_worker_processes() -> None:
    found = simulated("two_workers")
    assert found["shape"] == [2, 64, 64, 3]
    assert found["equal_seeds_equal_frames"] and found["other_seeds_other_frames"]
    assert found["equal_to_an_environment_here"]
    assert found["failure"] == "EnvironmentFailure"
    assert "step 1 of the episode failed" in found["message"]


def test_worker_functions_are_pickled_by_name() -> None:
    make = pickle.loads(pickle.dumps(partial(make_env, NAME, size=20)))  # noqa: S301
    assert make().reset(seed=1)[0].shape == (20, 20, 3)
