"""What test_envs.py asserts about the simulators, gathered in a process of its own: prints one line of JSON.

python simulator_checks.py CHECK
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from v2r_core.rl.envs import PixelEnv, make_env

SIZE = 64


def mesa_is_loaded() -> bool:
    return "libLLVM" in Path("/proc/self/maps").read_text() or "swrast" in Path("/proc/self/maps").read_text()


def hash_of(env: PixelEnv, seed: int, steps: int = 12) -> str:
    """All that an episode of seeded random actions gives."""
    rng = np.random.default_rng(0)
    frame, info = env.reset(seed=seed)
    digest = hashlib.sha256()
    for _ in range(steps):
        digest.update(frame.tobytes() + np.asarray(info.get("state", 0.0)).tobytes())
        frame, reward, *_, info = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        digest.update(np.float64(reward).tobytes())
    return digest.hexdigest()


def end_of(env: PixelEnv) -> list[Any]:
    """Environment steps, terminated and truncated of the first step that ends an episode."""
    env.reset(seed=0)
    while True:
        _, _, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        if terminated or truncated:
            env.close()
            return [info["env_steps"], terminated, truncated]


def message_of(name: str) -> str:
    try:
        make_env(name)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def usable(env: PixelEnv) -> dict[str, Any]:
    """What all simulators have in common; ends the process where nothing can be drawn."""
    facts: dict[str, Any] = {"mesa_before_the_first_frame": mesa_is_loaded(), "dt": env.dt}
    try:
        import mujoco

        mujoco.GLContext(8, 8).free()
    except Exception as error:
        print(f"skip: no headless OpenGL: {error}")
        sys.exit(0)
    first = hash_of(env, 3)
    facts["other_seed_is_the_same"] = hash_of(env, 57) == first
    facts["repeats_exactly"] = hash_of(env, 3) == first
    facts["frame_spread"] = float(env.reset(seed=3)[0].std())
    return facts


def metaworld_task() -> dict[str, Any]:
    name = "metaworld:door-close-v3"
    env = make_env(name, size=SIZE, action_repeat=3)
    facts = usable(env)
    import metaworld

    from v2r_core.rl.metaworld import expert

    direct = metaworld.ALL_V3_ENVIRONMENTS["door-close-v3"]()
    direct.set_task(metaworld.MT1("door-close-v3", seed=1).train_tasks[7])
    facts["placement_is_metaworlds"] = bool((env.reset(seed=57)[1]["state"] == direct.reset()[0]).all())
    facts["expert"] = _expert(env, direct, expert("metaworld:door-close"))
    same = hash_of(env, 3)
    env.close()
    other = make_env("metaworld:door-close", size=SIZE, action_repeat=3)
    facts["repeats_in_another_environment"] = facts["names_are_the_same_task"] = hash_of(other, 3) == same
    facts["focal_length"] = env.focal_length
    facts["own_limit"] = end_of(make_env(name, size=SIZE, action_repeat=100))
    facts["longer_than_the_own_limit"] = end_of(make_env(name, size=SIZE, action_repeat=100, horizon=600))
    facts["unknown"] = message_of("metaworld:dor-close")
    facts["raised"] = _raised(other)
    return facts


def _expert(env: PixelEnv, direct: Any, policy: Any) -> dict[str, Any]:
    """An episode of the expert, three steps an action, and the same without anything around MetaWorld."""
    _, info = env.reset(seed=57)
    direct.reset()
    total = own = 0.0
    for _ in range(100):
        action = policy(info["state"])
        _, reward, *_, info = env.step(action)
        total += reward
        own += sum(float(direct.step(action)[1]) for _ in range(3))
        if info["success"]:
            break
    return {"success": info["success"], "sparse": info["sparse"], "dense_is_the_own_sum": total == own}


def _raised(env: PixelEnv) -> str:
    """What comes out when MetaWorld raises in mid-episode."""
    env.reset(seed=0)

    def boom(*_: object) -> None:
        raise AssertionError("boom")

    env.simulation.env.evaluate_state = boom
    try:
        env.step(np.zeros(4, np.float32))
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def control_suite_task() -> dict[str, Any]:
    name = "dm_control:cartpole-balance"
    env = make_env(name, size=SIZE, action_repeat=2)
    facts = usable(env)
    facts["info"] = env.step(np.zeros(1, np.float32))[4]
    facts["focal_length"] = env.focal_length
    env.close()
    facts["discount_zero"] = end_of(make_env_ending(name))
    facts["own_limit"] = end_of(make_env(name, size=SIZE, action_repeat=250))
    facts["longer_than_the_own_limit"] = end_of(make_env(name, size=SIZE, action_repeat=300, horizon=1200))
    facts["bounds_are_stretched"] = _bounds()
    facts["unknown"] = message_of("dm_control:cartpole-balanse")
    facts["unseen"] = message_of("dm_control:quadruped-escape")
    facts["chosen_renderer"] = os.environ["MUJOCO_GL"]
    return facts


def make_env_ending(name: str) -> PixelEnv:
    """One whose task says after two steps that nothing can follow: discount 0."""
    env = make_env(name, size=SIZE)
    count = iter(range(10))
    env.simulation.env.task.get_termination = lambda physics: 0.0 if next(count) == 1 else None
    return env


def _bounds() -> bool:
    """Whether an action reaches the motors between the suite's own bounds; 1.1 and 0.8 for some of the quadruped."""
    env = make_env("dm_control:quadruped-walk", size=SIZE)
    env.reset(seed=0)
    spec = env.simulation.env.action_spec()
    env.step(np.ones(env.action_space.shape, np.float32))
    sent = env.simulation.env.physics.data.ctrl.copy()
    env.close()
    return bool(np.allclose(sent, np.broadcast_to(spec.maximum, spec.shape)))


