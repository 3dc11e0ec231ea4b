from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from clip_writer import number_of, numbered, write_video
from PIL import Image
from robot_bags import START, STATE_TOPIC, episode, image, read_bag, reward, text, write_bag

from v2r_core.convert.bag_sink import BagSink, topic_name
from v2r_core.convert.journal import EpisodeJournal
from v2r_core.convert.parts import ConvertError, Episode, Layout, Sample, Vector, Wishes
from v2r_core.convert.run import Converted, ConvertTask, Kind, convert
from v2r_core.label.lerobot_copy import LABELS
from v2r_core.label.partial import PartialFolder
from v2r_core.label.table import Labels, read_labels
from v2r_core.look.labelled import open_labelled
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.source import open_video

SECOND = 1_000_000_000
STEP = SECOND // 20
FRONT = "observation.images.front"
NO_WISHES = Wishes()
FROM_ROBOT = Wishes(states=("/joint_states",), actions=("/command",), task_topic="/task")
FROM_OURS = Wishes(states=("/observation/state",), actions=("/action",), task_topic="/task")
PSNR_DB = 45.0
"""Of the pictures here, flat bars, after H.264 at crf 23 (and JPEG); measured are 57 and more."""


def made(source: Path, out: Path, to: Kind, wishes: Wishes = NO_WISHES, **options: bool) -> Converted:
    return convert(ConvertTask(source, out, to, wishes, **options))


def robot_bag(path: Path, labelled: bool = False) -> Path:
    """Two episodes of 20 and 15 frames."""
    rows = episode() + episode(START + 9 * SECOND, 15, number=1)
    rows += [text("put", START - SECOND), text("take", START + 8 * SECOND)]
    if labelled:
        for number, start, frames in ((0, START, 20), (1, START + 9 * SECOND, 15)):
            rows += [reward(10.0 * number + index, start + index * STEP, number) for index in range(frames)]
    return write_bag(path, rows)


def bag_sink(path: Path, layout: Layout) -> BagSink:
    return BagSink(path, layout, False, set(), True, EpisodeJournal(PartialFolder(path, False).journal))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("raw", [False, True])
def test_bag_to_lerobot_to_bag_keeps_frames_numbers_episodes_and_stamps(tmp_path: Path, raw: bool):
    made(robot_bag(tmp_path / "bag"), tmp_path / "dataset", "lerobot", FROM_ROBOT)
    made(tmp_path / "dataset", tmp_path / "again", "bag", raw=raw)
    old, new = read_bag(tmp_path / "bag"), read_bag(tmp_path / "again")
    topic = "/front/image_raw" if raw else "/front/image_raw/compressed"
    assert len(new[topic]) == 35
    stamps = [m.header.stamp.sec * SECOND + m.header.stamp.nanosec for _, m in new[topic]]
    wanted = [m.header.stamp.sec * SECOND + m.header.stamp.nanosec for _, m in old["/front/image_raw"]]
    assert np.abs(np.array(stamps) - np.array(wanted)).max() <= STEP // 2
    for (_, before), (_, after) in zip(old["/front/image_raw"], new[topic], strict=True):
        picture = before.data.reshape(before.height, before.width, 3)
        if raw:
            found = after.data.reshape(after.height, after.width, 3)
        else:
            found = np.asarray(Image.open(io.BytesIO(after.data.tobytes())))
    assert psnr(picture, found) > PSNR_DB
    assert new[STATE_TOPIC][0][1].name == ["shoulder", "elbow", "wrist"]
    assert [m.data for _, m in new["/task"]] == ["put", "take"]
    assert [(m.episode, time) for time, m in new["/episode"]] == [(0, stamps[19]), (1, stamps[34])]

    made(tmp_path / "again", tmp_path / "third", "lerobot", FROM_OURS)
    first, third = LeRobotFolder.open(tmp_path / "dataset"), LeRobotFolder.open(tmp_path / "third")
    assert (third.fps, third.episodes, third.cameras) == (first.fps, first.episodes, first.cameras)
    for number in range(2):
        assert third.tasks(number) == first.tasks(number)
        for name in ("observation.state", "action", "timestamp"):
            assert np.array_equal(first.column(number, name), third.column(number, name))
        with first.video(number, FRONT) as one, third.video(number, FRONT) as other:
            assert len(one) == len(other)
            assert [number_of(a) for a in one] == [number_of(b) for b in other]
    assert third.features["observation.state"].names == first.features["observation.state"].names


