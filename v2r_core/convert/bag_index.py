"""The first pass through a bag: when every message was, and of what is in it only what frames are planned by."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from v2r_core.convert.joints import Streams
from v2r_core.convert.numbers import JOINT_STATE, has_header
from v2r_core.convert.parts import LABEL_FIELDS, ConvertError
from v2r_core.convert.topics import Topics
from v2r_core.label.episodes import EpisodeCutter
from v2r_core.label.messages import REWARD_INFO, read_header
from v2r_core.look.bag_types import types_of
from v2r_core.video.bag import COMPRESSED, RAW
from v2r_core.video.pixels import CHANNELS

Message = tuple[Connection, int, bytes]


@dataclass
class Track:
    """The messages of one stream, three numbers each.

    Attributes:
        recorded: when each was recorded, nanoseconds.
        headers: stamp of each, nanoseconds; 0: it has none.
        places: of each among all messages that are read.
    """

    recorded: array[int] = field(default_factory=lambda: array("q"))
    headers: array[int] = field(default_factory=lambda: array("q"))
    places: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.places)

    def stamps(self, clock: str) -> NDArray[np.int64]:
        """(N,) nanoseconds: of the headers where there are any and the clock is "header", else of the recording."""
        recorded, headers = np.array(self.recorded, np.int64), np.array(self.headers, np.int64)
        return recorded if clock == "recorded" else np.where(headers != 0, headers, recorded)


def _no_rewards() -> dict[str, array[Any]]:
    return {"stamp": array("q")} | {name: array("d") for name in LABEL_FIELDS}


@dataclass(frozen=True)
class Boundary:
    """Where an episode begins.

    Attributes:
        image: number of its first image on the topic of the first camera.
        marked: place of the mark before it; None: there is none.
    """

    image: int
    marked: int | None


@dataclass
class BagIndex:
    """What the first pass finds.

    Attributes:
        streams: of the topics.
        tracks: by stream.
        boundaries: of the episodes.
        texts: place and text of each message about the task.
        rewards: fields of all messages with rewards, by name; `stamp` is that of the header.
        info: the first description of the rewards; None: there is none.
        first: first message of each stream, for its names and sizes.
        types: by topic.
        kinds: type of the messages by topic.
    """

    streams: Streams
    tracks: dict[str, Track]
    boundaries: list[Boundary] = field(default_factory=list)
    texts: list[tuple[int, str]] = field(default_factory=list)
    rewards: dict[str, array[Any]] = field(default_factory=_no_rewards)
    info: Any = None
    first: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, Typestore] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


def index_bag(path: Path, reader: Reader, topics: Topics, clock: str, gap: float | None) -> BagIndex:
    """Reads the times of all messages that are wanted.

    Args:
        path: for messages.
        reader: open.
        topics: what is wanted.
        clock: see `Track.stamps`.
        gap: see `EpisodeCutter`.

    Raises:
        ConvertError: the bag is damaged, or a topic has no message.
    """
    reads = topics.read()
    connections = [connection for connection in reader.connections if connection.topic in reads]
    numbers = {part.topic for each in topics.vectors.values() for part in each}
    joint_topics = {each.topic for each in connections if each.msgtype == JOINT_STATE and each.topic in numbers}
    index = BagIndex(Streams(path, joint_topics), {topic: Track() for topic in reads})
    stamped: dict[str, bool] = {}
    for connection in connections:
        topic = connection.topic
        index.types[topic], index.kinds[topic] = types_of(connection), connection.msgtype
        stamped[topic] = has_header(index.types[topic], connection.msgtype)
    cutter, marked, camera = EpisodeCutter(gap), None, next(iter(topics.cameras.values()))
    for place, (connection, time_ns, data) in enumerate(read_all(path, reader, connections)):
        topic = connection.topic
        stamp = _stamp(path, topic, data) if stamped[topic] else 0
        stream = index.streams.of(topic, data)
        track = index.tracks.setdefault(stream, Track())
        track.recorded.append(time_ns)
        track.headers.append(stamp)
        track.places.append(place)
        index.first.setdefault(stream, data)
        if topic == topics.marks:
            cutter.mark()
            marked = place
        elif topic == topics.texts:
            index.texts.append((place, _decode(path, index, topic, data).data))
        elif topic == topics.rewards:
            _note_reward(index, stamp, _decode(path, index, topic, data))
        elif topic == camera:
            moment = stamp if stamp and clock == "header" else time_ns
            if cutter.begins(moment) or len(track) == 1:
                index.boundaries.append(Boundary(len(track) - 1, marked))
            marked = None
    for topic in sorted({*topics.cameras.values(), *numbers}):
        if not len(index.tracks[topic]):
            raise ConvertError(f"{path}: no message on {topic}; leave this topic out, or record it again")
    index.info = _info(path, reader, topics.rewards)
    return index


def read_all(path: Path, reader: Reader, connections: list[Connection]) -> Iterator[Message]:
    """Messages in the order of recording, which is the same every time for the same connections.

    Raises:
        ConvertError: one cannot be read.
    """
    number = 0
    try:
        for message in reader.messages(connections=connections):
            yield message
            number += 1
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        raise ConvertError(
            f"{path}: message {number} cannot be read ({error}); the bag is truncated or damaged, "
            "try `ros2 bag reindex`"
        ) from error


def unreadable_images(path: Path, reader: Reader) -> dict[str, str]:
    """Image topics without a message, or in an encoding that is no picture, such as depth, by the first message."""
    found: dict[str, str] = {}
    for connection in reader.connections:
        if connection.msgtype not in (RAW, COMPRESSED):
            continue
        message = next(read_all(path, reader, [connection]), None)
        if message is None:
            found[connection.topic] = "no message on it"
        elif connection.msgtype == RAW:
            encoding = deserialized(path, connection.topic, types_of(connection), message[2], RAW).encoding
            if encoding not in CHANNELS:
                found[connection.topic] = f"encoding {encoding}, not one of {', '.join(CHANNELS)}"
    return found


def _info(path: Path, reader: Reader, rewards: str | None) -> Any:
    """The first description of the rewards, on the topic beside theirs."""
    beside = (rewards or "").rpartition("/")[0] + "/info"
    infos = [each for each in reader.connections if (each.topic, each.msgtype) == (beside, REWARD_INFO)]
    if not infos:
        return None
    message = next(read_all(path, reader, infos), None)
    return None if message is None else deserialized(path, beside, types_of(infos[0]), message[2], REWARD_INFO)


def _note_reward(index: BagIndex, stamp: int, message: Any) -> None:
    index.rewards["stamp"].append(stamp)
    for name in LABEL_FIELDS:
        index.rewards[name].append(getattr(message, name))


def _stamp(path: Path, topic: str, data: bytes) -> int:
    try:
        return read_header(data).stamp_ns
    except ValueError as error:
        raise ConvertError(f"{path}: {topic}: {error}; the bag is damaged, record it again") from error


def deserialized(path: Path, topic: str, types: Typestore, data: bytes, kind: str) -> Any:
    """A message, for what needs more of it than its header.

    Raises:
        ConvertError: it is damaged.
    """
    try:
        return types.deserialize_cdr(data, kind)
    except Exception as error:  # a damaged message makes the deserialiser raise errors of many types
        raise ConvertError(f"{path}: a message of {topic} is no {kind} ({error}); record it again") from error


def _decode(path: Path, index: BagIndex, topic: str, data: bytes) -> Any:
    return deserialized(path, topic, index.types[topic], data, index.kinds[topic])
