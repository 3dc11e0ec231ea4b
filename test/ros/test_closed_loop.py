"""The whole loop over topics, without launch: sim_node's camera, reward_node, policy_node, sim_node's actuator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from node_harness import make_graph
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool
from tiny_bundle import write_tiny_bundle
from tiny_policy import write_seeker

from v2r_core.deploy.policy import Policy, load_policy
from v2r_core.rl.envs import make_env
from v2r_core.rl.replay import ReplayStore
from v2r_core.video.resize import Preprocess, resize_frame
from v2r_core.video.writing import write_video
from v2r_msgs.msg import Episode, Reward
from v2r_ros import qos
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph

ROOT = Path(__file__).parents[1]
ENV, SIZE, RATE, DEMONSTRATION = "gym:toy_blob:Blob-v0", 48, 20.0, 40
EPISODES = 3


def roll_out(model: Path, seed: int, steps: int) -> tuple[list[np.ndarray], bool]:
    """Frames and success of the same policy stepped directly."""
    policy, env = Policy(load_policy(model), providers=("cpu",)), make_env(ENV, size=SIZE)
    frame, _ = env.reset(seed=seed)
    frames, success = [frame], False
    for _ in range(steps):
        frame, _, _, _, info = env.step(policy.act(frame))
        frames.append(frame)
        success |= info["success"]
    env.close()
    return frames, success


class Loop:
    """Three nodes, active; what they say is collected here."""

    def __init__(self, graph: Graph, folder: Path, lockstep: bool, reward_node: str = "v2r_ros.reward_node") -> None:
        slow = reward_node != "v2r_ros.reward_node"
        self.graph = graph
        self.model = write_seeker(folder / "policy", rate=RATE)
        frames, success = roll_out(self.model, 1000, DEMONSTRATION)
        assert success
        write_video(folder / "demonstration.mp4", frames, RATE)
        bundle = write_tiny_bundle(folder / "bundle")
        self.data = folder / "data"
        self.episodes: list[Episode] = []
        self.success: list[bool] = []
        self.rewards: list[Reward] = []
        graph.node.create_subscription(Episode, "/policy_node/episode", self.episodes.append, 10)
        graph.node.create_subscription(Bool, "/sim_node/success", lambda m: self.success.append(m.data), 1000)
        graph.node.create_subscription(Reward, "/reward_node/reward", self.rewards.append, 1000)
        pace = {"lockstep": lockstep, "speed": 2.0 if lockstep else 1.0}
        time = {"use_sim_time": True}
        camera = ("-r", "image:=/camera/image")
        graph.start(
            "v2r_ros.sim_node",
            {"env": ENV, "size": SIZE, "action_timeout": 10.0 if slow else 1.0} | pace,
            None,
            "-r",
            "action:=/policy_node/action",
            "-r",
            "reward:=/reward_node/reward",
        )
        reward = {"model": str(bundle), "reward": "pixel", "goals_dir": str(folder), "goal": "demonstration.mp4"}
        graph.start(reward_node, reward | time | {"providers": ["cpu"]}, "reward_node", *camera)
        policy = {
            "model": str(self.model),
            "reset_environment": "sim_node/reset",
            "record_dir": str(self.data),
            "success_progress": 0.9,
            "time_limit": 8.0,
            "auto_restart": True,
            "diagnostics_period": 0.2,
            "providers": ["cpu"],
        }
        if slow:
            policy |= {"reward_timeout": 10.0, "image_timeout": 10.0, "reward_deadline": 20.0}
        graph.start("v2r_ros.policy_node", policy | time, None, *camera, "-r", "reward:=/reward_node/reward")
        for node in ("/reward_node", "/policy_node"):
            assert graph.transition(node, CONFIGURE), self.log()
            assert graph.transition(node, ACTIVATE), self.log()
        graph.spin(lambda: graph.node.count_subscribers("/camera/image") == 2, 20.0, "both to see")
        graph.spin(lambda: graph.node.count_subscribers("/policy_node/action") == 1, 20.0, "the actuator")

    def enable(self, on: bool) -> None:
        assert self.graph.call(SetBool, "/policy_node/enable", SetBool.Request(data=on)).success

    def log(self) -> str:
        return "\n".join(self.graph.log(name) for name in ("sim_node", "reward_node", "policy_node"))


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "ros")]))
    with make_graph(tmp_path) as graph:
        yield graph


@pytest.mark.slow
@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "real-time"])
def test_the_task_is_done_and_recorded(graph: Graph, tmp_path: Path, lockstep: bool) -> None:
    loop = Loop(graph, tmp_path, lockstep)
    loop.enable(True)
    graph.spin(lambda: len(loop.episodes) >= EPISODES, 60.0, f"episodes\n{loop.log()}")
    loop.enable(False)
    assert {episode.end_reason for episode in loop.episodes[:EPISODES]} == {Episode.END_SUCCESS}, loop.log()
    assert any(loop.success)  # and the simulator agrees
    assert all(episode.goal_id.startswith("demonstration.mp4") for episode in loop.episodes)
    assert all(episode.max_progress > 0.9 for episode in loop.episodes[:EPISODES])
    # The reward is the fall of the distance to the goal, all the way.
    assert all(episode.return_sum > 0 for episode in loop.episodes[:EPISODES])
    assert graph.stop() == dict.fromkeys(("sim_node", "reward_node", "policy_node"), 0), loop.log()
    store = ReplayStore(loop.data, read_only=True)
    assert len(store.episodes) >= EPISODES
    assert not store.skipped
    assert {episode.notes["end_reason"] for episode in store.episodes[:EPISODES]} == {Episode.END_SUCCESS}
    batch = store.sample(64, np.random.default_rng(0), nstep=3, gamma=0.99, stack=3)
    assert batch.observation.shape == (64, 3, 3, 32, 32)
    assert np.isfinite(batch.reward).all() and batch.reward.std() > 0
    assert np.abs(batch.action).max() <= 1
    if lockstep:
        # In the first one the simulator and reward_node may still be getting to know each other.
        assert not any(episode.notes["missing_rewards"] for episode in store.episodes[1:])
    first = store.episodes[0]
    rows = np.arange(1, first.rows)
    steps = store.at(np.zeros_like(rows), rows, nstep=1, gamma=1.0, stack=1)
    policy = Policy(load_policy(loop.model), providers=("cpu",))
    decided = [policy.act(frame[0].transpose(1, 2, 0)) for frame in steps.observation]
    # What is recorded as done is what the policy says to the recorded frame, but for steps in which a frame was late.
    same = np.isclose(steps.action, decided, atol=1e-6).all(axis=1)
    assert same.mean() > (0.95 if lockstep else 0.7)


@pytest.mark.slow
def test_in_lockstep_the_loop_takes_the_steps_of_the_policy_stepped_directly(graph: Graph, tmp_path: Path) -> None:
    loop = Loop(graph, tmp_path, lockstep=True)
    loop.enable(True)
    graph.spin(lambda: bool(loop.episodes), 60.0, f"an episode\n{loop.log()}")
    loop.enable(False)
    graph.stop("policy_node", "reward_node", "sim_node")
    store = ReplayStore(loop.data, read_only=True)
    rows = np.arange(1, store.episodes[0].rows)
    found = store.at(np.zeros_like(rows), rows, nstep=1, gamma=1.0, stack=1).next_observation[:, 0]
    seeds = range(1, 4)  # a reset whose answer was lost is asked for again, and takes the next seed
    same = []
    for seed in seeds:
        frames, _ = roll_out(loop.model, seed, len(rows))
        expected = np.stack([resize_frame(frame, Preprocess(32)).transpose(2, 0, 1) for frame in frames[1:]])
        same.append(int((expected == found).all(axis=(1, 2, 3)).sum()))
    assert max(same) == len(rows), same


def test_a_lockstep_without_any_reward_goes_on_with_zeros(graph: Graph, tmp_path: Path) -> None:
    images: list[Image] = []
    actions: list[Float64MultiArray] = []
    episodes: list[Episode] = []
    graph.node.create_subscription(Image, "/camera/image", images.append, qos.image_subscription("sensor_data"))
    graph.node.create_subscription(Float64MultiArray, "/policy_node/action", actions.append, 100)
    graph.node.create_subscription(Episode, "/policy_node/episode", episodes.append, 10)
    simulation = {"env": ENV, "size": SIZE, "lockstep": True}
    graph.start("v2r_ros.sim_node", simulation, None, "-r", "action:=/policy_node/action")
    policy = {"model": str(write_seeker(tmp_path / "policy", rate=RATE)), "reset_environment": "sim_node/reset"}
    policy |= {"reset_reward": "", "fault_timeout": 2.0, "use_sim_time": True, "providers": ["cpu"]}
    graph.start("v2r_ros.policy_node", policy, None, "-r", "image:=/camera/image")
    for transition in (CONFIGURE, ACTIVATE):
        assert graph.transition("/policy_node", transition), graph.log("policy_node")
    graph.spin(lambda: graph.node.count_subscribers("/camera/image") == 2, 20.0, "the policy to see")
    graph.spin(lambda: graph.node.count_subscribers("/policy_node/action") == 2, 20.0, "the actuator")
    assert graph.call(SetBool, "/policy_node/enable", SetBool.Request(data=True)).success
    graph.spin(lambda: bool(actions), 10.0, "a zero")
    first = len(images)
    graph.spin(lambda: len(images) > first + 20, 10.0, "the simulator to go on")
    graph.spin(lambda: bool(episodes), 10.0, "the end")
    assert episodes[0].end_reason == Episode.END_FAULT
    assert not any(any(action.data) for action in actions)
    # It was not the simulator's own patience that let it go on: that is half a second an image.
    assert len(actions) > 20


@pytest.mark.slow
def test_in_lockstep_every_step_has_its_reward_however_long_that_takes(graph: Graph, tmp_path: Path) -> None:
    loop = Loop(graph, tmp_path, lockstep=True, reward_node="slow_reward_node")
    loop.enable(True)
    graph.spin(lambda: len(loop.episodes) >= 2, 120.0, f"episodes\n{loop.log()}")
    loop.enable(False)
    assert loop.episodes[1].end_reason == Episode.END_SUCCESS, loop.log()
    assert graph.stop() == dict.fromkeys(("sim_node", "reward_node", "policy_node"), 0), loop.log()
    store = ReplayStore(loop.data, read_only=True)
    # In the first one the simulator and reward_node may still be getting to know each other.
    assert store.episodes[1].notes["missing_rewards"] == 0
    _, steps = store.read(store.episodes[1])
    assert len(steps) > 10 and steps["reward"][1:].all()  # none is the 0 of one that was given up
