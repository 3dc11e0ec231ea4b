"""make sim-demo: the shipped policy in the closed loop over real topics, and what is read out of its bag."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Float64MultiArray

from v2r_core.deploy.policy import write_policy
from v2r_core.video import open_video
from v2r_core.video.resize import Preprocess
from v2r_msgs.msg import Episode, Reward
from v2r_ros.loop_record import ACTION, EPISODE, IMAGE, REWARD, SUCCESS, read_loop

MESSAGES = Path(__file__).parents[2] / "v2r_msgs" / "msg"
# In a process of its own: Mesa must not be loaded before triton.
CHECK = "import metaworld, mujoco; mujoco.GLContext(8, 8)"
PERIOD = 40_000_000

Message = tuple[str, int, object]
"""Topic, time of recording, message."""


# --- the demo itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def simulator() -> dict[str, str]:
    """Environment for a process that simulates; skips where none can."""
    environment = {"MUJOCO_GL": "egl", **os.environ}
    usable = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    if usable.returncode:
        pytest.skip(f"no MetaWorld or no headless OpenGL: {usable.stderr.strip().rpartition(chr(10))[2]}")
    return environment


@pytest.mark.slow
def test_the_shipped_policy_closes_the_door_as_it_does_without_ros(simulator: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "v2r_ros.sim_demo", "--out", str(out), "--episodes", "2", "--lockstep"]
    done = subprocess.run(command, env=simulator, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["successes"] == summary["direct_successes"] == len(summary["runs"]) == 2
    assert summary["stops"] == {}
    assert summary["camera_to_action_p50_ms"] is None  # simulated time tells no latency
    for run in summary["runs"]:
        # In lockstep ROS changes nothing at all.
        assert run["steps_to_success"] == run["direct_steps_to_success"] > 5
        # A busy machine may leave out a picture's reward; never more than a few.
        assert run["rewards"] > 0.7 * (run["last"] - run["first"] + 1) > 5
        assert run["final_progress"] > 0.5
    assert len({run["direct_seed"] for run in summary["runs"]}) == 2
    with Reader(out / "bag") as bag:
        assert {"/diagnostics", ACTION, REWARD, EPISODE, SUCCESS} < {c.topic for c in bag.connections if c.msgcount}
    with open_video(out / "loop.mp4") as video:
        assert len(video) == sum(run["last"] - run["first"] + 1 for run in summary["runs"])
    assert (out / "episode.png").stat().st_size > 50_000


@pytest.mark.slow
def test_a_policy_that_does_not_do_it_fails_the_demo(simulator: dict[str, str], tmp_path: Path) -> None:
    out, policy = tmp_path / "out", write_lifter(tmp_path / "policy")
    code = f"""
