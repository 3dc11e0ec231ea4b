"""A rosbag2 as a source: the second pass, in which messages become frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.convert.bag_index import BagIndex, Message, index_bag, read_all, unreadable_images
from v2r_core.convert.grid import median_rate
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
            self._readers = _number_readers(self._topics, self._index)
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
        """All episodes; they have to be read in their order, each to its end."""
        messages = self._messages()
        feed = _Feed(self._path, messages, self._pieces)
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
        vectors = {name: self._vector(name, parts) for name, parts in topics.vectors.items()}
        return Layout(fps, {name: (shape[0], shape[1]) for name, shape in sizes.items()}, vectors, head)

    def _vector(self, feature: str, parts: list[Part]) -> Vector:
        for part in parts:
            self._numbers(part, 0, self._index.first[part.topic])
        readers = [self._readers[part] for part in parts]
        length = sum(reader.length for reader in readers)
        if all(reader.names is None for reader in readers):
            return Vector(length)
        names: list[str] = []
        for part, reader in zip(parts, readers, strict=True):
            own = reader.names or tuple(f"{part.path.rpartition('.')[2] or 'data'}[{i}]" for i in range(reader.length))
            prefix = f"{part.topic.strip('/')}." if len(parts) > 1 else ""
            names += [prefix + name for name in own]
        return Vector(length, tuple(names))

    def _samples(self, feed: _Feed, piece: Piece) -> Iterator[Sample]:
        cache: dict[str | Part, tuple[int, NDArray[Any]]] = {}
        for place in range(len(piece.instants)):
            messages = feed.next_frame()
            images = {
                name: self._decoded(cache, topic, messages[topic]) for name, topic in self._topics.cameras.items()
            }
            vectors = {
                name: np.concatenate([self._decoded(cache, part, messages[part.topic]) for part in parts])
                for name, parts in self._topics.vectors.items()
            }
            yield Sample(images, vectors, None if piece.labels is None else label_row(piece.labels[place]))

    def _decoded(
        self, cache: dict[str | Part, tuple[int, NDArray[Any]]], what: str | Part, message: tuple[int, bytes]
    ) -> NDArray[Any]:
        """The picture of a topic, or the numbers of a part; a message that several frames share is decoded once."""
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

    def _numbers(self, part: Part, number: int, data: bytes) -> NDArray[np.float32]:
        topic, index = part.topic, self._index
        try:
            return self._readers[part].read(index.types[topic].deserialize_cdr(data, index.kinds[topic]))
        except ConvertError as error:
            raise ConvertError(f"{self._path}: message {number} of {error}") from error
        except Exception as error:  # as above
            raise ConvertError(
                f"{self._path}: message {number} of {topic} is no {index.kinds[topic]} ({error}); record it again"
            ) from error


class _Waiting:
    """Messages of a topic that frames need.

    Attributes:
        read: those that were read and are still needed, by number.
    """

    def __init__(self, needs: NDArray[np.int64]) -> None:
        """Nothing is read yet.

        Args:
            needs: (T,) number of the message of each frame.
        """
        self._numbers, behind = np.unique(needs[::-1], return_index=True)
        self._last = len(needs) - 1 - behind
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

    def __init__(self, path: Path, messages: Iterator[Message], pieces: list[Piece]) -> None:
        self._path, self._messages = path, messages
        topics = list(pieces[0].numbers)
        self._needs = {topic: np.concatenate([piece.numbers[topic] for piece in pieces]) for topic in topics}
        self._waiting = {topic: _Waiting(needs) for topic, needs in self._needs.items()}
        self._seen = dict.fromkeys(topics, 0)
        self._frame = self._bytes = 0

    def next_frame(self) -> dict[str, tuple[int, bytes]]:
        """Number and bytes of the message of each topic.

        Raises:
            ConvertError: the bag is damaged, or too much has to wait.
        """
        needs = {topic: int(numbers[self._frame]) for topic, numbers in self._needs.items()}
        while any(number not in self._waiting[topic].read for topic, number in needs.items()):
            self._read_one(needs)
        found = {topic: (number, self._waiting[topic].read[number]) for topic, number in needs.items()}
        for topic, number in needs.items():
            self._bytes -= self._waiting[topic].drop(number, self._frame)
        self._frame += 1
        return found

    def _read_one(self, needs: Mapping[str, int]) -> None:
        message = next(self._messages, None)
        if message is None:
            raise ConvertError(f"{self._path}: messages have gone; do not write to a bag while it is read")
        topic, data = message[0].topic, message[2]
        if topic not in self._seen:
            return
        number = self._seen[topic]
        self._seen[topic] += 1
        self._bytes += self._waiting[topic].take(number, data)
        if self._bytes > MAX_WAITING:
            late = [each for each, wanted in needs.items() if wanted not in self._waiting[each].read]
            raise ConvertError(
                f"{self._path}: {', '.join(late)} was recorded so late after the topics with the same stamps that "
                f"{self._bytes >> 20} MB of them would wait for it; take --clock recorded"
            )


def _number_readers(topics: Topics, index: BagIndex) -> dict[Part, NumberReader]:
    parts = {part for each in topics.vectors.values() for part in each}
    return {part: NumberReader(part.topic, index.kinds[part.topic], part.path) for part in parts}


def _head(camera: str, index: BagIndex) -> LabelHead:
    info = index.info
    if info is None:
        has_values = bool(np.isfinite(np.array(index.rewards["value"])).any())
        return LabelHead(camera, "unknown", "", "unknown", "value" if has_values else "step_reward")
    kind: RewardKind = "value" if info.kind == info.KIND_VALUE else "step_reward"
    return LabelHead(camera, info.model_name, info.model_sha256, info.reward_name, kind)
