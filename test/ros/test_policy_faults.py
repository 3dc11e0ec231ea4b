"""What can go wrong while the robot moves: each test ends with the robot stopped and the node alive."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from node_harness import make_graph
from policy_harness import OFFERED_S, PolicyUnderTest, moves
from tiny_bundle import write_tiny_bundle
from tiny_policy import blob, write_seeker

from v2r_core.rl.replay import ReplayStore
from v2r_core.video.writing import write_video
from v2r_msgs.msg import Episode, Reward
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph

FOREVER = 60.0
PROMPT_S = 1.0


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with make_graph(tmp_path) as graph:
        yield graph


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_seeker(tmp_path / "policy"))


def moving(graph: Graph, model: str, **parameters: object) -> PolicyUnderTest:
    node = PolicyUnderTest(graph, model=model, **parameters).start()
    assert node.enable().success
    node.until_moving()
    return node


def recovers(node: PolicyUnderTest) -> None:
    """The fault is over: the episode goes on by itself."""
    node.until_moving()
    assert not node.episodes
    node.stop()


def test_the_reward_goes_silent_in_mid_motion(graph: Graph, model: str) -> None:
    node = moving(graph, model, reward_timeout=0.3, reward_deadline=FOREVER)
    node.reward_on = False
    assert node.until_stopped() < PROMPT_S
    node.wait(lambda: node.reason().startswith("no reward for"))
    assert int(node.value("stops: reward stale")) == 1
    node.reward_on = True
    recovers(node)


def test_the_reward_misses_its_deadline(graph: Graph, model: str) -> None:
    node = moving(graph, model, reward_timeout=FOREVER, reward_deadline=OFFERED_S)
    node.reward_on = False
    assert node.until_stopped() < OFFERED_S + PROMPT_S
    node.wait(lambda: "deadline" in node.reason())
    node.reward_on = True
    recovers(node)


def test_a_deadline_that_nobody_offers_is_an_error_with_a_remedy(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, reward_timeout=0.3, reward_deadline=OFFERED_S / 4).start()
    node.wait(lambda: "raise reward_deadline" in node.log())
    node.enable()
    node.wait(lambda: node.reason().startswith("no reward yet"))
    assert node.actions and not any(moves(action) for action in node.actions)
    node.stop()


def test_nothing_moves_before_there_is_a_reward(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, reward_timeout=0.3, fault_timeout=1.0, auto_restart=True).start()
    node.reward_on = False
    node.enable()
    node.wait(lambda: node.reason().startswith("no reward yet"))
    node.wait(lambda: bool(node.episodes))
    assert node.episodes[0].end_reason == Episode.END_FAULT
    assert "fault (no reward yet, " in node.log()
    node.until_stopped()
    assert node.actions and not any(moves(action) for action in node.actions)  # zeros, for who waits for one
    node.reward_on = True
    node.enable()
    node.until_moving()
    node.stop()


def test_a_reward_in_time_begins_the_episode_without_a_stop(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, reward_timeout=FOREVER).start()
    node.reward_on = False
    node.enable()
    node.wait(lambda: node.value("state") == "waiting for image and reward")
    count = len(node.images)
    node.wait(lambda: len(node.images) > count + 10)
    assert not node.actions
    node.reward_on = True
    node.until_moving()
    assert moves(node.actions[0])
    node.wait(lambda: node.value("state") == "running")
    assert not [pair.key for pair in node.diagnostics[-1].values if pair.key.startswith("stops")]
    node.stop()


@pytest.mark.parametrize("rewarded", [True, False], ids=["with-reward", "without"])
def test_who_waits_for_an_action_before_the_next_image_gets_one(graph: Graph, model: str, rewarded: bool) -> None:
    node = PolicyUnderTest(graph, model=model, reward_timeout=0.3, image_timeout=FOREVER).start()
    node.camera_on = node.reward_on = False
    node.enable()
    node.wait(lambda: node.value("state") == "waiting for image and reward")
    answered = -1

    def step() -> bool:
        nonlocal answered
        if len(node.actions) > answered:
            answered = len(node.actions)
            node.camera_on, node.reward_on = True, rewarded
            node.publish()
            node.camera_on = node.reward_on = False
        return len(node.images) > 20

    node.wait(step, what="the camera to go on")
    assert any(moves(action) for action in node.actions) == rewarded
    node.stop()


def test_rewards_that_come_steadily_but_are_old(graph: Graph, model: str) -> None:
    node = moving(graph, model, reward_timeout=0.5)
    since = time.monotonic()
    node.wait(lambda: time.monotonic() > since + 1.2)
    node.until_moving()
    node.reward_age_s = 1.0
    assert node.until_stopped() < PROMPT_S
    node.wait(lambda: "behind the newest image, more than 0.5 s" in node.reason())
    assert int(node.value("stops: reward late")) == 1
    node.reward_age_s = 0.0
    recovers(node)


@pytest.mark.parametrize("use_reward", [True, False], ids=["with-reward", "without"])
def test_stamps_that_go_back_end_the_episode(graph: Graph, model: str, use_reward: bool) -> None:
    node = moving(graph, model, use_reward=use_reward, time_limit=5.0, auto_restart=True)
    count = len(node.images)
    node.wait(lambda: len(node.images) > count + 5)  # the first two might be late ones, of before a reset
    node.clock_s = -1000.0
    assert node.until_stopped() < PROMPT_S
    node.wait(lambda: bool(node.episodes))
    assert node.episodes[0].end_reason == Episode.END_FAULT
    assert "fault (the images' stamps went back from" in node.log()
    count, later = len(node.actions), time.monotonic() + 1.5
    node.wait(lambda: time.monotonic() > later)
    assert not any(moves(action) for action in node.actions[count:])
    assert len(node.episodes) == 1 and node.value("state") == "disabled"
    node.enable()
    node.until_moving()
    node.wait(lambda: len(node.episodes) == 2)
    assert node.episodes[1].end_reason == Episode.END_TIME_LIMIT  # it counts by the new time
    node.stop()


def test_an_image_of_before_a_reset_of_time_may_come_after_it(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, reward_timeout=FOREVER).start()
    node.reward_on = False
    node.enable()
    node.wait(lambda: node.value("state") == "waiting for image and reward")
    count = len(node.images)
    node.wait(lambda: len(node.images) > count + 3)
    node.clock_s = -1000.0
    node.reward_on = True
    recovers(node)


def test_without_rewards_a_late_image_of_before_a_reset_of_time_begins_nothing(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, use_reward=False, reward_timeout=FOREVER, auto_restart=True).start()
    node.camera_on = node.reward_on = False
    node.enable()
    node.wait(lambda: node.value("state") == "waiting for image and reward")
    node.camera_on = True
    node.publish()
    node.camera_on = False
    node.wait(lambda: node.value("state") == "running")
    node.clock_s, node.camera_on = -1000.0, True
    recovers(node)


@pytest.mark.parametrize(
    "status",
    [
        Reward.STATUS_STALE_IMAGE,
        Reward.STATUS_NO_GOAL,
        Reward.STATUS_BAD_IMAGE,
        Reward.STATUS_OUT_OF_DISTRIBUTION,
        Reward.STATUS_INTERNAL_ERROR,
        99,
    ],
)
def test_the_rewards_status_is_not_ok(graph: Graph, model: str, status: int) -> None:
    node = moving(graph, model)
    node.status = status
    assert node.until_stopped() < PROMPT_S
    node.wait(lambda: "status" in node.reason())
    node.status = Reward.STATUS_OK
    recovers(node)


def test_a_fault_that_lasts_ends_the_episode_and_nothing_restarts(graph: Graph, model: str) -> None:
    node = moving(graph, model, fault_timeout=0.5, auto_restart=True)
    node.status = Reward.STATUS_OUT_OF_DISTRIBUTION
    node.wait(lambda: bool(node.episodes))
    assert node.episodes[0].end_reason == Episode.END_FAULT
    node.status = Reward.STATUS_OK
    node.until_stopped()
    node.wait(lambda: node.value("state") == "disabled")
    node.enable()
    node.until_moving()
    node.stop()


def test_the_camera_goes_silent(graph: Graph, model: str) -> None:
    node = moving(graph, model, image_timeout=0.3)
    node.camera_on = False
    assert node.until_stopped() < PROMPT_S
    node.wait(lambda: node.reason().startswith("no image for"))
    node.camera_on = True
    recovers(node)


def test_the_actor_gives_nan(graph: Graph, model: str) -> None:
    node = moving(graph, model)
    node.frame = np.zeros_like(node.frame)  # no red, no centre of it
    assert node.until_stopped() < PROMPT_S
    node.wait(lambda: "finite numbers expected" in node.reason())
    assert all(np.isfinite(action.data).all() for action in node.actions)
    node.frame = blob(-0.5, 0.5)
    recovers(node)


def test_images_that_cannot_be_read(graph: Graph, model: str) -> None:
    node = PolicyUnderTest(graph, model=model, max_pixels=2000).start()  # the camera's have 48 x 48
    node.enable()
    node.wait(lambda: "no action" in node.reason())
    assert node.actions and not any(moves(action) for action in node.actions)
    node.stop()


def test_enable_off(graph: Graph, model: str) -> None:
    node = moving(graph, model, auto_restart=True)
    assert node.enable(False).success
    assert node.until_stopped() < PROMPT_S
    assert node.episodes[0].end_reason == Episode.END_REQUESTED
    later = time.monotonic() + 0.6
    count = len(node.actions)
    node.wait(lambda: time.monotonic() > later)
    assert not any(moves(action) for action in node.actions[count:])
    node.stop()


def test_the_worker_hangs(graph: Graph, model: str) -> None:
    node = moving(graph, model, module="hanging_policy_node", image_timeout=0.4)
    node.frame = np.full_like(node.frame, (200, 0, 255))  # the actor hangs from now on
    assert node.until_stopped() < 0.4 + PROMPT_S
    node.wait(lambda: "the actor has been running" in node.reason())
    node.stop()


def test_the_reward_node_is_killed(graph: Graph, model: str, tmp_path: Path) -> None:
    write_video(tmp_path / "demo.mp4", [blob(x, 0.5) for x in np.linspace(-0.6, 0.3, 30)], 20)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    options = {"model": str(bundle), "goals_dir": str(tmp_path), "goal": "demo.mp4", "image_timeout": 0.5}
    reward = graph.start("v2r_ros.reward_node", options | {"providers": ["cpu"]})
    assert graph.transition("/reward_node", CONFIGURE), graph.log("reward_node")
    assert graph.transition("/reward_node", ACTIVATE)
    patient = {"reward_timeout": FOREVER, "reward_deadline": FOREVER}
    node = PolicyUnderTest(graph, model=model, reward="/reward_node/reward", reset_reward="", **patient).start()
    node.reward_on = False
    graph.spin(lambda: graph.node.count_subscribers("/image") == 2, 15.0, "both to listen")
    node.enable()
    node.until_moving()
    kept = len(node.actions)
    node.wait(lambda: len(node.actions) > kept + 20)
    assert moves(node.actions[-1])
    graph._processes.pop("reward_node")
    os.kill(reward.pid, signal.SIGKILL)
    reward.wait()
    assert node.until_stopped() < 2 * 2.0 + PROMPT_S  # a lease takes two seconds to run out
    node.wait(lambda: "not alive" in node.reason())
    node.stop()


def test_a_full_disk_ends_the_recording_and_not_the_motion(graph: Graph, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    node = PolicyUnderTest(graph, model=model, record_dir=str(folder), time_limit=0.3, auto_restart=True).start()
    # For twelve frames of 3 x 32 x 32 bytes; an episode has about seven.
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (12 * 3072, 12 * 3072))
    assert node.enable().success
    node.wait(lambda: "recording stopped" in node.log())
    node.wait(lambda: "recording stopped" in node.diagnostics[-1].message)
    assert node.diagnostics[-1].level == b"\x02"
    seen = len(node.episodes)
    node.until_moving()
    node.wait(lambda: len(node.episodes) > seen + 1)  # the robot goes on
    node.enable(False)
    node.until_stopped()
    node.stop()
    store = ReplayStore(folder, read_only=True)  # what was complete is there
    assert 1 <= len(store.episodes) <= 2
    assert all(np.isfinite(episode.notes["return_sum"]) for episode in store.episodes)
