"""A rosbag2 as a source: the second pass, in which messages become frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.convert.bag_index import BagIndex, Message, index_bag, read_all, unreadable_images
from v2r_core.convert.grid import NONE, median_rate
from v2r_core.convert.joints import Streams
from v2r_core.convert.numbers import NumberReader
from v2r_core.convert.parts import ConvertError, Episode, LabelHead, Layout, LeftOut, Sample, Vector, Wishes, label_row
from v2r_core.convert.plan import Piece, Planner
from v2r_core.convert.topics import Part, Topics, choose_topics
from v2r_core.rewards.reward import RewardKind
from v2r_core.video.bag import image_frame, open_bag
from v2r_core.video.pixels import ImageError
from v2r_core.video.resize import Frame

MAX_WAITING = 160 << 20
"""Bytes of messages that may wait for those of other topics that belong to the same frame, but were recorded later."""


Numbers = tuple[Part, str]
"""Entries of a feature, and the stream that they come from."""


class BagSource:
    """A rosbag2: see `parts.Source`. It is read twice: for the times, and for the frames.

    Attributes:
        layout: what its frames have.
        left_out: what is not converted.
    """

    def __init__(self, path: Path, wishes: Wishes, fps: int | None) -> None:
        """Makes the first pass.

        Args:
            path: folder of the bag, or one of its files.
            wishes: what to take.
            fps: frames a second; None: as the first camera has them.

        Raises:
            ConvertError, VideoError: the bag cannot be read, or has not what is wished for.
        """
        self._path = path
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._reader = open_bag(path)
        try:
            self._topics = choose_topics(path, self._reader.connections, wishes, unreadable_images(path, self._reader))
            self._index = index_bag(path, self._reader, self._topics, wishes.clock, wishes.gap)
            rate = fps or self._rate(wishes.clock)
            planner = Planner(self._index, self._topics, rate, wishes.clock, wishes.max_age, wishes.task)
            self._stamps = planner.stamps
            self._readers = _number_readers(self._topics, self._index)
            self._entries: dict[Numbers, list[int]] = {}
            self._lengths: dict[Part, int] = {}
            self.left_out = LeftOut(topics=self._topics.left_out)
            self.layout = self._layout(rate, planner.labelled_topic)
            self._pieces = planner.pieces(self.left_out)
        except BaseException:
            self._reader.close()
            raise
        if not self._pieces:
            self._reader.close()
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.left_out.frames.items() if count)
            raise ConvertError(
                f"{path}: no frame has a message of every topic ({reasons}); leave a topic out, allow a greater "
                "--max-age, or where the clocks of the machines differ, take --clock recorded"
            )

    def episodes(self) -> Sequence[Episode]:
        """All episodes; they have to be read or skipped in their order, each to its end."""
        messages = self._messages()
        feed = _Feed(self._path, messages, self._pieces, self._index.streams)
        found, counts = [], dict[int, int]()
        for piece in self._pieces:
            part = counts[piece.episode] = counts.get(piece.episode, -1) + 1
            name = f"{self._path.name}, episode {piece.episode}" + (f", part {part}" if part else "")
            found.append(
                Episode(
                    name,
                    piece.task,
                    int(piece.instants[0]),
                    len(piece.instants),
                    lambda piece=piece: self._samples(feed, piece),  # type: ignore[misc]
                    lambda piece=piece: feed.skip(len(piece.instants)),  # type: ignore[misc]
                )
            )
        return found

    def close(self) -> None:
        """See `parts.Source`."""
        if self._reader.is_open:
            self._reader.close()

    def _rate(self, clock: str) -> int:
        topic = next(iter(self._topics.cameras.values()))
        rate = median_rate(np.sort(self._index.tracks[topic].stamps(clock)))
        if not 0.5 < rate < 1000:
            raise ConvertError(
                f"{self._path}: {topic} has {rate:.3g} images a second by the median of their stamps; give --fps"
            )
        return round(rate)

    def _messages(self) -> Iterator[Message]:
        reads = self._topics.read()
        connections = [connection for connection in self._reader.connections if connection.topic in reads]
        return read_all(self._path, self._reader, connections)

    def _layout(self, fps: int, labelled: str | None) -> Layout:
        index, topics = self._index, self._topics
        sizes = {name: self._picture(topic, 0, index.first[topic]).shape for name, topic in topics.cameras.items()}
        self._sizes = {topics.cameras[name]: shape for name, shape in sizes.items()}
        head = None
        if labelled is not None:
            camera = next(name for name, topic in topics.cameras.items() if topic == labelled)
            head = _head(camera, index)
        elif topics.rewards is not None:
            self.left_out.topics[topics.rewards] = "no image has the stamp of one of its rewards"
        vectors = {name: self._vector(parts) for name, parts in topics.vectors.items()}
        return Layout(fps, {name: (shape[0], shape[1]) for name, shape in sizes.items()}, vectors, head)

    def _vector(self, parts: list[Part]) -> Vector:
        found = [self._part(part) for part in parts]
        if all(vector.names is None for vector in found):
            return Vector(sum(vector.length for vector in found))
        names: list[str] = []
        for part, vector in zip(parts, found, strict=True):
            own = vector.names or tuple(f"{part.path.rpartition('.')[2] or 'data'}[{i}]" for i in range(vector.length))
            prefix = f"{part.topic.strip('/')}." if len(parts) > 1 else ""
            names += [prefix + name for name in own]
        return Vector(len(names), tuple(names))

    def _part(self, part: Part) -> Vector:
        """What the streams of a part have together; notes where the numbers of each belong."""
        streams = self._index.streams.all(part.topic)
        for stream in streams:
            self._numbers((part, stream), 0, self._index.first[stream])
        readers = [self._readers[part, stream] for stream in streams]
        if len(streams) == 1:
            return Vector(readers[0].length, readers[0].names)
        names = tuple(dict.fromkeys(name for reader in readers for name in reader.names or ()))
        self._lengths[part] = len(names)
        for stream, reader in zip(streams, readers, strict=True):
            self._entries[part, stream] = [names.index(name) for name in reader.names or ()]
        return Vector(len(names), names)

    def _samples(self, feed: _Feed, piece: Piece) -> Iterator[Sample]:
        cache: dict[str | Numbers, tuple[int, NDArray[Any]]] = {}
        for place in range(len(piece.instants)):
            messages = feed.next_frame()
            images = {
                name: self._decoded(cache, topic, messages[topic]) for name, topic in self._topics.cameras.items()
            }
            vectors = {
                name: np.concatenate([self._merged(cache, part, messages) for part in parts])
                for name, parts in self._topics.vectors.items()
            }
            yield Sample(images, vectors, None if piece.labels is None else label_row(piece.labels[place]))

    def _merged(
        self,
        cache: dict[str | Numbers, tuple[int, NDArray[Any]]],
        part: Part,
        messages: Mapping[str, tuple[int, bytes]],
    ) -> NDArray[np.float32]:
        """The numbers of a part; of a joint that several streams have, the newest one."""
        streams = [stream for stream in self._index.streams.all(part.topic) if stream in messages]
        values = {stream: self._decoded(cache, (part, stream), messages[stream]) for stream in streams}
        if part not in self._lengths:  # one stream, which has all of it
            return values[streams[0]]

        def moment(stream: str) -> tuple[int, int]:
            number = messages[stream][0]
            return int(self._stamps[stream][number]), self._index.tracks[stream].places[number]

        found = np.full(self._lengths[part], np.nan, np.float32)
        for stream in sorted(streams, key=moment):
            found[self._entries[part, stream]] = values[stream]
        return found

    def _decoded(
        self, cache: dict[str | Numbers, tuple[int, NDArray[Any]]], what: str | Numbers, message: tuple[int, bytes]
    ) -> NDArray[Any]:
        """The picture of a topic, or the numbers of a stream; a message that several frames share is decoded once."""
        number, data = message
        if what not in cache or cache[what][0] != number:
            decode = self._picture if isinstance(what, str) else self._numbers
            cache[what] = number, decode(what, number, data)  # type: ignore[arg-type]
        return cache[what][1]

    def _picture(self, topic: str, number: int, data: bytes) -> Frame:
        kind = self._index.kinds[topic]
        try:
            frame = image_frame(data, kind)
        except ImageError as error:
            raise ConvertError(f"{self._path}: image {number} of {topic}: {error}") from error
        except Exception as error:  # a damaged message makes the deserialiser raise errors of many types
            raise ConvertError(
                f"{self._path}: image {number} of {topic} is no {kind} ({error}); record it again"
            ) from error
        expected = self._sizes.get(topic, frame.shape)
        if frame.shape != expected:
            raise ConvertError(
                f"{self._path}: image {number} of {topic} is {frame.shape[1]}x{frame.shape[0]}, the first one "
                f"{expected[1]}x{expected[0]}; split the recording where the size changes"
            )
        return frame

    def _numbers(self, what: Numbers, number: int, data: bytes) -> NDArray[np.float32]:
        topic, index = what[0].topic, self._index
        try:
            return self._readers[what].read(index.types[topic].deserialize_cdr(data, index.kinds[topic]))
        except ConvertError as error:
            raise ConvertError(f"{self._path}: message {number} of {error}") from error
        except Exception as error:  # as above
            raise ConvertError(
                f"{self._path}: message {number} of {topic} is no {index.kinds[topic]} ({error}); record it again"
            ) from error


class _Waiting:
    """Messages of a stream that frames need.

    Attributes:
        read: those that were read and are still needed, by number.
    """

    def __init__(self, needs: NDArray[np.int64]) -> None:
        """Nothing is read yet.

        Args:
            needs: (T,) number of the message of each frame; `NONE`: it needs none.
        """
        numbers, behind = np.unique(needs[::-1], return_index=True)
        self._numbers, self._last = numbers[numbers != NONE], (len(needs) - 1 - behind)[numbers != NONE]
        self._next = 0
        self.read: dict[int, bytes] = {}

    def take(self, number: int, data: bytes) -> int:
        """Keeps a message if a frame needs it; they come in the order of their numbers. Returns the bytes kept."""
        if self._next == len(self._numbers) or self._numbers[self._next] != number:
            return 0
        self._next += 1
        self.read[number] = data
        return len(data)

    def drop(self, number: int, frame: int) -> int:
        """Forgets a message if no frame after this one needs it. Returns the bytes forgotten."""
        if self._last[np.searchsorted(self._numbers, number)] != frame:
            return 0
        return len(self.read.pop(number))


class _Feed:
    """Messages of one frame after the other, from one pass through the bag."""

    def __init__(self, path: Path, messages: Iterator[Message], pieces: list[Piece], streams: Streams) -> None:
        self._path, self._messages, self._streams = path, messages, streams
        names = list(pieces[0].numbers)
        self._needs = {name: np.concatenate([piece.numbers[name] for piece in pieces]) for name in names}
        self._waiting = {name: _Waiting(needs) for name, needs in self._needs.items()}
        self._seen = dict.fromkeys(names, 0)
        self._frame = self._bytes = 0

    def next_frame(self) -> dict[str, tuple[int, bytes]]:
        """Number and bytes of the message of each stream that has one for the frame.

        Raises:
            ConvertError: the bag is damaged, or too much has to wait.
        """
        needs = {name: int(numbers[self._frame]) for name, numbers in self._needs.items()}
        needs = {name: number for name, number in needs.items() if number != NONE}
        while any(number not in self._waiting[name].read for name, number in needs.items()):
            self._read_one(needs)
        found = {name: (number, self._waiting[name].read[number]) for name, number in needs.items()}
        for name, number in needs.items():
            self._bytes -= self._waiting[name].drop(number, self._frame)
        self._frame += 1
        return found

    def skip(self, frames: int) -> None:
        """Passes over frames. Their messages are read, since a bag has no index of frames, but not decoded."""
        for _ in range(frames):
            self.next_frame()

    def _read_one(self, needs: Mapping[str, int]) -> None:
        message = next(self._messages, None)
        if message is None:
            raise ConvertError(f"{self._path}: messages have gone; do not write to a bag while it is read")
        data = message[2]
        name = self._streams.of(message[0].topic, data)
        if name not in self._seen:
            return
        number = self._seen[name]
        self._seen[name] += 1
        self._bytes += self._waiting[name].take(number, data)
        if self._bytes > MAX_WAITING:
            late = [each for each, wanted in needs.items() if wanted not in self._waiting[each].read]
            raise ConvertError(
                f"{self._path}: {', '.join(late)} was recorded so late after the topics with the same stamps that "
                f"{self._bytes >> 20} MB of them would wait for it; take --clock recorded"
            )


def _number_readers(topics: Topics, index: BagIndex) -> dict[Numbers, NumberReader]:
    parts = {part for each in topics.vectors.values() for part in each}
    return {
        (part, stream): NumberReader(part.topic, index.kinds[part.topic], part.path)
        for part in parts
        for stream in index.streams.all(part.topic)
    }


def _head(camera: str, index: BagIndex) -> LabelHead:
    info = index.info
    if info is None:
        has_values = bool(np.isfinite(np.array(index.rewards["value"])).any())
        return LabelHead(camera, "unknown", "", "unknown", "value" if has_values else "step_reward")
    kind: RewardKind = "value" if info.kind == info.KIND_VALUE else "step_reward"
    return LabelHead(camera, info.model_name, info.model_sha256, info.reward_name, kind)
