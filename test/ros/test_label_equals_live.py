"""What `v2r label` writes into a bag is what the live node says of the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from live_recording import record_without_drops
from rclpy.serialization import deserialize_message, serialize_message
from recordings import (
    COMPRESSED,
    IMAGE_TOPIC,
    RAW,
    SECOND,
    START,
    STEP,
    images,
    mirrored,
    raw,
    read_bag,
    square_frames,
    write_bag,
)
from sensor_msgs.msg import CompressedImage, Image
from toy_rewards import write_learned_bundle

from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.deploy import description, judging
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.cameras import MAX_SKEW
from v2r_core.deploy.goals import read_goal
from v2r_core.deploy.stream import Scorer
from v2r_core.label.messages import Messages
from v2r_core.label.rosbag import BagTask, label_bag
from v2r_core.video.source import open_video
from v2r_core.video.writing import write_video
from v2r_msgs.msg import Reward, RewardInfo
from v2r_ros import parameters
from v2r_ros.bags import read_rewards
from v2r_ros.images import compressed_to_rgb, message_to_rgb
from v2r_ros.scoring import MessageScorer

TOLERANCE = 1e-5
WRIST = "/wrist/image"
FLOATS = ("reward", "raw_reward", "value", "progress", "uncertainty", "success_probability")
EXACT = ("status", "episode", "frame_count", "subgoal_index", "subgoal_count", "goal_id", "dropped_frames")


def live_scorer(
    model: Path, reward: str | None, goal: str | None, cameras: Sequence[str] = ("",), rule: str = "mean"
) -> MessageScorer:
    """What the node makes of its parameters."""

    def decode(message: Image | CompressedImage):
        if isinstance(message, CompressedImage):
            return compressed_to_rgb(message, 1 << 25, 1 << 25)
        return message_to_rgb(message, 1 << 25)

    parameters = {} if len(cameras) == 1 else {"cameras": rule}
    scorer = Scorer(load_bundle(model), reward, parameters, cameras=len(cameras), paced=True)
    holder = MessageScorer(scorer, decode, cameras=cameras)
    holder.set_scale(1.0, 0.0)
    if goal is not None:
        holder.set_goal(read_goal(scorer, goal, cameras), goal)
    holder.begin()
    return holder


def live_answers(holder: MessageScorer, rows: list, topics: Sequence[str]) -> list[tuple[int, Reward]]:
    """The answers to the images of a bag, each with the time at which it was recorded."""
    answers = []
    newest: list = [None] * len(topics)
    for time, topic, kind, data in rows:
        if topic not in topics:
            continue
        message = deserialize_message(data, Image if kind == RAW else CompressedImage)
        newest[topics.index(topic)] = message
        if topic == topics[0] and holder.due(message, time):
            answers.append((time, holder.score(tuple(newest), time).message))
    return answers


def assert_equal(
    bag: Path,
    out: Path,
    model: Path,
    reward: str | None,
    goal: str | None,
    cameras: Mapping[str, str] | None = None,
    rule: str = "mean",
) -> list[Reward]:
    """Labels a bag and compares; gives the labels. `cameras` are topics by name."""
    topics = [] if cameras is None else [f"{topic}={name}" for name, topic in cameras.items()]
    task = BagTask(bag, out, tuple(topics), goal=goal, camera_rule=rule)
    label_bag(task, load_bundle(model), reward)
    cameras = cameras or {"": IMAGE_TOPIC}
    scorer = live_scorer(model, reward, goal, tuple(cameras), rule)
    live = live_answers(scorer, read_bag(bag).rows, list(cameras.values()))
    rewards = [(time, data) for time, topic, _, data in read_bag(out).rows if topic == "/reward_node/reward"]
    labels = [(time, deserialize_message(data, Reward)) for time, data in rewards]
    assert [time for time, _ in labels] == [time for time, _ in live]
    for number, ((_, label), (_, answer)) in enumerate(zip(labels, live, strict=True)):
        assert label.header == answer.header, number
        for name in EXACT:
            assert getattr(label, name) == getattr(answer, name), (number, name)
        assert list(label.component_names) == list(answer.component_names), number
        found, wanted = (
            [*(getattr(message, name) for name in FLOATS), *message.component_values] for message in (label, answer)
        )
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, err_msg=f"image {number}")
    return [label for _, label in labels]


def troubles() -> list:
    """All that can happen to a stream: a gap, a restart, late and broken images, one from nowhere, other sizes."""
    frames = square_frames(40)
    rows = images(frames[:10])
    rows += images(frames[10:20], START + 3 * SECOND)  # a gap of more than a second
    late = images(frames[5:7], START + 3 * SECOND + 2 * STEP)
    rows += [(START + 3 * SECOND + 10 * STEP + 5, *row[1:]) for row in late]
    noise = np.random.default_rng(1).integers(0, 256, frames[0].shape, dtype=np.uint8)
    rows += images([noise], START + 4 * SECOND)
    rows += images([frame.repeat(2, 0).repeat(2, 1) for frame in frames[20:24]], START + 4 * SECOND + STEP)
    broken = START + 4 * SECOND + 6 * STEP
    rows.append((broken, IMAGE_TOPIC, RAW, raw(frames[24], broken, step=3)))
    rows += images(frames[25:30], broken + STEP)
    rows += images(frames[30:32], broken + 20 * SECOND)[:1]
    ahead = broken + 40 * SECOND
    rows.append((broken + 21 * SECOND, IMAGE_TOPIC, RAW, raw(frames[31], ahead)))  # from the future
    again = images(frames[:20], START - 100 * SECOND)  # the stream starts again
    rows += [(broken + 22 * SECOND + index * STEP, *row[1:]) for index, row in enumerate(again)]
    rows += [(broken + 30 * SECOND + i * STEP, IMAGE_TOPIC, RAW, raw(f, 0)) for i, f in enumerate(frames[20:24])]
    return rows


@pytest.mark.parametrize("reward", ["vip", "uvd", "pixel"])
def test_all_troubles_of_a_stream(tmp_path: Path, tiny_bundle: Path, clip: Path, reward: str) -> None:
    bag = write_bag(tmp_path / "run", troubles())
    labels = assert_equal(bag, tmp_path / "labelled", tiny_bundle, reward, str(clip))
    assert {label.status for label in labels} == {
        Reward.STATUS_OK,
        Reward.STATUS_WARMING_UP,
        Reward.STATUS_BAD_IMAGE,
        Reward.STATUS_OUT_OF_DISTRIBUTION,
    }
    assert labels[-1].episode == 1


def two_cameras() -> list:
    """All troubles of one camera, and a second one that is slower, late now and then, silent for a while, broken."""
    rows, frames = troubles(), square_frames(40)
    stamps = [time - 4_000_000 for time, *_ in rows]
    for number, stamp in enumerate(stamps[::2]):
        if 6 <= number < 10:  # silent
            continue
        seen = stamp - (STEP if number % 3 else 5 * STEP)
        data = raw(mirrored(frames)[number % 40], seen, step=3 if number == 20 else None)
        rows.append((stamp + 1_000_000, WRIST, RAW, data))
    return rows


@pytest.mark.parametrize("rule", ["mean", "min"])
@pytest.mark.parametrize("reward", ["vip", "uvd"])
def test_several_cameras(tmp_path: Path, tiny_bundle: Path, reward: str, rule: str) -> None:
    demonstrations = {"front": square_frames(40), "wrist": mirrored(square_frames(40))}
    for name, frames in demonstrations.items():
        write_video(tmp_path / f"{name}.mp4", frames, 30.0)
    goal = str(tmp_path / "{camera}.mp4")
    bag = write_bag(tmp_path / "run", two_cameras())
    cameras = {"front": IMAGE_TOPIC, "wrist": WRIST}
    labels = assert_equal(bag, tmp_path / "labelled", tiny_bundle, reward, goal, cameras, rule)
    assert {label.status for label in labels} >= {
        Reward.STATUS_OK,
        Reward.STATUS_WARMING_UP,
        Reward.STATUS_BAD_IMAGE,
        Reward.STATUS_STALE_IMAGE,
    }
    (first, *_) = (row for row in read_bag(tmp_path / "labelled").rows if row[1] == "/reward_node/info")
    info = deserialize_message(first[3], RewardInfo)
    assert (info.component_names, info.goal_source) == (["front", "wrist"], goal)


@pytest.mark.parametrize("rate", [None, 10.0])
def test_several_cameras_of_a_learned_reward(tmp_path: Path, rate: float | None) -> None:
    model = write_learned_bundle(tmp_path / "bundle", "viper", rate)
    bag = write_bag(tmp_path / "run", two_cameras())
    cameras = {"front": IMAGE_TOPIC, "wrist": WRIST}
    labels = assert_equal(bag, tmp_path / "labelled", model, None, None, cameras)
    assert {Reward.STATUS_OK, Reward.STATUS_STALE_IMAGE} <= {label.status for label in labels}


@pytest.mark.parametrize(
    ("reward", "rate"), [("time", None), ("viper", None), ("viper", 10.0), ("diffusion", None), ("diffusion", 10.0)]
)
def test_learned_rewards(tmp_path: Path, reward: str, rate: float | None) -> None:
    """Windows of frames, of which a camera of 30 Hz gives too many: those that have no turn have no label either."""
    model = write_learned_bundle(tmp_path / "bundle", reward, rate)
    for name, rows in {"calm": images(square_frames(60)), "troubles": troubles()}.items():
        bag = write_bag(tmp_path / name, rows)
        labels = assert_equal(bag, tmp_path / f"{name}_labelled", model, None, None)
        assert Reward.STATUS_OK in {label.status for label in labels}
        assert (len(labels) < len(rows)) == (rate is not None)


@pytest.mark.parametrize("kind", [RAW, COMPRESSED])
@pytest.mark.parametrize("reward", ["vip", "uvd"])
def test_the_shipped_model(tmp_path: Path, reward: str, kind: str) -> None:
    """Also where images are encoded in batches by one and one by one by the other."""
    with open_video(CLIPS / "half.mp4") as video, open_video(CLIPS / "success.mp4") as demonstration:
        frames = [video[index] for index in range(0, 60, 4)]
        shown = [demonstration[index] for index in range(0, len(demonstration), 8)]
    scorer = Scorer(load_bundle(DEFAULT_BUNDLE), reward)
    scorer.goal_from_video(shown, "success").save(tmp_path / "goal.safetensors")
    bag = write_bag(tmp_path / "run", images(frames, kind=kind))
    labels = assert_equal(bag, tmp_path / "labelled", DEFAULT_BUNDLE, reward, str(tmp_path / "goal.safetensors"))
    assert sum(label.status == Reward.STATUS_OK for label in labels) >= 10


def test_constants_and_defaults_are_those_of_the_node() -> None:
    defaults = {spec.name: spec.default for spec in parameters.REWARD_NODE}
    assert defaults["image_timeout"] == judging.MAX_GAP
    assert defaults["max_camera_skew"] == MAX_SKEW
    assert defaults["max_stamp_future"] == judging.MAX_STAMP_FUTURE
    assert (defaults["reward_scale"], defaults["reward_clip"]) == (1.0, 0.0)
    assert description.KIND_VALUE == RewardInfo.KIND_VALUE
    assert description.KIND_STEP_REWARD == RewardInfo.KIND_STEP_REWARD


def test_ros_reads_what_was_serialised_without_it(tiny_bundle: Path) -> None:
    scorer = Scorer(load_bundle(tiny_bundle))
    scorer.set_goal(scorer.goal_from_video(square_frames(), "square"))
    fields = description.reward_info_fields(scorer, "square.mp4", 1.0, 0.0)
    data = Messages("/reward_node").info(START + 1, fields)
    info = deserialize_message(data, RewardInfo)
    assert (info.header.stamp.sec, info.header.stamp.nanosec) == (START // SECOND, 1)
    fields["uncertainty_threshold"] = float(np.float32(fields["uncertainty_threshold"]))
    assert info == RewardInfo(header=info.header, **fields)
    assert (info.goal_id, info.goal_source, info.reward_clip) == ("square", "square.mp4", math.inf)
    assert len(serialize_message(info)) == len(data)


@pytest.mark.slow
def test_a_bag_that_the_live_node_was_recorded_in(tmp_path: Path) -> None:
    """The real node, the real recorder: labels of the recorded images are the recorded rewards."""
    bag = record_without_drops(tmp_path)
    live = read_rewards(bag)
    task = BagTask(bag, tmp_path / "labelled", goal=str(CLIPS / "success.mp4"), namespace="/labels")
    label_bag(task, load_bundle(DEFAULT_BUNDLE))
    labels = read_rewards(tmp_path / "labelled", "/labels/reward")
    assert len(labels) == 180
    rows = {stamp: row for row, stamp in enumerate(labels.stamps)}
    matched = 0
    for index, stamp in enumerate(live.stamps):
        if live.status[index] == Reward.STATUS_STALE_IMAGE or stamp not in rows:
            continue
        matched += 1
        row = rows[stamp]
        assert labels.status[row] == live.status[index]
        for name in ("reward", "value", "progress", "uncertainty"):
            found, wanted = getattr(labels.curve, name)[row], getattr(live.curve, name)[index]
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE, err_msg=f"{name} of frame {index}")
    assert matched >= 176
