"""The node with rewards that were learned: their windows, their pace, and the same numbers as offline."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from node_harness import NodeUnderTest, make_graph
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from synthetic_video import moving_square
from toy_rewards import LENGTH, write_learned_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.overlay import draw_overlay
from v2r_msgs.msg import Reward, RewardInfo
from v2r_msgs.srv import SetGoal
from v2r_ros import qos
from v2r_ros.images import message_to_rgb

FRAMES = moving_square()
PERIOD = 0.1
WARMING_UP, OK = Reward.STATUS_WARMING_UP, Reward.STATUS_OK


class Video(list):
    """Frames a period apart."""

    def __init__(self, frames: list[np.ndarray], period: float = PERIOD) -> None:
        super().__init__(frames)
        self.stamps = np.arange(len(frames)) * period


@contextmanager
def running(tmp_path: Path, bundle: Path, **parameters: object) -> Iterator[NodeUnderTest]:
    """An active node that must end well."""
    with make_graph(tmp_path) as graph:
        node = NodeUnderTest(graph, model=str(bundle), providers=["cpu"], diagnostics_period=0.2, **parameters)
        assert node.configure(), node.log()
        assert node.activate(), node.log()
        yield node
        assert graph.stop("reward_node") == {"reward_node": 0}


def recently() -> float:
    """A moment whose following minute is over, so that no stamp lies in the future."""
    return math.floor(time.time()) - 60.0


def play(node: NodeUnderTest, frames: list[np.ndarray], period: float, start: float | None = None) -> list[Reward]:
    start = recently() if start is None else start
    return [node.answer(frame, start + number * period) for number, frame in enumerate(frames)]


def diagnosed(node: NodeUnderTest) -> tuple[str, dict[str, str]]:
    """Message and values of the newest diagnostics; nothing before the first ones."""
    if not node.diagnostics:
        return "", {}
    newest = node.diagnostics[-1].status[0]
    return newest.message, {pair.key: pair.value for pair in newest.values}


def check_equal(answers: list[Reward], bundle: Path, video: Video) -> None:
    offline = Scorer(load_bundle(bundle), providers=["cpu"]).score(video)
    assert [answer.status for answer in answers] == offline.status.tolist()
    for name in ("reward", "raw_reward", "value", "progress", "uncertainty"):
        live = [getattr(answer, name) for answer in answers]
        expected = getattr(offline.curve, name)
        # Messages hold float32.
        np.testing.assert_allclose(live, expected, rtol=1e-6, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("reward", ["time", "viper", "diffusion"])
def test_live_equals_offline(tmp_path: Path, reward: str) -> None:
    bundle = write_learned_bundle(tmp_path / "bundle", reward, None if reward == "time" else 1 / PERIOD)
    with running(tmp_path, bundle) as node:
        overlays: list[Image] = []
        node.graph.node.create_subscription(Image, "/reward_node/overlay", overlays.append, qos.image_subscription(""))
        answers = play(node, FRAMES[:20], PERIOD)
        check_equal(answers, bundle, Video(FRAMES[:20]))
        warm = max(LENGTH[reward] - 1, 1)
        assert [answer.status for answer in answers] == [WARMING_UP] * warm + [OK] * (20 - warm)
        assert all(math.isnan(answer.reward) for answer in answers[:warm])
        assert np.std([answer.reward for answer in answers[warm:]]) > 1e-3
        node.wait(lambda: bool(node.infos) and bool(overlays), what="info and overlay")
        expected = RewardInfo.KIND_VALUE if reward == "time" else RewardInfo.KIND_STEP_REWARD
        assert (node.infos[-1].kind, node.infos[-1].reward_name) == (expected, reward)
        shown = {answer.header.stamp.sec * 10**9 + answer.header.stamp.nanosec: answer for answer in answers}
        newest = overlays[-1].header.stamp
        answer = shown[newest.sec * 10**9 + newest.nanosec]
        expected_picture = draw_overlay(
            FRAMES[answers.index(answer)],
            reward=answer.reward,
            progress=answer.progress,
            value=answer.value,
            subgoal_index=0,
            subgoal_count=0,
            status=Status(answer.status).name.lower(),
        )
        np.testing.assert_array_equal(message_to_rgb(overlays[-1], 1 << 22), expected_picture)


@pytest.mark.parametrize("reward", ["viper", "diffusion"])
def test_images_that_come_too_early_get_no_message_and_are_not_dropped(tmp_path: Path, reward: str) -> None:
    bundle = write_learned_bundle(tmp_path / "bundle", reward, 1 / PERIOD)
    start = recently()
    with running(tmp_path, bundle, image_timeout=0.5) as node:
        answers = []
        for number, frame in enumerate(FRAMES[:24]):
            stamp = start + number * PERIOD / 3
            if number % 3:
                node.send(frame, stamp)
                until = time.monotonic() + 0.03
                node.wait(lambda until=until: time.monotonic() > until)
            else:
                answers.append(node.answer(frame, stamp))
        check_equal(answers, bundle, Video(FRAMES[:24:3]))
        assert [reward.frame_count for reward in node.rewards] == list(range(1, 9))
        assert node.rewards[-1].dropped_frames == 0
        expected = {"images received": "24", "images left out": "16", "frames dropped": "0", "frames answered": "8"}
        node.wait(lambda: expected.items() <= diagnosed(node)[1].items(), what="counts in the diagnostics")
        assert "slower" not in diagnosed(node)[0]
        assert node.rewards[-1].episode == 0


def test_images_before_their_turn_keep_the_camera_alive(tmp_path: Path) -> None:
    """The window wants a frame every 3 s, the camera counts as lost after 0.5 s."""
    bundle = write_learned_bundle(tmp_path / "bundle", "viper", 1 / 3)
    with running(tmp_path, bundle, image_timeout=0.5) as node:
        node.answer(FRAMES[0])
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            node.send(FRAMES[1])
            pause = time.monotonic() + 0.05
            node.wait(lambda pause=pause: time.monotonic() > pause)
        assert [reward.status for reward in node.rewards] == [WARMING_UP]
        message, values = diagnosed(node)
        assert message == "OK"
        assert float(values["image age [s]"]) < 0.5
        node.wait(lambda: node.rewards[-1].status == Reward.STATUS_STALE_IMAGE, what="the end of the camera")


def test_a_camera_that_is_too_slow(tmp_path: Path) -> None:
    bundle = write_learned_bundle(tmp_path / "bundle", "viper", 1 / PERIOD)
    with running(tmp_path, bundle) as node:
        answers = play(node, FRAMES[:8], 3 * PERIOD)
        assert {answer.status for answer in answers} == {WARMING_UP}
        assert all(math.isfinite(answer.uncertainty) and math.isnan(answer.reward) for answer in answers)
        node.wait(lambda: "too slow" in node.log(), what="a complaint")
        node.wait(lambda: "slower than the 10 Hz of the reward's window" in diagnosed(node)[0], what="a warning")
        assert "0.300 s apart" in node.log() and "wants 0.100 s" in node.log()
        assert "Traceback" not in node.log()


def test_reset_and_a_restarted_camera_fill_the_window_anew(tmp_path: Path) -> None:
    bundle = write_learned_bundle(tmp_path / "bundle", "diffusion", 1 / PERIOD)
    start = recently()
    with running(tmp_path, bundle) as node:
        play(node, FRAMES[:4], PERIOD, start)
        assert node.graph.call(Trigger, "/reward_node/reset", Trigger.Request()).success
        again = play(node, FRAMES[4:9], PERIOD, start + 4 * PERIOD)
        # The draws begin anew, too, so an episode is scored as if nothing had been before it.
        check_equal(again, bundle, Video(FRAMES[4:9]))
        assert [answer.status for answer in again[:2]] == [WARMING_UP, OK]
        episode = again[0].episode
        restarted = play(node, FRAMES[:5], PERIOD, start - 30.0)
        check_equal(restarted, bundle, Video(FRAMES[:5]))
        assert {answer.episode for answer in restarted} == {episode + 1}


TOKENIZER = ["--size", "16", "--latent", "8", "--codes", "16", "--adversarial-weight", "0", "--perceptual", "none"]
CHANNELS = {"tiny": ["8", "16"], "tiny-diffusion-reward": ["32", "32"]}
SIZES = {
    "time-rewarder": ["--encoder", "random:timm:resnet10t", "--size", "32"],
    "viper": ["--frames", "3", "--stride", "1", "--width", "24", "--heads", "2", "--mlp", "48"],
    "diffusion-reward": [
        *("--size", "16", "--channels", *CHANNELS["tiny-diffusion-reward"], "--latent", "8", "--codes", "16"),
        *("--width", "16", "--depth", "1", "--heads", "2", "--condition-width", "12", "--stride", "1"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "tokenizer"), [("time-rewarder", ""), ("viper", "tiny"), ("diffusion-reward", "tiny-diffusion-reward")]
)
def test_what_was_trained_is_run(method: str, tokenizer: str, tmp_path: Path, clip: Path) -> None:
    """From a video to rewards on a topic, at the video's rate."""
    pytest.importorskip("accelerate", reason="the training side is not installed")
    from v2r_core.cli.main import main

    def train(name: str, preset: str, *words: str) -> Path:
        out = tmp_path / name
        common = ["--preset", preset, "--data", str(clip), "--out", str(out), "--workers", "0", "--cpu"]
        assert main(["train", name, *common, "--epochs", "2", "--batch-size", "8", "--stop-after", "3", *words]) == 0
        return out

    sizes = SIZES[method]
    if tokenizer:
        sizes = [*sizes, "--tokenizer", str(train("vqgan", tokenizer, *TOKENIZER, "--channels", *CHANNELS[tokenizer]))]
    bundle = tmp_path / "bundle"
    assert main(["export", str(train(method, "tiny", *sizes)), "--out", str(bundle)]) == 0
    rate = load_bundle(bundle).manifest.reward.rate
    assert rate is None if method == "time-rewarder" else rate == pytest.approx(30.0, rel=0.01)
    with running(tmp_path, bundle) as node:
        answers = play(node, FRAMES[:12], 1 / 30)
        check_equal(answers, bundle, Video(FRAMES[:12], 1 / 30))
        assert answers[0].status == WARMING_UP
        assert answers[-1].status == OK
        assert node.infos[-1].model_sha256 == load_bundle(bundle).sha256


def test_a_reward_that_takes_no_goal_refuses_one(tmp_path: Path) -> None:
    bundle = write_learned_bundle(tmp_path / "bundle", "viper", 1 / PERIOD)
    with running(tmp_path, bundle) as node:
        play(node, FRAMES[:3], PERIOD)
        request = SetGoal.Request(source=SetGoal.Request.FROM_CURRENT_FRAME)
        response = node.graph.call(SetGoal, "/reward_node/set_goal", request)
        assert response.result == SetGoal.Response.RESULT_WRONG_STATE
        assert "viper takes no goal" in response.message