def test_rewards_survive_bag_lerobot_videos_bag_and_lerobot(tmp_path: Path):
    made(robot_bag(tmp_path / "bag", labelled=True), tmp_path / "dataset", "lerobot")
    made(tmp_path / "dataset", tmp_path / "videos", "videos")
    with open_labelled(tmp_path / "videos") as found:
        assert found.names == ("front/episode_000000.mp4", "front/episode_000001.mp4")
        for place, (offset, frames) in enumerate(((0, 20), (10, 15))):
            curve = found[place].labels.curve
            assert np.array_equal(curve.reward, offset + np.arange(frames))
            assert np.array_equal(curve.value, 2 * curve.reward)
            assert np.array_equal(curve.raw_reward, curve.reward / 4)
            assert np.array_equal(curve.subgoal_index, curve.reward // 8)
            assert set(curve.subgoal_count) == {5}
            assert np.allclose(curve.progress, curve.reward / 100)
            assert np.isnan(curve.uncertainty).all()
            with found[place].open_frames() as video:
                assert [number_of(frame) for frame in video] == [offset + index for index in range(frames)]
    made(tmp_path / "videos", tmp_path / "again", "bag", Wishes(images=("front",)))
    made(tmp_path / "again", tmp_path / "third", "lerobot")
    one, other = LeRobotFolder.open(tmp_path / "dataset"), LeRobotFolder.open(tmp_path / "third")
    assert other.cameras == (FRONT,)
    for number in range(2):
        for name in (*LABELS, "next.reward"):
            assert np.array_equal(one.column(number, name), other.column(number, name), equal_nan=True), name
    with open_labelled(tmp_path / "again") as labelled, open_labelled(tmp_path / "third") as dataset:
        assert len(labelled) == len(dataset) == 2
        for name in ("reward", "raw_reward", "subgoal_index", "subgoal_count"):
            ours, theirs = (getattr(each[1].labels.curve, name) for each in (labelled, dataset))
            assert np.array_equal(ours, theirs), name
        assert labelled[1].labels.curve.subgoal_index.max() == 3


def test_videos_are_brought_to_one_rate(tmp_path: Path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "2.mp4", count=30)
    write_video(folder / "10.mp4", count=10)
    result = made(folder, tmp_path / "dataset", "lerobot", Wishes(fps=15, images=("top",), task="wave"))
    dataset = LeRobotFolder.open(tmp_path / "dataset")
    assert (result.kind, dataset.fps, dataset.cameras) == ("videos", 15, ("observation.images.top",))
    assert [dataset.length(number) for number in range(2)] == [15, 5]
    with dataset.video(0) as video:
        assert [number_of(frame) for frame in video] == list(range(0, 30, 2))
    assert dataset.tasks(1) == ("wave",)
    made(folder, tmp_path / "fast", "lerobot", Wishes(fps=60))
    with LeRobotFolder.open(tmp_path / "fast").video(1) as video:
        assert [number_of(frame) for frame in video] == [index // 2 for index in range(19)]


def test_bag_to_videos_at_a_constant_rate(tmp_path: Path):
    rows = [image(index, START + index * STEP) for index in range(20) if index != 9]
    bag = write_bag(tmp_path / "bag", rows)
    result = made(bag, tmp_path / "videos", "videos", Wishes(images=("/front/image_raw",)))
    assert (result.episodes, result.frames) == (1, 20)
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["front"]
    with open_video(tmp_path / "videos/front/episode_000000.mp4") as video:
        assert video.fps == 20
        # The image that is missing is held, and not taken from the future.
        assert [number_of(frame) for frame in video] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, *range(10, 20)]


def test_pictures_with_odd_sides_become_a_video(tmp_path: Path):
    rows = [image(index, START + index * STEP, height=47, width=95) for index in range(5)]
    bag = write_bag(tmp_path / "bag", rows)
    made(bag, tmp_path / "videos", "videos")
    with open_video(tmp_path / "videos/front/episode_000000.mp4") as video:
        assert video[2].shape == (47, 95, 3)
        assert psnr(video[2], numbered(2, 47, 95)) > PSNR_DB
    with pytest.raises(ConvertError, match="even sides"):
        made(bag, tmp_path / "dataset", "lerobot")


def test_a_video_that_is_damaged_is_left_out_and_the_bag_has_nothing_of_it(tmp_path: Path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abc":
        write_video(folder / f"{name}.mp4", count=20)
    whole = (folder / "b.mp4").read_bytes()
    (folder / "b.mp4").write_bytes(whole[: len(whole) // 2])
    result = made(folder, tmp_path / "bag", "bag")
    assert list(result.failed) == ["b.mp4"]
    found = read_bag(tmp_path / "bag")
    assert len(found["/camera/image_raw/compressed"]) == 40
    assert [m.episode for _, m in found["/episode"]] == [0, 1]


def test_an_episode_that_breaks_off_leaves_no_message_and_no_video(tmp_path: Path):
    bags = tmp_path / "bags"
    bad = episode(number=1)
    bad = [*bad, image(0, START + 40 * STEP, height=96, width=96)]
    write_bag(bags / "a", episode(number=2))
    write_bag(bags / "b", [row for row in bad if row[1] != "/episode"])
    made(bags, tmp_path / "videos", "videos", Wishes(images=("/front/image_raw",), max_age=9.0))
    assert [path.name for path in (tmp_path / "videos/front").iterdir()] == ["episode_000000.mp4"]


def test_an_episode_is_taken_back_from_a_bag(tmp_path: Path):
    layout = Layout(10, {FRONT: (48, 96)}, {"action": Vector(2)})
    sink = bag_sink(tmp_path / "bag", layout)

    def begin(number: int, frames: int) -> None:
        sink.begin(Episode(f"{number}", f"task {number}", 0, frames, lambda: iter(()), key=f"recording/{number}"))
        for _ in range(frames):
            sink.add(Sample({FRONT: numbered(number)}, {"action": np.float32([number, 0.1])}))

    begin(1, 4)
    sink.end()
    begin(2, 3)
    sink.discard()
    begin(3, 2)
    sink.end()
    assert not (tmp_path / "bag").exists()
    sink.finish()
    found = read_bag(tmp_path / "bag")
    assert [m.data for _, m in found["/task"]] == ["task 1", "task 3"]
    assert [m.data[0] for _, m in found["/action"]] == [1, 1, 1, 1, 3, 3]
    assert found["/action"][0][1].data[1] == np.float32(0.1)
    times = [time for time, _ in found["/front/image_raw"]]
    assert np.diff(times).tolist() == [SECOND // 10] * 3 + [10 * SECOND, SECOND // 10]
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_features_become_topics_that_ros_can_play(tmp_path: Path):
    names = ("observation.environment state", "observation.state.vel-x", "1st..number", "action")
    assert [topic_name(name) for name in names] == [
        "/observation/environment_state",
        "/observation/state/vel_x",
        "/_1st/number",
        "/action",
    ]
    layout = Layout(10, {"observation.images.cam-high": (48, 96)}, {"a b": Vector(1)})
    sink = bag_sink(tmp_path / "bag", layout)
    sink.begin(Episode("0", "", 0, 1, lambda: iter(()), key="recording/0"))
    sink.add(Sample({"observation.images.cam-high": numbered(1)}, {"a b": np.float32([2])}))
    sink.end()
    sink.finish()
    assert read_bag(tmp_path / "bag").keys() == {"/cam_high/image_raw", "/a_b", "/task", "/episode"}
    for taken in ("task", "a-b"):
        double = Layout(10, layout.cameras, {"a b": Vector(1), taken: Vector(1)})
        with pytest.raises(ConvertError, match=r"two features would be the topic /(task|a_b); rename"):
            bag_sink(tmp_path / "other", double)
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_a_dataset_that_says_its_channels_first_is_said_in_the_right_size(tmp_path: Path):
    made(robot_bag(tmp_path / "bag"), tmp_path / "dataset", "lerobot")
    info = tmp_path / "dataset/meta/info.json"
    features = json.loads(info.read_text())
    features["features"][FRONT] |= {"shape": [3, 48, 96], "names": ["channels", "height", "width"]}
    info.write_text(json.dumps(features))
    result = made(tmp_path / "dataset", tmp_path / "again", "videos")
    assert result.layout is not None
    assert result.layout.cameras[FRONT] == (48, 96)


@pytest.mark.parametrize("to", ["lerobot", "videos", "bag"])
def test_whoever_interrupts_finds_nothing_half(tmp_path: Path, to: Kind):
    source = robot_bag(tmp_path / "bag", labelled=True)
    if to == "bag":
        made(source, tmp_path / "dataset", "lerobot")
        source = tmp_path / "dataset"
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupt(frames: int, _: int) -> None:
        if frames == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(ConvertTask(source, tmp_path / "out", to), interrupt)
    # The first episode is kept, and nothing has the final name.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out.partial"])
    assert sorted(path.name for path in (tmp_path / "out.partial").iterdir()) == ["journal", "lock"]
    result = made(source, tmp_path / "out", to)
    assert (result.frames, result.resumed) == (35, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])


def test_labels_of_another_length_than_the_video_are_refused(tmp_path: Path):
    made(robot_bag(tmp_path / "bag", labelled=True), tmp_path / "videos", "videos")
    table = tmp_path / "videos/labels/front/episode_000001.mp4.parquet"
    labels: Labels = read_labels(table)
    assert len(labels) == 15
    table.write_bytes((tmp_path / "videos/labels/front/episode_000000.mp4.parquet").read_bytes())
    result = made(tmp_path / "videos", tmp_path / "dataset", "lerobot")
    assert "15 frames and 20 labels" in result.failed["front/episode_000001.mp4"]
    assert result.episodes == 1
