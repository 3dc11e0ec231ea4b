"""The images of a rosbag2 recording, read without ROS."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from v2r_core.video.pixels import ImageError, decode_compressed, image_to_rgb
from v2r_core.video.resize import Frame
from v2r_core.video.video import VideoError, check_shape, mean_rate, resolve_index

RAW = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"

# The two types have been the same in every release of ROS 2, so the definitions that a bag brings are not needed.
_TYPES = get_typestore(Stores.ROS2_JAZZY)

_READ_AHEAD = 8
"""Messages that one query fetches while frames are asked for one after the other."""


class BagVideo:
    """One image topic of a rosbag2: see `video.source.Video`.

    Storage is MCAP or SQLite, split and compressed recordings included. Frames are in the order of recording. Stamps
    are those of the message headers, or the times of recording if the headers have none (all zero); they go back where
    the camera's clock did. In memory are two numbers a frame.

    Args:
        path: the bag's folder, or one of its files.
        topic: which topic; None if the bag has a single one with images.

    Raises:
        VideoError: no readable bag, no such topic, no or several image topics, or no message on it.
    """

    def __init__(self, path: Path, topic: str | None = None) -> None:
        self._path = path
        self._reader = open_bag(path)
        try:
            self._connections = choose_connections(path, self._reader.connections, topic)
            self._type = self._connections[0].msgtype
            self._topic = self._connections[0].topic
            self.name = f"{path.name}:{self._topic}"
            self._recorded, self.stamps = self._index()
        except BaseException:
            self._reader.close()
            raise
        self.fps = mean_rate(self.stamps)
        self._ascending = bool((np.diff(self._recorded) >= 0).all())
        self._messages: Iterator[tuple[Connection, int, bytes]] = iter(())
        self._next = 0
        self._fetched_to = 0
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, index: SupportsIndex) -> Frame:
        number = resolve_index(index, len(self), self.name)
        if not self._reader.is_open:
            raise VideoError(f"{self.name}: closed; open it again")
        if number != self._next or number >= self._fetched_to:
            self._fetch(number, _READ_AHEAD if number == self._next and self._ascending else 1)
        message = next(self._messages, None)
        if message is None:
            raise VideoError(f"{self.name}: message {number} is gone; do not write to a bag while it is read")
        self._next = number + 1
        return self._decode(number, message[2])

    def __iter__(self) -> Iterator[Frame]:
        if not self._reader.is_open:
            raise VideoError(f"{self.name}: closed; open it again")
        # A reader of its own: one that two loops share would mix up its position in a file without chunks.
        with closing(open_bag(self._path)) as reader:
            connections = [connection for connection in reader.connections if connection.topic == self._topic]
            for index, (_, _, data) in enumerate(reader.messages(connections=connections)):
                yield self._decode(index, data)

    def close(self) -> None:
        self._messages = iter(())
        if self._reader.is_open:
            self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Reads all messages once and keeps their times: of recording in ns, of the header in seconds."""
        recorded, headers = array("q"), array("d")
        try:
            for _, time, data in self._reader.messages(connections=self._connections):
                recorded.append(time)
                headers.append(_header_stamp(data))
        except Exception as error:
            raise VideoError(
                f"{self.name}: message {len(recorded)} cannot be read ({error}); the bag is truncated or damaged, "
                "try `ros2 bag reindex`"
            ) from error
        if not recorded:
            raise VideoError(f"{self.name}: no message on this topic; record it again")
        times = np.array(recorded, np.int64)
        stamps = np.array(headers, np.float64)
        return times, stamps if stamps.any() else times / 1e9

    def _fetch(self, index: int, count: int) -> None:
        """Queries `count` messages from `index` on by their times of recording.

        The query is bounded on both sides: MCAP chunks that start within it are loaded before the first message comes.
        """
        last = min(index + count, len(self)) - 1
        start, stop = int(self._recorded[index]), int(self._recorded[last]) + 1
        found = self._reader.messages(connections=self._connections, start=start, stop=stop)
        # Several messages may have the same time of recording.
        earlier = int(np.count_nonzero(self._recorded[:index] == start))
        self._messages = islice(found, earlier, None)
        self._fetched_to = last + 1

    def _decode(self, index: int, data: bytes) -> Frame:
        try:
            frame = image_frame(data, self._type)
        except ImageError as error:
            raise VideoError(f"{self.name}: frame {index}: {error}") from error
        except Exception as error:
            # A damaged message makes the deserialiser raise errors of many types.
            raise VideoError(f"{self.name}: frame {index} is no {self._type} ({error}); record it again") from error
        self._shape = self._shape or frame.shape
        check_shape(self.name, index, frame, self._shape)
        return frame


def open_bag(path: Path) -> Reader:
    """An open reader of a bag's folder, or of one of its files. Raises VideoError if there is no readable bag."""
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:
        raise VideoError(f"{path}: cannot be read as a rosbag2 ({error}); try `ros2 bag reindex`") from error
    return reader


def choose_connections(path: Path, connections: list[Connection], topic: str | None) -> list[Connection]:
    """Those of the connections that carry an image topic: a named one, or with None the only one.

    Raises:
        VideoError: no such topic, or none or several; the message lists those there are.
    """
    types = {connection.topic: connection.msgtype for connection in connections}
    images = sorted(name for name, kind in types.items() if kind in (RAW, COMPRESSED))
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(types.items())) or "none"
    if not images:
        raise VideoError(f"{path}: no topic with images; topics: {listed}")
    if topic is None and len(images) > 1:
        raise VideoError(
            f"{path}: several topics with images, choose one as in {path}:{images[0]}; {', '.join(images)}"
        )
    chosen = images[0] if topic is None else topic
    if chosen not in types:
        raise VideoError(f"{path}: no topic {chosen!r}; topics with images: {', '.join(images)}")
    if chosen not in images:
        raise VideoError(f"{path}: topic {chosen!r} has type {types[chosen]}; topics with images: {', '.join(images)}")
    return [connection for connection in connections if connection.topic == chosen]


def _header_stamp(data: bytes) -> float:
    """Header stamp in seconds: what a serialised image begins with, so that its pixels need not be touched."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(order + "iI", data, 4)
    return float(seconds) + float(nanoseconds) * 1e-9


def image_frame(data: bytes, msgtype: str) -> Frame:
    """The pixels, uint8 RGB (H, W, 3), of a serialised message of type `RAW` or `COMPRESSED`.

    Raises:
        ImageError: see `image_to_rgb` and `decode_compressed`. A damaged message raises errors of many other types.
    """
    message = _TYPES.deserialize_cdr(data, msgtype)
    if msgtype == COMPRESSED:
        return decode_compressed(message.data)  # type: ignore[attr-defined]
    fields = {name: getattr(message, name) for name in ("height", "width", "step", "encoding", "is_bigendian")}
    return image_to_rgb(message.data, **fields)  # type: ignore[attr-defined]