def kitchen_task() -> dict[str, Any]:
    tasks = ["microwave", "slide cabinet"]
    env = make_env("gym:FrankaKitchen-v1", size=SIZE, options={"tasks_to_complete": tasks, "width": 96, "height": 96})
    facts = usable(env)
    inner = env.simulation.env.unwrapped
    facts["action_dim"] = env.action_space.shape[0]
    facts["shadows"] = int(inner.model.vis.quality.shadowsize)
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, OBS_ELEMENT_INDICES

    still = np.zeros(9, np.float32)
    env.reset(seed=0)
    facts["before"] = env.step(still)[4]
    for task, key in zip(tasks, ("one_of_two", "both"), strict=True):
        inner.data.qpos[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
        _, _, facts["terminated"], _, facts[key] = env.step(still)
    env.close()
    return facts


BALLS = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="fixed" pos="0.3 -2 0.4" xyaxes="1 0.1 0 0 0.2 1" fovy="38"/>
    <camera name="flat" pos="0 -2 0" xyaxes="1 0 0 0 0 1" {flat}/>
    <camera name="sensor" pos="0 -2 0" xyaxes="1 0 0 0 0 1" sensorsize="0.02 0.02" resolution="9 9" focal="0.03 0.03"/>
    {balls}
  </worldbody>
</mujoco>
"""


def cameras() -> dict[str, Any]:
    """Where balls are seen in pictures, and where a pinhole of the stated focal length would show their middles."""
    from v2r_core.rl import rendering

    # isort: split
    import mujoco

    places = [(x, y, z) for x in (-0.35, 0.0, 0.4) for y in (-0.3, 0.5) for z in (-0.2, 0.1, 0.45)]
    flat = "orthographic='true'" if hasattr(mujoco.MjModel, "cam_orthographic") else "projection='orthographic'"
    rows = "".join(f'<geom size="0.02" pos="{x} {y} {z}" rgba="1 0 0 {{}}"/>' for x, y, z in places)
    model = mujoco.MjModel.from_xml_string(BALLS.format(flat=flat, balls=rows.replace("{}", "1")))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    free = mujoco.MjvCamera()
    free.lookat[:], free.azimuth, free.elevation, free.distance = (0.1, 0.0, 0.1), 75, -25, 1.8
    model.vis.global_.fovy = 50
    side, away, used = 256, [], []
    for view in (0, free):
        camera = rendering.Camera(model, side, view)
        camera.picture(data)
        eyes = camera._renderer.scene.camera  # a left and a right one; the picture is what is seen from between them
        position, forward, up = (
            np.mean([getattr(eye, name) for eye in eyes], axis=0) for name in ("pos", "forward", "up")
        )
        turn = np.stack([np.cross(forward, up), -up, forward])  # a camera's optical frame: right, down, ahead
        for number, place in enumerate(places):
            model.geom_rgba[:, 3] = 0
            model.geom_rgba[number, 3] = 1
            seen = np.argwhere(camera.picture(data)[..., 0] > 60)
            x, y, z = turn @ (np.asarray(place) - position)
            pixel = camera.focal_length * side * np.array([y, x]) / z + (side - 1) / 2
            if len(seen) > 5 and ((seen > 2) & (seen < side - 3)).all():
                away.append(float(np.abs(seen.mean(0) - pixel).max()))
        used.append(len(away))
        camera.close()
    return {
        "away": away,
        "used": used,
        "focal": [rendering.Camera(model, 8, view).focal_length for view in (0, free)],
        "unknown": [bool(np.isnan(rendering.Camera(model, 8, view).focal_length)) for view in (1, 2)],
    }


def fragile(name: str, raises: bool) -> PixelEnv:
    """An environment whose simulator raises if it is told to."""
    env = make_env(name, size=SIZE)
    if raises:
        env.simulation.env.set_xyz_action = None
    return env


def two_workers() -> dict[str, Any]:
    name = "metaworld:drawer-open"
    make = partial(make_env, name, size=SIZE, horizon=8)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4)).astype(np.float32)
    actions[1] = actions[0]
    vector = gymnasium.vector.AsyncVectorEnv([make, make], context="spawn")
    same, _ = vector.reset(seed=[5, 5])
    after, *_ = vector.step(actions)
    other, _ = vector.reset(seed=[5, 6])
    vector.close()
    facts: dict[str, Any] = {"shape": list(same.shape), "other_seeds_other_frames": bool((other[0] != other[1]).any())}
    facts["equal_seeds_equal_frames"] = bool((same[0] == same[1]).all() and (after[0] == after[1]).all())
    env = make()
    here = env.reset(seed=5)[0], env.step(actions[0])[0]
    env.close()
    facts["equal_to_an_environment_here"] = bool((here[0] == same[0]).all() and (here[1] == after[0]).all())
    vector = gymnasium.vector.AsyncVectorEnv(
        [partial(fragile, name, raises) for raises in (False, True)], context="spawn"
    )
    vector.reset(seed=[0, 0])
    try:
        vector.step(actions)
    except Exception as error:
        facts["failure"], facts["message"] = type(error).__name__, str(error)
    vector.close(terminate=True)
    return facts


def torch_beside() -> dict[str, Any]:
    """A picture, then an optimizer in the same process, which loads triton; the environment is never closed."""
    import torch

    env = make_env("dm_control:cartpole-balance", size=SIZE)
    frame, _ = env.reset(seed=0)
    layer = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    globals()["never_closed"] = env
    return {"frame_spread": float(frame.std())}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    print(json.dumps(globals()[sys.argv[1]]()))