from pathlib import Path
from v2r_ros import sim_demo
sim_demo.DEMO_POLICY = Path({str(policy)!r})
raise SystemExit(sim_demo.main(sim_demo.SimDemo(out=Path({str(out)!r}), episodes=1)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=simulator, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 1 episodes succeeded, 1 required" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["successes"], summary["direct_successes"], summary["points"]) == (0, 0, 0)
    (run,) = summary["runs"]
    assert run["end"] == "time limit"
    # All steps of the horizon, and then it stands still.
    assert run["last"] - run["first"] + 1 > 40 or run["control_rate"] < 20
    assert 0 < summary["camera_to_action_p50_ms"] <= summary["camera_to_action_p95_ms"]


def write_lifter(folder: Path) -> Path:
    """A policy for four numbers that only ever lifts the arm, whatever it sees."""
    constants = {"none": np.zeros((3 * 16 * 16, 4), np.float32), "up": np.array([0, 0, 1, 0], np.float32)}
    nodes = [
        helper.make_node("Cast", ["observation"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["row"]),
        helper.make_node("MatMul", ["row", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "up"], ["action"]),
    ]
    given = helper.make_tensor_value_info("observation", TensorProto.UINT8, ["batch", 3, 16, 16])
    taken = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 4])
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "lifter", [given], [taken], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    write_policy(
        folder,
        name="lifter",
        description="lifts the arm",
        actor=model.SerializeToString(),
        action_dim=4,
        rate=80 / 3,
        preprocess=Preprocess(16),
        frame_stack=1,
    )
    return folder


# --- its bag ---------------------------------------------------------------------------------------------------------


def write_bag(folder: Path, messages: list[Message]) -> Path:
    """Writes messages as the recorder does."""
    types = get_typestore(Stores.ROS2_JAZZY)
    for name in ("Reward", "Episode"):
        types.register(get_types_from_msg((MESSAGES / f"{name}.msg").read_text(), f"v2r_msgs/msg/{name}"))
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {}
        for topic, time, message in sorted(messages, key=lambda item: item[1]):
            if topic not in connections:
                kind = f"{type(message).__module__.partition('.')[0]}/msg/{type(message).__name__}"
                connections[topic] = bag.add_connection(topic, kind, typestore=types)
            bag.write(connections[topic], time, serialize_message(message))
    return folder


def stamped(message: Image | Reward | Episode, nanoseconds: int) -> Image | Reward | Episode:
    """The message with that stamp."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
    return message


def moment(image: int) -> int:
    """Stamp of an image."""
    return 10**9 + image * PERIOD


def ended(first: int, last: int, reason: int) -> Message:
    """An episode from one image to another, that ends 10 ms after the last."""
    message = stamped(Episode(end_reason=reason, final_progress=0.9, max_progress=0.95), moment(last) + 10_000_000)
    message.start.sec, message.start.nanosec = divmod(moment(first), 10**9)
    return EPISODE, moment(last) + 12_000_000, message


def loop() -> list[Message]:
    """Two episodes, of images 2 to 8 and 12 to 17. Done: before the first, in its image 5 and on, never again."""
    messages: list[Message] = []
    for image in range(20):
        recorded = moment(image) + 3_000_000
        messages.append((IMAGE, recorded, stamped(Image(height=1, width=1, step=3, encoding="rgb8"), moment(image))))
        # The small message overtakes the picture.
        messages.append((SUCCESS, recorded - 1_000_000, Bool(data=image < 2 or 5 <= image <= 10)))
        status = {12: Reward.STATUS_WARMING_UP, 14: Reward.STATUS_OUT_OF_DISTRIBUTION}.get(image, Reward.STATUS_OK)
        reward = stamped(Reward(status=status, progress=image / 20, value=-1.0 * image), moment(image))
        messages.append((REWARD, recorded + 10_000_000, reward))
        # Commands come to images 2 to 8; from 12 on the robot is only told to stop.
        action = [0.5, -0.5] if 2 <= image <= 8 else [0.0, 0.0]
        messages.append((ACTION, recorded + 5_000_000, Float64MultiArray(data=action)))
    return [*messages, ended(2, 8, Episode.END_SUCCESS), ended(12, 17, Episode.END_TIME_LIMIT)]


def test_a_bag_tells_what_the_simulator_said_of_each_episode(tmp_path: Path) -> None:
    record = read_loop(write_bag(tmp_path / "bag", loop()), 2)
    won, lost = record.episodes
    assert (won.first, won.last, lost.first, lost.last) == (2, 8, 12, 17)
    assert won.success and won.ended_by_progress
    assert won.steps_to_success == 3
    assert won.seconds_to_success == pytest.approx(3 * PERIOD * 1e-9)
    assert won.seconds == pytest.approx((6 * PERIOD + 10_000_000) * 1e-9)
    assert won.control_rate == pytest.approx(25.0)
    assert won.rewards.tolist() == list(range(2, 9))
    assert (won.unlike, won.unusable) == (0, 0)
    np.testing.assert_allclose(record.curve(won).progress, np.arange(2, 9) / 20, rtol=1e-6)
    assert not lost.success and not lost.ended_by_progress
    assert lost.end == "time limit"
    assert lost.steps_to_success == -1 and math.isnan(lost.seconds_to_success)
    assert math.isnan(lost.control_rate)  # stops are no actions
    assert (lost.unlike, lost.unusable) == (1, 1)  # warming up is not counted


@pytest.mark.parametrize(
    ("spoil", "episodes", "message"),
    [
        (lambda messages: messages, 3, "2 episodes recorded, 3 expected"),
        (lambda messages: [m for m in messages if m[0] != ACTION], 2, "policy_node/action.*not recorded"),
        (lambda messages: [m for m in messages if m[1] != moment(12) + 3_000_000], 2, "began an episode"),
    ],
    ids=["too few", "no actions", "first image lost"],
)
def test_a_bag_without_what_is_needed_is_refused(
    tmp_path: Path, spoil: Callable[[list[Message]], list[Message]], episodes: int, message: str
) -> None:
    bag = write_bag(tmp_path / "bag", spoil(loop()))
    with pytest.raises(ValueError, match=message):
        read_loop(bag, episodes)
