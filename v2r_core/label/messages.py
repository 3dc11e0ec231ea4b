"""The messages that labels are made of, serialised without ROS: v2r_msgs/Reward and v2r_msgs/RewardInfo."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from v2r_core import ASSETS

REWARD = "v2r_msgs/msg/Reward"
REWARD_INFO = "v2r_msgs/msg/RewardInfo"
EPISODE = "v2r_msgs/msg/Episode"
NUMBER = "std_msgs/msg/Float64"
SECOND_NS = 1_000_000_000

_NAMESPACE = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
_NO_TIME = QosTime(0, 0)


@dataclass(frozen=True)
class Header:
    """A std_msgs/Header.

    Attributes:
        stamp_ns: nanoseconds; 0: the message has none.
        frame_id: name of the coordinate frame.
    """

    stamp_ns: int
    frame_id: str


class Messages:
    """Serialises labels.

    Attributes:
        types: knows the types of Jazzy and those of v2r_msgs.
        reward_topic: where rewards go.
        info_topic: where the description of the rewards goes.
        progress_topics: where the progress of each camera goes; empty: nowhere.
    """

    def __init__(self, namespace: str, progress_of: Sequence[str] = ()) -> None:
        """Names the topics.

        Args:
            namespace: what a live node would be called, e.g. "/reward_node".
            progress_of: names of the cameras that have a topic for their progress.

        Raises:
            ValueError: that cannot be the name of a node.
        """
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(f"namespace {namespace!r}: a name like /reward_node expected")
        self.types = label_types()
        self.reward_topic = f"{namespace}/reward"
        self.info_topic = f"{namespace}/info"
        self.progress_topics = tuple(f"{namespace}/progress/{camera}" for camera in progress_of)

    def reward(self, header: Header, fields: Mapping[str, Any]) -> bytes:
        """A v2r_msgs/Reward; what only a live node can measure (latency, drops, time of inference) is left out.

        Args:
            header: of the image.
            fields: see `Judged.fields` and `component_fields`.
        """
        # What a live node measures is that of its machine and hour; two runs over one bag give the same labels.
        blank = {
            "latency": self._type("builtin_interfaces/msg/Duration")(0, 0),
            "dropped_frames": 0,
            "component_names": [],
            "component_values": [],
        }
        complete = {"header": self._header(header), **blank, **fields}
        complete["component_values"] = np.asarray(complete["component_values"], np.float32)
        return self._serialise(REWARD, complete)

    def number(self, value: float) -> bytes:
        """A std_msgs/Float64."""
        return self._serialise(NUMBER, {"data": value})

    def info(self, stamp_ns: int, fields: Mapping[str, Any]) -> bytes:
        """A v2r_msgs/RewardInfo.

        Args:
            stamp_ns: when it became true.
            fields: see `reward_info_fields`.
        """
        arrays = {name: np.asarray(fields[name], np.float32) for name in ("mean", "std")}
        return self._serialise(REWARD_INFO, {**fields, **arrays, "header": self._header(Header(stamp_ns, ""))})

    def _header(self, header: Header) -> Any:
        # Rounds down, as ROS does, so that nanoseconds are never negative.
        stamp = self._type("builtin_interfaces/msg/Time")(*divmod(header.stamp_ns, SECOND_NS))
        return self._type("std_msgs/msg/Header")(stamp, header.frame_id)

    def _type(self, name: str) -> Any:
        return self.types.types[name]

    def _serialise(self, name: str, fields: Mapping[str, Any]) -> bytes:
        return bytes(self.types.serialize_cdr(self._type(name)(**fields), name))


def label_types() -> Typestore:
    """A store with the types of Jazzy and those of v2r_msgs that labels need, as they were built for ROS."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for file in sorted((ASSETS / "msg").glob("*.msg")):
        store.register(get_types_from_msg(file.read_text(), f"v2r_msgs/msg/{file.stem}"))
    return store


def read_header(data: bytes) -> Header:
    """The header that a serialised message begins with, whatever comes after it.

    Raises:
        ValueError: the message is too short for one.
    """
    try:
        order = "<" if data[1] & 1 else ">"
        seconds, nanoseconds, length = struct.unpack_from(order + "iII", data, 4)
    except (IndexError, struct.error) as error:
        raise ValueError(f"{len(data)} bytes are too few for a message with a header") from error
    text = data[16 : 16 + length].rstrip(b"\0")
    return Header(seconds * SECOND_NS + nanoseconds, text.decode(errors="replace"))


def label_qos(latched: bool) -> Qos:
    """What a live reward node offers on ~/info (latched) and on ~/reward, as far as it matters to a recording."""
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _NO_TIME,
        _NO_TIME,
        QosLiveliness.AUTOMATIC,
        _NO_TIME,
        False,
    )
