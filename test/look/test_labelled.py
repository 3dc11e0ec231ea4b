"""What is labelled opens in one way, wherever it is kept, and each row has its own frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clip_writer import number_of, numbered, write_video
from labelled_sets import rising, write_video_set
from recordings import (
    COMPRESSED,
    IMAGE_TOPIC,
    SECOND,
    START,
    STEP,
    clutter,
    episode_end,
    images,
    raw,
    read_bag,
    write_bag,
)
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from v2r_core.deploy.bundle import load_bundle
from v2r_core.label.rosbag import BagTask, label_bag
from v2r_core.look.labelled import open_labelled
from v2r_core.look.labelled_set import NotLabelledError
from v2r_core.video.video import VideoError

REWARD = "/reward_node/reward"


def labelled_bag(tmp_path: Path, bundle: Path, rows: list, name: str = "run", **options) -> Path:
    storage = {key: options.pop(key) for key in ("storage", "mode") if key in options}
    bag = write_bag(tmp_path / name, rows, **storage)
    label_bag(BagTask(bag, tmp_path / f"{name}_labelled", **options), load_bundle(bundle))
    return tmp_path / f"{name}_labelled"


def two_episodes(kind: str = "sensor_msgs/msg/Image", topic: str = IMAGE_TOPIC) -> list:
    second = START + 100 * SECOND
    first = images([numbered(n) for n in range(20)], kind=kind, topic=topic)
    rest = images([numbered(100 + n) for n in range(15)], second, kind, topic)
    return [*first, episode_end(START + 25 * STEP), *rest]


@pytest.mark.parametrize(
    ("storage", "mode", "kind"),
    [
        (StoragePlugin.MCAP, CompressionMode.NONE, "sensor_msgs/msg/Image"),
        (StoragePlugin.MCAP, CompressionMode.STORAGE, COMPRESSED),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE, "sensor_msgs/msg/Image"),
    ],
)
def test_episodes_of_a_bag(tmp_path: Path, tiny_bundle: Path, storage, mode, kind) -> None:
    bag = labelled_bag(tmp_path, tiny_bundle, two_episodes(kind) + clutter(), storage=storage, mode=mode)
    messages = read_bag(bag).messages(REWARD)
    with open_labelled(bag) as labelled:
        assert (labelled.kind, labelled.names) == ("bag", ("episode 0", "episode 1"))
        assert labelled.about["model"] == "tiny" and labelled.about["image topic"] == IMAGE_TOPIC
        seen = 0
        for episode, numbers in zip(labelled, (range(20), range(100, 115)), strict=True):
            own = messages[seen : seen + len(numbers)]
            seen += len(numbers)
            labels = episode.labels
            for field in ("reward", "raw_reward", "value", "progress", "uncertainty", "subgoal_index", "subgoal_count"):
                np.testing.assert_array_equal(getattr(labels.curve, field), [getattr(m, field) for m in own])
            assert labels.status.tolist() == [m.status for m in own]
            stamps = [m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in own]
            np.testing.assert_allclose(labels.stamps, stamps, atol=1e-6)
            assert (labels.origin.goal_source, episode.goal) == ("last", own[0].goal_id)
            with episode.open_frames() as frames:
                assert len(frames) == len(labels)
                assert [number_of(frame) for frame in frames] == list(numbers)
                assert number_of(frames[-1]) == numbers[-1] and number_of(frames[3]) == numbers[3]
            picture = episode.goal_picture()
            assert picture is not None and number_of(picture) == numbers[-1]
        assert seen == len(messages)
    with pytest.raises(IndexError):
        labelled[2]


def test_one_file_of_a_bag(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = labelled_bag(tmp_path, tiny_bundle, two_episodes())
    with open_labelled(next(bag.glob("*.mcap"))) as labelled:
        assert len(labelled) == 2
        assert number_of(labelled[1].open_frames()[0]) == 100


def test_images_without_stamps(tmp_path: Path, tiny_bundle: Path) -> None:
    rows = [(START + n * STEP, IMAGE_TOPIC, "sensor_msgs/msg/Image", raw(numbered(n), 0)) for n in range(12)]
    bag = labelled_bag(tmp_path, tiny_bundle, rows)
    with open_labelled(bag) as labelled:
        (episode,) = labelled
        assert [number_of(frame) for frame in episode.open_frames()] == list(range(12))
        np.testing.assert_allclose(np.diff(episode.labels.stamps), STEP / SECOND, atol=1e-6)


def test_the_camera_is_the_one_that_was_labelled(tmp_path: Path, tiny_bundle: Path) -> None:
    """Another camera, earlier in the alphabet, has other pictures with other stamps and with the same ones."""
    other = images([numbered(200)] * 12, START - STEP // 2, topic="/a")
    same = [(time, "/b", kind, data) for time, _, kind, data in images([numbered(201)] * 12)]
    rows = [*other, *same, *images([numbered(n) for n in range(12)])]
    bag = labelled_bag(tmp_path, tiny_bundle, rows, image_topics=(IMAGE_TOPIC,))
    with open_labelled(bag) as labelled:
        assert labelled.about["image topic"] == IMAGE_TOPIC
        assert number_of(labelled[0].open_frames()[5]) == 5
    with open_labelled(f"{bag}:/b") as labelled:
        assert number_of(labelled[0].open_frames()[5]) == 201


def test_an_image_that_is_missing_is_said_when_it_is_asked_for(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = labelled_bag(tmp_path, tiny_bundle, images([numbered(n) for n in range(12)]))
    rows = read_bag(bag).rows
    lost = [row for row in rows if row[1] == IMAGE_TOPIC][4]
    with open_labelled(write_bag(tmp_path / "holes", [row for row in rows if row != lost])) as labelled:
        frames = labelled[0].open_frames()
        assert len(labelled[0].labels) == 12
        with pytest.raises(VideoError, match="row 4 has no image"):
            frames[4]
        assert number_of(frames[5]) == 5
    without = [row for row in rows if row[1] != IMAGE_TOPIC]
    with open_labelled(write_bag(tmp_path / "blind", without)) as labelled:
        assert len(labelled[0].labels) == 12
        with pytest.raises(VideoError, match="record the images too"):
            labelled[0].open_frames()


def test_a_stream_that_starts_again_has_its_own_images_each_time(tmp_path: Path, tiny_bundle: Path) -> None:
    """A simulator that is reset sends the same stamps again."""
    later = 100 * SECOND
    second = [(time + later, *rest) for time, *rest in images([numbered(100 + n) for n in range(12)])]
    rows = [*images([numbered(n) for n in range(12)]), episode_end(START + 50 * SECOND), *second]
    bag = labelled_bag(tmp_path, tiny_bundle, rows)
    with open_labelled(bag) as labelled:
        assert [episode.labels.stamps[0] for episode in labelled] == [START / SECOND] * 2
        found = [[number_of(frame) for frame in episode.open_frames()] for episode in labelled]
        assert found == [list(range(12)), list(range(100, 112))]


def test_several_reward_topics(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = labelled_bag(tmp_path, tiny_bundle, images([numbered(n) for n in range(12)]))
    label_bag(
        BagTask(bag, tmp_path / "twice", image_topics=(IMAGE_TOPIC,), namespace="/second"), load_bundle(tiny_bundle)
    )
    with pytest.raises(NotLabelledError, match=r"twice:/reward_node/reward"):
        open_labelled(tmp_path / "twice")
    with open_labelled(f"{tmp_path / 'twice'}:/second/reward") as labelled:
        assert len(labelled[0].labels) == 12
        assert labelled.about["reward topic"] == "/second/reward"
    with pytest.raises(NotLabelledError, match="no topic '/third'"):
        open_labelled(f"{tmp_path / 'twice'}:/third")


def test_a_folder_of_videos(tmp_path: Path) -> None:
    names = {"b.mp4": rising(name="b.mp4"), "deep/a.mp4": rising(12, 0.5, "deep/a.mp4")}
    folder = write_video_set(tmp_path, names, {"c.mp4": "no video"})
    with (folder / "manifest.jsonl").open("a") as file:
        file.write('{"video": "b.mp4", "sta')  # a crash in the middle of a line
    with open_labelled(folder) as labelled:
        assert (labelled.kind, labelled.names) == ("videos", ("b.mp4", "deep/a.mp4"))
        assert labelled.failed == {"c.mp4": "no video"}
        assert labelled.about["reward"] == "vip (value)"
        for episode, labels in zip(labelled, names.values(), strict=True):
            assert episode.name == labels.origin.name
            np.testing.assert_allclose(episode.labels.curve.progress, labels.curve.progress, atol=1e-6)
            with episode.open_frames() as frames:
                assert number_of(frames[7]) == 7 and len(frames) == len(labels)
    (folder / "labels" / "b.mp4.parquet").unlink()
    assert "is gone" in open_labelled(folder).failed["b.mp4"]
    head = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps(head | {"kind": "bags"}))
    with pytest.raises(NotLabelledError, match=r"give one of them; there are: b\.mp4, deep/a\.mp4"):
        open_labelled(folder)
    (folder / "set.json").write_text("{}")
    with pytest.raises(NotLabelledError, match=r"set\.json: kind: Field required"):
        open_labelled(folder)


def test_the_table_of_one_video(tmp_path: Path) -> None:
    folder = write_video_set(tmp_path, {"b.mp4": rising(name="b.mp4")})
    with open_labelled(folder / "labels" / "b.mp4.parquet") as labelled:
        assert labelled.names == ("b.mp4",) and len(labelled[0].labels) == 24


def test_pictures_of_goals(tmp_path: Path) -> None:
    demonstration = write_video(tmp_path / "demonstration.mp4", count=9)
    sources = {"own.mp4": "last", "shown.mp4": str(demonstration), "gone.mp4": "not/there.png", "none.mp4": ""}
    labels = {name: rising(12, name=name, goal_source=source) for name, source in sources.items()}
    with open_labelled(write_video_set(tmp_path, labels)) as labelled:
        pictures = {episode.name: episode.goal_picture() for episode in labelled}
        assert {name: p if p is None else number_of(p) for name, p in pictures.items()} == {
            "own.mp4": 11,
            "shown.mp4": 8,
            "gone.mp4": None,
            "none.mp4": None,
        }


def test_what_is_not_labelled_is_told_how(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(NotLabelledError, match=r"square\.mp4 is a video; label it first: v2r label .*square\.mp4"):
        open_labelled(clip)
    with pytest.raises(NotLabelledError, match="label it first"):
        open_labelled(tmp_path)
    with pytest.raises(NotLabelledError, match="label it first"):
        open_labelled(write_bag(tmp_path / "run", images([numbered(1)] * 3)))
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_labelled(tmp_path / "nothing")


def test_a_lerobot_dataset(tmp_path: Path, tiny_bundle: Path) -> None:
    pytest.importorskip("pyarrow")
    from lerobot_data import LENGTHS, TOP, write_dataset

    from v2r_core.label.lerobot import DatasetTask, label_dataset
    from v2r_core.label.video_labeller import LabellerOptions
    from v2r_core.video.lerobot import LeRobotFolder

    write_dataset(tmp_path / "pick")
    label_dataset(DatasetTask(tmp_path / "pick", tmp_path / "out", camera=TOP), LabellerOptions(tiny_bundle))
    folder = LeRobotFolder.open(tmp_path / "out")
    with open_labelled(tmp_path / "out") as labelled:
        assert (labelled.kind, len(labelled)) == ("lerobot", len(LENGTHS))
        assert labelled.about["camera"] == TOP and labelled.about["model"] == "tiny"
        for place, (episode, length) in enumerate(zip(labelled, LENGTHS, strict=True)):
            labels = episode.labels
            assert (episode.name, len(labels)) == (f"episode {place}", length)
            assert episode.goal == "; ".join(folder.tasks(place))
            for name in ("reward", "raw_reward", "value", "progress", "uncertainty", "subgoal_index", "subgoal_count"):
                np.testing.assert_array_equal(getattr(labels.curve, name), folder.column(place, f"v2r.{name}"))
            assert set(labels.curve.subgoal_count) == {1} and np.isfinite(labels.curve.raw_reward[1:]).all()
            np.testing.assert_array_equal(labels.status, folder.column(place, "v2r.status"))
            with episode.open_frames() as frames, folder.video(place, TOP) as expected:
                np.testing.assert_array_equal(frames[length - 1], expected[length - 1])
                np.testing.assert_allclose(
                    frames.stamps - frames.stamps[0], labels.stamps - labels.stamps[0], atol=1e-4
                )
    head = tmp_path / "out" / "meta" / "v2r_labels.json"
    head.write_text(head.read_text().replace('"reward_kind"', '"kind"'))
    with pytest.raises(NotLabelledError, match=r"v2r_labels\.json is damaged"):
        open_labelled(tmp_path / "out")
