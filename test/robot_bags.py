"""Bags of a robot with cameras, joints and commands, for tests of `v2r convert`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from clip_writer import numbered
from PIL import Image
from recordings import episode_end
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from v2r_core.label.messages import label_types

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
TYPES = label_types()
RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINTS, TWIST = "sensor_msgs/msg/JointState", "geometry_msgs/msg/Twist"
JOINT_NAMES = ("shoulder", "elbow", "wrist")
STATE_TOPIC = "/observation/state"

Row = tuple[int, str, str, bytes]
"""Time of recording, topic, type, serialised message."""


def message(kind: str, **fields: object) -> bytes:
    return bytes(TYPES.serialize_cdr(TYPES.types[kind](**fields), kind))


def header(stamp_ns: int) -> object:
    time = TYPES.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, SECOND))
    return TYPES.types["std_msgs/msg/Header"](time, "camera")


def image(number: int, stamp: int, topic: str = "/front/image_raw", delay: int = 4_000_000, **size: int) -> Row:
    """A picture that shows its number."""
    frame = numbered(number % 256, **size)
    height, width = frame.shape[:2]
    data = message(
        RAW,
        header=header(stamp),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=frame.ravel(),
    )
    return stamp + delay, topic, RAW, data


def jpeg(number: int, stamp: int, topic: str = "/wrist/image_raw/compressed", delay: int = 6_000_000) -> Row:
    out = io.BytesIO()
    Image.fromarray(numbered(number % 256)).save(out, "JPEG", quality=95, subsampling=0)
    data = np.frombuffer(out.getvalue(), np.uint8)
    return stamp + delay, topic, COMPRESSED, message(COMPRESSED, header=header(stamp), format="jpeg", data=data)


def joints(
    positions: Sequence[float], stamp: int, names: Sequence[str] = JOINT_NAMES, topic: str = "/joint_states"
) -> Row:
    none = np.empty(0)
    fields = {"position": np.array(positions, np.float64), "velocity": none, "effort": none}
    return stamp + 100_000, topic, JOINTS, message(JOINTS, header=header(stamp), name=list(names), **fields)


def array(values: Sequence[float], time_ns: int, topic: str = "/command") -> Row:
    kind = "std_msgs/msg/Float64MultiArray"
    layout = TYPES.types["std_msgs/msg/MultiArrayLayout"]([], 0)
    return time_ns, topic, kind, message(kind, layout=layout, data=np.array(values, np.float64))


def twist(values: Sequence[float], time_ns: int, topic: str = "/cmd_vel") -> Row:
    vector = TYPES.types["geometry_msgs/msg/Vector3"]
    return time_ns, topic, TWIST, message(TWIST, linear=vector(*values[:3]), angular=vector(*values[3:]))


def text(words: str, time_ns: int, topic: str = "/task") -> Row:
    return time_ns, topic, "std_msgs/msg/String", message("std_msgs/msg/String", data=words)


def reward(value: float, stamp: int, episode: int = 0) -> Row:
    from v2r_core.deploy.judging import FLOATS
    from v2r_core.label.messages import REWARD, Header, Messages

    fields = dict.fromkeys(FLOATS, float("nan"))
    fields |= {"reward": value, "value": 2 * value, "progress": value / 100, "status": 0, "episode": episode}
    fields |= {"raw_reward": value / 4, "subgoal_index": int(value) // 8, "subgoal_count": 5}
    fields |= {"frame_count": 1, "goal_id": "goal"}
    data = Messages("/reward_node").reward(Header(stamp, "camera"), fields)
    return stamp + 9_000_000, "/reward_node/reward", REWARD, data


def state_at(stamp: int) -> list[float]:
    """What the joints of `episode` say at a time."""
    seconds = (stamp - START) / SECOND
    return [seconds, -2 * seconds, 0.5]


def episode(start: int = START, frames: int = 20, fps: int = 20, number: int = 0, mark: bool = True) -> list[Row]:
    """Two cameras at `fps`, joints at 100 Hz and commands at 50 Hz, and the mark behind them."""
    step = SECOND // fps
    stamps = [start + index * step for index in range(frames)]
    rows = [image(10 * number + index, stamp) for index, stamp in enumerate(stamps)]
    rows += [jpeg(100 + 10 * number + index, stamp) for index, stamp in enumerate(stamps)]
    length = frames * step
    rows += [joints(state_at(at), at) for at in range(start - SECOND // 50, start + length, SECOND // 100)]
    rows += [array([index, number], start + index * SECOND // 50) for index in range(-1, 50 * length // SECOND)]
    if mark:
        rows += [episode_end(start + length + SECOND // 10, number, "/episode")]
    return rows


def write_bag(path: Path, rows: Sequence[Row], storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {}
        for _, topic, kind, _ in rows:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=TYPES)
        for time, topic, _, data in sorted(rows, key=lambda row: row[0]):
            writer.write(connections[topic], time, data)
    return path


def read_bag(path: Path) -> dict[str, list[tuple[int, object]]]:
    """Time of recording and content of all messages by topic."""
    found: dict[str, list[tuple[int, object]]] = {}
    with Reader(path) as reader:
        for connection, time, data in reader.messages():
            found.setdefault(connection.topic, []).append((time, TYPES.deserialize_cdr(data, connection.msgtype)))
    return found
