"""Bags to label, and what is in them, for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from synthetic_video import moving_square

from v2r_core.label.messages import EPISODE, label_types

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
STRING, HEADER, EMPTY = "std_msgs/msg/String", "std_msgs/msg/Header", "std_msgs/msg/Empty"
ALIEN = "alien_msgs/msg/Probe"
IMAGE_TOPIC = "/camera/image"
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
STEP = SECOND // 30
DELAY = 4_000_000
TYPES = label_types()

Row = tuple[int, str, str, bytes]
"""Time of recording, topic, type, serialised message."""


def header(stamp_ns: int) -> Any:
    time = TYPES.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, SECOND))
    return TYPES.types[HEADER](time, "camera_optical_frame")


def raw(frame: np.ndarray, stamp_ns: int, step: int | None = None) -> bytes:
    height, width, _ = frame.shape
    message = TYPES.types[RAW](header(stamp_ns), height, width, "rgb8", 0, step or 3 * width, frame.ravel())
    return bytes(TYPES.serialize_cdr(message, RAW))


def compressed(frame: np.ndarray, stamp_ns: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    data = np.frombuffer(out.getvalue(), np.uint8)
    return bytes(TYPES.serialize_cdr(TYPES.types[COMPRESSED](header(stamp_ns), "png", data), COMPRESSED))


def images(frames: Sequence[np.ndarray], start: int = START, kind: str = RAW, topic: str = IMAGE_TOPIC) -> list[Row]:
    """Frames at 30 a second."""
    make = raw if kind == RAW else compressed
    stamps = [start + index * STEP for index in range(len(frames))]
    return [(s + DELAY, topic, kind, make(f, s)) for f, s in zip(frames, stamps, strict=True)]


def string(text: str, time_ns: int, topic: str = "/notes") -> Row:
    return time_ns, topic, STRING, bytes(TYPES.serialize_cdr(TYPES.types[STRING](text), STRING))


def episode_end(stamp_ns: int, number: int = 0, topic: str = "/policy_node/episode") -> Row:
    time, duration = (TYPES.types[f"builtin_interfaces/msg/{name}"] for name in ("Time", "Duration"))
    start = time(*divmod(stamp_ns - SECOND, SECOND))
    message = TYPES.types[EPISODE](
        header=header(stamp_ns),
        start=start,
        end_reason=1,
        episode=number,
        goal_id="",
        steps=30,
        invalid_steps=0,
        return_sum=1.0,
        final_progress=1.0,
        max_progress=1.0,
        duration=duration(1, 0),
    )
    return stamp_ns, topic, EPISODE, bytes(TYPES.serialize_cdr(message, EPISODE))


def clutter(count: int = 40) -> list[Row]:
    """What else is in a bag: messages of a known type, and of one that nobody here has heard of."""
    noise = np.random.default_rng(0)
    rows = [string(f"note {index}", START + index * STEP + 7 * DELAY) for index in range(count)]
    alien = [noise.bytes(int(size)) for size in noise.integers(4, 200, count)]
    return rows + [(START + index * STEP, "/probe", ALIEN, data) for index, data in enumerate(alien)]


QOS = Qos(
    QosHistory.KEEP_LAST,
    3,
    QosReliability.BEST_EFFORT,
    QosDurability.VOLATILE,
    QosTime(2147483647, 4294967295),
    QosTime(1, 5),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)


def write_bag(
    path: Path,
    rows: Sequence[Row],
    storage: StoragePlugin = StoragePlugin.MCAP,
    mode: CompressionMode = CompressionMode.NONE,
    version: int = 9,
) -> Path:
    """Messages in the order of their times of recording; those of the same time in the order given."""
    writer = Writer(path, version=version, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    writer.set_custom_data("robot", "number five")
    with writer:
        connections = {}
        for _, topic, kind, _ in rows:
            if topic not in connections:
                known = {"typestore": TYPES} if kind != ALIEN else {"msgdef": "uint8[] data", "rihs01": "RIHS01_ab"}
                connections[topic] = writer.add_connection(topic, kind, offered_qos_profiles=[QOS], **known)
        for time, topic, _, data in sorted(rows, key=lambda row: row[0]):
            writer.write(connections[topic], time, data)
    return path


@dataclass
class Contents:
    """All that a bag says.

    Attributes:
        rows: its messages in the order of reading.
        topics: type, definition, hash and QoS of each topic.
    """

    rows: list[Row] = field(default_factory=list)
    topics: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def without(self, *topics: str) -> Contents:
        rest = {topic: value for topic, value in self.topics.items() if topic not in topics}
        return Contents([row for row in self.rows if row[1] not in topics], rest)

    def messages(self, topic: str) -> list[Any]:
        return [TYPES.deserialize_cdr(data, kind) for _, name, kind, data in self.rows if name == topic]


def read_bag(path: Path) -> Contents:
    with Reader(path) as reader:
        rows = [(time, c.topic, c.msgtype, bytes(data)) for c, time, data in reader.messages()]
        topics = {c.topic: (c.msgtype, c.msgdef, c.digest, c.ext) for c in reader.connections}
        counts = {c.topic: c.msgcount for c in reader.connections}
        assert reader.message_count == len(rows)
        assert reader.start_time == min(row[0] for row in rows)
        assert reader.end_time == max(row[0] for row in rows) + 1
    assert counts == {topic: sum(row[1] == topic for row in rows) for topic in topics}
    return Contents(rows, topics)


def square_frames(count: int = 40) -> list[np.ndarray]:
    return moving_square(count)


def mirrored(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a camera on the other side sees."""
    return [np.ascontiguousarray(frame[:, ::-1]) for frame in frames]
