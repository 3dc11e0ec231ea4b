"""Bags: both storages, both message types, every way to be split, padded, mislabelled or damaged."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from clip_writer import HEIGHT, WIDTH, number_of, numbered
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from v2r_core.video import VideoError, open_video
from v2r_core.video.bag import BagVideo

TYPES = get_typestore(Stores.ROS2_JAZZY)
RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
STORAGES = [StoragePlugin.MCAP, StoragePlugin.SQLITE3]
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 33_333_333
DELAY_NS = 4_000_000


def header(stamp_ns: int) -> object:
    time = TYPES.types["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
    return TYPES.types["std_msgs/msg/Header"](time, "camera")


def raw(number: int, stamp_ns: int, *, padding: int = 0, encoding: str = "rgb8", height: int = HEIGHT) -> bytes:
    frame = numbered(number, height)
    lines = np.ascontiguousarray(frame[..., ::-1] if encoding == "bgr8" else frame).reshape(height, -1)
    lines = np.pad(lines, ((0, 0), (0, padding)), constant_values=5)
    message = TYPES.types[RAW](header(stamp_ns), height, WIDTH, encoding, 0, lines.shape[1], lines.ravel())
    return bytes(TYPES.serialize_cdr(message, RAW))


def compressed(number: int, stamp_ns: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(numbered(number)).save(out, kind)
    data = np.frombuffer(out.getvalue(), np.uint8)
    return bytes(TYPES.serialize_cdr(TYPES.types[COMPRESSED](header(stamp_ns), kind.lower(), data), COMPRESSED))


def write_bag(
    path: Path, topics: dict[str, tuple[str, list[tuple[int, bytes]]]], storage=StoragePlugin.MCAP, mode=None
):
    """Topic to (type, [(time of recording, serialised message)])."""
    writer = Writer(path, version=9, storage_plugin=storage)
    if mode is not None:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {
            name: writer.add_connection(name, kind, typestore=TYPES) for name, (kind, _) in sorted(topics.items())
        }
        messages = [(time, name, data) for name, (_, rows) in topics.items() for time, data in rows]
        for time, name, data in sorted(messages, key=lambda row: row[0]):
            writer.write(connections[name], time, data)
    return path


def rows(count: int, make=raw, **options) -> list[tuple[int, bytes]]:
    stamps = [START_NS + index * PERIOD_NS for index in range(count)]
    return [(stamp + DELAY_NS, make(index, stamp, **options)) for index, stamp in enumerate(stamps)]


def assert_frames(video, numbers: list[int]) -> None:
    assert len(video) == len(numbers)
    assert [number_of(frame) for frame in video] == numbers
    order = random.Random(0).choices(range(len(numbers)), k=40)
    backwards = range(len(numbers) - 1, -1, -1)
    for index in [*range(len(numbers)), *order, *backwards, *range(0, len(numbers), 3), *range(len(numbers))]:
        assert number_of(video[index]) == numbers[index], index


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("kind", "make", "options"),
    [
        (RAW, raw, {}),
        (RAW, raw, {"padding": 8, "encoding": "bgr8"}),
        (COMPRESSED, compressed, {"kind": "JPEG"}),
        (COMPRESSED, compressed, {"kind": "PNG"}),
    ],
)
def test_frames_and_stamps(tmp_path, storage, kind, make, options):
    noise = [(START_NS + index, TYPES.serialize_cdr(header(0), "std_msgs/msg/Header")) for index in range(50)]
    topics = {"/camera/image": (kind, rows(30, make, **options)), "/noise": ("std_msgs/msg/Header", noise)}
    bag = write_bag(tmp_path / "run", topics, storage)
    with open_video(bag) as video:
        assert_frames(video, list(range(30)))
        assert video[0].shape == (HEIGHT, WIDTH, 3)
        assert video.name == "run:/camera/image"
        np.testing.assert_allclose(video.stamps, START_NS / 1e9 + np.arange(30) * PERIOD_NS / 1e9, rtol=0, atol=1e-6)
        assert video.fps == pytest.approx(1e9 / PERIOD_NS, rel=1e-5)
        with pytest.raises(IndexError):
            video[30]
    with pytest.raises(VideoError, match="closed"):
        video[0]
    file = next(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    with open_video(f"{file}:/camera/image") as video:
        assert_frames(video, list(range(30)))


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_recorded_at_the_same_time(tmp_path, storage):
    same = [(START_NS + index // 4, raw(index, START_NS + index)) for index in range(20)]
    with open_video(write_bag(tmp_path / "run", {"/image": (RAW, same)}, storage)) as video:
        assert_frames(video, list(range(20)))


@pytest.mark.parametrize(
    ("storage", "mode"),
    [
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
    ],
)
def test_compressed_recordings(tmp_path, storage, mode):
    with open_video(write_bag(tmp_path / "run", {"/image": (RAW, rows(12))}, storage, mode)) as video:
        assert_frames(video, list(range(12)))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("overlap", [0, 3])
def test_split_recordings(tmp_path, storage, overlap):
    """Two bags merged into one with two files, whose times of recording may overlap."""
    all_rows = rows(20)
    first = write_bag(tmp_path / "run", {"/image": (RAW, all_rows[:10])}, storage)
    late = [(time - overlap * PERIOD_NS, data) for time, data in all_rows[10:]]
    second = write_bag(tmp_path / "second", {"/image": (RAW, late)}, storage)
    file = next(path for path in second.iterdir() if path.suffix in (".mcap", ".db3"))
    file.rename(first / file.name)
    metadata = first / "metadata.yaml"
    own = next(path.name for path in first.iterdir() if path.name.startswith("run."))
    text = metadata.read_text().replace(f"- {own}\n", f"- {own}\n  - {file.name}\n", 1)
    assert file.name in text
    metadata.write_text(text.replace("message_count: 10", "message_count: 20"))
    with open_video(first) as video:
        assert_frames(video, list(range(20)))


def test_interleaved_readers(tmp_path):
    with open_video(write_bag(tmp_path / "run", {"/image": (RAW, rows(15))})) as video:
        for index, (one, two) in enumerate(zip(video, video, strict=True)):
            assert number_of(one) == number_of(two) == index
            assert number_of(video[14 - index]) == 14 - index


def test_without_header_stamps_the_time_of_recording_counts(tmp_path):
    unset = [(START_NS + index * PERIOD_NS, raw(index, 0)) for index in range(5)]
    video = open_video(write_bag(tmp_path / "run", {"/image": (RAW, unset)}))
    np.testing.assert_allclose(video.stamps, START_NS / 1e9 + np.arange(5) * PERIOD_NS / 1e9, rtol=0, atol=1e-6)


def test_choice_of_topic(tmp_path):
    topics = {
        "/left": (RAW, rows(3)),
        "/left/compressed": (COMPRESSED, rows(4, compressed)),
        "/info": ("std_msgs/msg/Header", [(START_NS, TYPES.serialize_cdr(header(0), "std_msgs/msg/Header"))]),
        "/silent": (RAW, []),
    }
    bag = write_bag(tmp_path / "run:/2024", topics)
    with pytest.raises(VideoError, match=r"several topics.*run:/2024:/left; /left, /left/compressed"):
        open_video(bag)
    assert len(open_video(f"{bag}:/left/compressed")) == 4
    with pytest.raises(VideoError, match=r"no topic '/right'.*/left, /left/compressed"):
        open_video(f"{bag}:/right")
    with pytest.raises(VideoError, match=r"'/info' has type std_msgs/msg/Header.*/left"):
        open_video(f"{bag}:/info")
    with pytest.raises(VideoError, match=r"/silent: no message"):
        open_video(f"{bag}:/silent")


def test_bag_without_images(tmp_path):
    text = [(START_NS, TYPES.serialize_cdr(header(0), "std_msgs/msg/Header"))]
    bag = write_bag(tmp_path / "run", {"/clock": ("std_msgs/msg/Header", text)})
    with pytest.raises(VideoError, match=r"no topic with images; topics: /clock \(std_msgs/msg/Header\)"):
        open_video(bag)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (raw(1, START_NS, encoding="16UC1"), "frame 1.*'16UC1'"),
        (raw(1, START_NS, height=HEIGHT + 2), f"frame 1 is {WIDTH}x{HEIGHT + 2}"),
        (raw(1, START_NS)[:-40], "frame 1"),
        (raw(1, START_NS)[:20], "frame 1"),
    ],
)
def test_one_bad_message_spoils_no_other(tmp_path, bad, says):
    messages = rows(3)
    messages[1] = (messages[1][0], bad)
    with open_video(write_bag(tmp_path / "run", {"/image": (RAW, messages)})) as video:
        assert number_of(video[0]) == 0
        with pytest.raises(VideoError, match=says):
            video[1]
        assert number_of(video[2]) == 2
        with pytest.raises(VideoError, match=says):
            list(video)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("part", [0, 0.5])
def test_truncated_bags_are_refused(tmp_path, storage, part):
    bag = write_bag(tmp_path / "run", {"/image": (RAW, rows(30))}, storage)
    file = next(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(VideoError, match="ros2 bag reindex"):
        open_video(bag)


def test_folder_without_metadata_points_to_reindex(tmp_path):
    bag = write_bag(tmp_path / "run", {"/image": (RAW, rows(3))})
    (bag / "metadata.yaml").unlink()
    with pytest.raises(VideoError, match="ros2 bag reindex"):
        open_video(bag)


@pytest.mark.parametrize("storage", STORAGES)
def test_few_messages_are_read_ahead(tmp_path, storage, monkeypatch):
    """Asking for one frame must not make the storage load the rest of the recording."""
    video = BagVideo(write_bag(tmp_path / "run", {"/image": (RAW, rows(100))}, storage))
    windows = []
    messages = video._reader.messages

    def watched(connections, start, stop):
        windows.append(len([time for time in video._recorded if start <= time < stop]))
        return messages(connections=connections, start=start, stop=stop)

    monkeypatch.setattr(video._reader, "messages", watched)
    for index in [*range(100), 50, 20, *range(20, 60)]:
        video[index]
    assert max(windows) <= 8
    assert len(windows) < 30
