"""A LeRobotDataset v3 from scratch: what is in its files, what its statistics are, what cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_writer import number_of
from lerobot_data import FEATURES, LENGTHS, SHAPE, TOP, numbered_frames, numbers, square_frames, write_dataset

from v2r_core.label.lerobot_stats import ImageStats, column_stats, merge_stats
from v2r_core.label.lerobot_tables import FileLimits, add_features
from v2r_core.label.lerobot_writer import LeRobotWriter
from v2r_core.video.files import VideoFile
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.lerobot_schema import Feature

CAMERA = {TOP: Feature(dtype="video", shape=SHAPE)}


def places(folder: Path) -> pd.DataFrame:
    """The table of episodes, its cells as plain lists."""
    files = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    return pd.DataFrame([row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()])


def encoded_bytes(video: Path) -> int:
    """Of the frames, without the index around them, which is larger in small files."""
    with av.open(str(video)) as container:
        return sum(packet.size for packet in container.demux(video=0))


def test_files_and_records(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        f"videos/{TOP}/chunk-000/file-000.mp4",
    ]
    assert not (tmp_path / "pick.partial").exists()
    info = json.loads((folder / "meta/info.json").read_text())
    assert {key: info[key] for key in ("codebase_version", "robot_type", "fps", "splits")} == {
        "codebase_version": "v3.0",
        "robot_type": "toy",
        "fps": 10,
        "splits": {"train": "0:4"},
    }
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, sum(LENGTHS), 2)
    assert (info["chunks_size"], info["data_files_size_in_mb"], info["video_files_size_in_mb"]) == (1000, 100, 200)
    assert info["features"][TOP]["info"]["video.codec"] == "h264"
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.index.tolist() == ["task 0", "task 1"]
    assert tasks["task_index"].tolist() == [0, 1]


def test_rows(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick")
    table = pd.read_parquet(folder / "data/chunk-000/file-000.parquet")
    assert TOP not in table
    np.testing.assert_array_equal(table["index"], np.arange(sum(LENGTHS)))
    np.testing.assert_array_equal(table["episode_index"], np.repeat(np.arange(4), LENGTHS))
    np.testing.assert_array_equal(table["frame_index"], np.concatenate([np.arange(length) for length in LENGTHS]))
    np.testing.assert_array_equal(table["task_index"], np.repeat([0, 1, 0, 1], LENGTHS))
    np.testing.assert_array_equal(table["timestamp"], (table["frame_index"] / 10).astype(np.float32))
    assert str(table["timestamp"].dtype) == "float32"
    rows = places(folder)
    ends = np.cumsum(LENGTHS)
    np.testing.assert_array_equal(rows["dataset_to_index"], ends)
    np.testing.assert_array_equal(rows["dataset_from_index"], ends - LENGTHS)
    np.testing.assert_allclose(rows[f"videos/{TOP}/from_timestamp"], (ends - LENGTHS) / 10)
    np.testing.assert_allclose(rows[f"videos/{TOP}/to_timestamp"], ends / 10)
    schema = pq.read_schema(folder / "data/chunk-000/file-000.parquet")
    assert schema.field("observation.state").type == pa.list_(pa.float32(), 2)
    known = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert known["grid"] == {"shape": [2, 3], "dtype": "float64", "_type": "Array2D"}
    assert list(known) == schema.names


def test_episodes_begin_with_a_key_frame(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (3, 5, 4))
    with VideoFile(folder / f"videos/{TOP}/chunk-000/file-000.mp4") as video:
        assert len(video) == 12
        assert {0, 3, 8} <= set(video._table.keys)
        assert np.diff(video._table.keys).max() <= 2


def test_statistics_of_numbers(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick")
    rows = places(folder)
    x = np.arange(15.0)
    assert rows["stats/observation.state/min"][3] == [0, 3]
    np.testing.assert_allclose(rows["stats/observation.state/mean"][3], [x.mean(), 3])
    np.testing.assert_allclose(rows["stats/observation.state/std"][3], [x.std(), 0])
    np.testing.assert_allclose(rows["stats/observation.state/q90"][3], [np.quantile(x, 0.9), 3])
    assert rows["stats/observation.state/count"][3] == [15]
    assert rows["stats/grid/max"][0] == [113, 114, 115]
    assert rows["stats/grid/min"][0] == [0, 1, 2]
    assert rows["stats/grid/count"][0] == [12]
    assert rows["stats/next.done/max"][1] == [True]
    assert not [name for name in rows if name.startswith("stats/note")]
    stats = json.loads((folder / "meta/stats.json").read_text())
    every = np.concatenate([np.arange(length) for length in LENGTHS])
    assert stats["frame_index"]["count"] == [len(every)]
    np.testing.assert_allclose(stats["frame_index"]["mean"], [every.mean()])
    np.testing.assert_allclose(stats["frame_index"]["std"], [every.std()])
    assert (stats["frame_index"]["min"], stats["frame_index"]["max"]) == ([0], [14])
    assert "note" not in stats


def test_statistics_of_frames(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (12, 7), square_frames)
    rows = places(folder)
    stats = json.loads((folder / "meta/stats.json").read_text())[TOP]
    for episode, length in enumerate((12, 7)):
        pixels = np.array(square_frames(episode, length))[..., 1] / 255
        found = {name: np.array(rows[f"stats/{TOP}/{name}"][episode]) for name in ("min", "max", "mean", "std")}
        assert found["mean"].shape == (3, 1, 1)
        for name, value in found.items():
            assert value[1, 0, 0] == pytest.approx(getattr(pixels, name)())
        assert rows[f"stats/{TOP}/q10"][episode][1][0][0] == pytest.approx(np.quantile(pixels, 0.1), abs=1 / 255)
        assert rows[f"stats/{TOP}/count"][episode] == [length]
    both = np.concatenate([np.array(square_frames(episode, length)) for episode, length in ((0, 12), (1, 7))]) / 255
    np.testing.assert_allclose(np.squeeze(stats["mean"]), both.mean(axis=(0, 1, 2)), atol=1e-6)
    assert stats["count"] == [19]


def test_large_frames_are_thinned_out() -> None:
    stats = ImageStats()
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[::4, ::4] = 200
    stats.add(frame)
    assert stats.stats()["min"][0, 0, 0] == 200 / 255
    small = ImageStats()
    small.add(frame[:200, :200])
    assert small.stats()["min"][0, 0, 0] == 0


def test_nan_takes_no_part_in_statistics() -> None:
    stats = column_stats(np.array([np.nan, 1, 3, np.nan], np.float32))
    assert {name: stats[name].tolist() for name in ("min", "max", "mean", "std", "q50", "count")} == {
        "min": [1],
        "max": [3],
        "mean": [2],
        "std": [1],
        "q50": [2],
        "count": [2],
    }
    nothing = column_stats(np.full(3, np.nan))
    assert nothing["count"].tolist() == [0]
    assert np.isnan(nothing["mean"]).all()
    assert merge_stats(None, nothing) is None
    assert merge_stats(stats, nothing) is stats
    partly = column_stats(np.array([[1, np.nan], [2, np.nan]]))
    np.testing.assert_array_equal(partly["max"], [2, np.nan])
    whole = merge_stats(stats, column_stats(np.array([5.0])))
    assert whole is not None
    assert whole["mean"].tolist() == [3]
    assert whole["std"] == pytest.approx(np.array([1.0, 3, 5]).std())
    assert whole["max"].tolist() == [5]


def test_file_limits(tmp_path: Path) -> None:
    def noise(episode: int, length: int) -> list[np.ndarray]:
        return list(np.random.default_rng(episode).integers(0, 256, (length, *SHAPE), np.uint8))

    one = write_dataset(tmp_path / "one", (4,), noise)
    video = encoded_bytes(next(one.rglob("*.mp4")))
    data = (one / "data/chunk-000/file-000.parquet").stat().st_size
    limits = FileLimits(2, data_files_size_in_mb=1.5 * data / 2**20, video_files_size_in_mb=3.5 * video / 2**20)
    folder = write_dataset(tmp_path / "many", (4,) * 9, noise, limits=limits)
    rows = places(folder)
    videos = sorted(folder.glob("videos/*/*/*.mp4"))
    assert 3 <= len(videos) <= 5
    assert all(encoded_bytes(path) <= 3.5 * video for path in videos)
    assert 2 <= len(list(folder.glob("data/*/*.parquet"))) <= 6
    assert max(rows[f"videos/{TOP}/chunk_index"]) >= 1
    assert max(rows[f"videos/{TOP}/file_index"]) == 1
    starts = rows.groupby([f"videos/{TOP}/chunk_index", f"videos/{TOP}/file_index"])[f"videos/{TOP}/from_timestamp"]
    assert (starts.min() == 0).all()


def test_many_episodes(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "many", (1,) * 70, lambda _, length: numbered_frames(0, length))
    rows = places(folder)
    assert rows["episode_index"].tolist() == list(range(70))
    assert LeRobotFolder.open(folder).episodes == 70


def test_odd_rates(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "ntsc", (40,), fps=29.97)
    assert json.loads((folder / "meta/info.json").read_text())["fps"] == 29.97
    with VideoFile(folder / f"videos/{TOP}/chunk-000/file-000.mp4") as video:
        np.testing.assert_allclose(video.stamps, np.arange(40) / 29.97, atol=1e-4)
    assert len(LeRobotFolder.open(folder).video(0)) == 40


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    first, second = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b")
    for path in first.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


def test_without_cameras(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "numbers", 5, {"action": Feature(dtype="float32", shape=(1,))}) as writer:
        writer.add_frame({"action": 1.5})
        assert writer.save_episode("count") == 0
        writer.finish()
    folder = LeRobotFolder.open(tmp_path / "numbers")
    assert folder.cameras == ()
    assert folder.column(0, "action").tolist() == [1.5]
    assert json.loads((tmp_path / "numbers/meta/info.json").read_text())["video_path"] is None


def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="camera fell off"), LeRobotWriter(tmp_path / "pick", 10, CAMERA) as writer:
        writer.add_frame({TOP: numbered_frames(0, 1)[0]})
        assert not (tmp_path / "pick").exists()
        raise KeyError("camera fell off")
    assert list(tmp_path.iterdir()) == []
    with LeRobotWriter(tmp_path / "pick", 10, CAMERA):
        pass
    assert list(tmp_path.iterdir()) == []


def test_episodes_may_be_taken_back(tmp_path: Path) -> None:
    state = {"s": Feature(dtype="float32", shape=(1,))}
    with LeRobotWriter(tmp_path / "pick", 10, CAMERA | state) as writer:
        for start, kept in ((0, True), (50, False), (100, True)):
            for index, frame in enumerate(numbered_frames(start // 50, 3)):
                writer.add_frame({TOP: frame, "s": start + index})
            if kept:
                writer.save_episode("kept")
            else:
                writer.discard_episode()
        writer.finish()
    folder = LeRobotFolder.open(tmp_path / "pick")
    assert [folder.length(episode) for episode in range(folder.episodes)] == [3, 3]
    for episode, start in enumerate((0, 100)):
        assert folder.column(episode, "s").tolist() == [start, start + 1, start + 2]
        with folder.video(episode) as video:
            assert [number_of(frame) for frame in video] == [start, start + 1, start + 2]
    expected = np.array(numbered_frames(2, 3))[..., 0].mean() / 255
    assert places(tmp_path / "pick")[f"stats/{TOP}/mean"][1][0][0][0] == pytest.approx(expected)


def test_what_is_there_is_replaced_only_when_forced(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (2,))
    with pytest.raises(FileExistsError, match="--force"):
        write_dataset(folder, (3,))
    with LeRobotWriter(folder, 10, CAMERA, force=True) as writer:
        writer.add_frame({TOP: numbered_frames(0, 1)[0]})
        writer.save_episode("again")
        writer.finish()
    assert LeRobotFolder.open(folder).tasks(0) == ("again",)


def test_episodes_without_frames_and_frames_without_episode(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "pick", 10, CAMERA) as writer:
        with pytest.raises(ValueError, match="no frame was added"):
            writer.save_episode("nothing")
        with pytest.raises(ValueError, match="0 episodes were saved"):
            writer.finish()
        writer.add_frame({TOP: numbered_frames(0, 1)[0]})
        writer.save_episode("one")
        writer.add_frame({TOP: numbered_frames(0, 1)[0]})
        with pytest.raises(ValueError, match="1 frames belong to none"):
            writer.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros(2, np.float32)}, r"action: shape \(2,\) given, \(1,\) expected"),
        ({"action": "left"}, "action"),
        ({"next.done": 1.5}, "next.done: float64 given, bool expected"),
        ({"observation.state": np.zeros(2, complex)}, "complex128 given, float32"),
        ({"note": 3}, "note: int given"),
        ({TOP: np.zeros(SHAPE, np.float32)}, "float32 given, uint8"),
        ({TOP: np.zeros((64, 48, 3), np.uint8)}, r"shape \(64, 48, 3\) given"),
        ({"more": 1}, r"unknown are \['more'\]"),
    ],
)
def test_frames_that_do_not_fit_leave_nothing(tmp_path: Path, change: dict, message: str) -> None:
    frame = {TOP: numbered_frames(0, 1)[0], **numbers(0, 0, 1)}
    with LeRobotWriter(tmp_path / "pick", 10, CAMERA | FEATURES) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add_frame(frame | change)
        with pytest.raises(ValueError, match=r"missing are \['action'\]"):
            writer.add_frame({name: value for name, value in frame.items() if name != "action"})
        writer.add_frame(frame)
        writer.save_episode("one")
        writer.finish()
    assert LeRobotFolder.open(tmp_path / "pick").length(0) == 1


def test_arrays_may_be_filled_again(tmp_path: Path) -> None:
    state = np.zeros(2, np.float32)
    with LeRobotWriter(tmp_path / "pick", 10, {"s": Feature(dtype="float32", shape=(2,))}) as writer:
        for index in range(3):
            state[:] = index
            writer.add_frame({"s": state})
        writer.save_episode("count")
        writer.finish()
    assert LeRobotFolder.open(tmp_path / "pick").column(0, "s").tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a/b": Feature(dtype="float32", shape=(1,))}, "slash"),
        ({"index": Feature(dtype="int64", shape=(1,))}, "taken"),
        ({TOP: Feature(dtype="video", shape=(47, 64, 3))}, "even sides"),
        ({TOP: Feature(dtype="video", shape=(3, 48, 64))}, "even sides"),
        ({TOP: Feature(dtype="image", shape=SHAPE)}, "cannot be written"),
        ({"a": Feature(dtype="float33", shape=(1,))}, "float33"),
    ],
)
def test_features_that_cannot_be_written(tmp_path: Path, features: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "pick", 10, features)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_rates_that_are_none(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ValueError, match="fps"):
        LeRobotWriter(tmp_path / "pick", fps, CAMERA)


def test_files_that_say_nothing_to_datasets_go_on_doing_so() -> None:
    assert add_features({b"pandas": b"{}"}, FEATURES) == {b"pandas": b"{}"}


def test_frames_do_not_pile_up(tmp_path: Path) -> None:
    import resource

    shape = (480, 640, 3)
    frame = np.zeros(shape, np.uint8)
    with LeRobotWriter(tmp_path / "long", 30, {TOP: Feature(dtype="video", shape=shape)}) as writer:
        for _ in range(30):
            writer.add_frame({TOP: frame})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(300):
            writer.add_frame({TOP: frame})
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        writer.save_episode("long")
        writer.finish()
    assert grown * 1024 < 60 * frame.nbytes


def test_statistics_where_numbers_are_missing() -> None:
    """An entry that one part has nowhere, e.g. an effort that only some recordings have, is that of the other part."""
    first = np.array([[1.0, np.nan], [3.0, np.nan]])
    second = np.array([[5.0, 2.0], [7.0, 4.0], [9.0, 6.0]])
    for parts in ((first, second), (second, first)):
        merged = merge_stats(column_stats(parts[0]), column_stats(parts[1]))
        assert merged is not None
        np.testing.assert_allclose(merged["mean"], [5.0, 4.0])
        np.testing.assert_allclose(merged["std"], [np.std([1, 3, 5, 7, 9]), np.std([2, 4, 6])])
        np.testing.assert_allclose(merged["min"], [1, 2])
        np.testing.assert_allclose(merged["max"], [9, 6])
        np.testing.assert_allclose(merged["q50"], [(2 * 2 + 7 * 3) / 5, 4])
    both = merge_stats(column_stats(first), column_stats(first))
    assert both is not None
    np.testing.assert_array_equal(both["mean"], [2, np.nan])


def test_infinite_numbers_are_not_left_out() -> None:
    """A mean over the others would look sound, and the count would not be that of what it is over."""
    with np.errstate(invalid="ignore"):
        stats = column_stats(np.array([[1.0, np.nan], [np.inf, np.nan], [np.nan, np.nan]]))
    assert stats["count"].tolist() == [2]
    np.testing.assert_array_equal(stats["max"], [np.inf, np.nan])
    np.testing.assert_array_equal(stats["mean"], [np.inf, np.nan])
    assert np.isnan(stats["std"]).all()
    np.testing.assert_array_equal(column_stats(np.array([True, False]))["max"], [True])
