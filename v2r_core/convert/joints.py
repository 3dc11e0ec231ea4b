"""Publishers of different joints on one topic, which ros2_control and many robots have: told apart by their joints."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from v2r_core.convert.parts import ConvertError

MOST_SETS = 64
"""Of joints on one topic. Every publisher has one, or a few; more of them are no publishers."""


class Streams:
    """The messages of a topic as streams: one for each set of joints on a topic of sensor_msgs/JointState, else one.

    A stream is named like its topic; the further ones of a topic also have their joints in their names.
    """

    def __init__(self, path: Path, joint_topics: Iterable[str]) -> None:
        """No message was seen yet.

        Args:
            path: of the bag, for messages.
            joint_topics: those with sensor_msgs/JointState.
        """
        self._path = path
        self._sets: dict[str, dict[tuple[str, ...], str]] = {topic: {} for topic in joint_topics}

    def of(self, topic: str, data: bytes) -> str:
        """The stream of a message, which is a new one for a set of joints that was not seen before.

        Raises:
            ConvertError: the message is damaged, or there are too many sets.
        """
        known = self._sets.get(topic)
        if known is None:
            return topic
        try:
            names = joint_names(data)
        except ValueError as error:
            raise ConvertError(f"{self._path}: {topic}: {error}; the bag is damaged, record it again") from error
        joints = tuple(sorted(names))
        if joints not in known:
            if len(known) == MOST_SETS:
                raise ConvertError(
                    f"{self._path}: {topic}: more than {MOST_SETS} different sets of joints; leave this topic out"
                )
            known[joints] = f"{topic} ({', '.join(names)})" if known else topic
        return known[joints]

    def all(self, topic: str) -> list[str]:
        """Streams of a topic: larger sets of joints first, then by name, in whatever order they came.

        Messages without a joint do not count where others have some.
        """
        return list(self._ordered(topic).values()) or [topic]

    def needed(self, topic: str) -> list[tuple[str, ...]]:
        """For each joint the streams that have it; one of them has to have said something. Without repetition."""
        sets = self._ordered(topic)
        joints = dict.fromkeys(joint for each in sets for joint in each)
        found = dict.fromkeys(tuple(sets[each] for each in sets if joint in each) for joint in joints)
        return list(found) or [(topic,)]

    def _ordered(self, topic: str) -> dict[tuple[str, ...], str]:
        known = self._sets.get(topic, {})
        return {each: known[each] for each in sorted(known, key=lambda each: (-len(each), each)) if each}


def joint_names(data: bytes) -> tuple[str, ...]:
    """The joints of a serialised sensor_msgs/JointState, without reading more of it.

    Raises:
        ValueError: it is damaged.
    """
    try:
        number = struct.Struct("<I" if data[1] & 1 else ">I")
        # Behind 4 bytes about the encoding and 8 of the stamp comes the frame's name, then the joints'.
        place = _behind_text(data, 12, number)
        (count,) = number.unpack_from(data, place)
        place += number.size
        names = []
        for _ in range(count):
            (length,) = number.unpack_from(data, place)
            start = place + number.size
            names.append(data[start : start + length].rstrip(b"\0").decode(errors="replace"))
            place = _behind_text(data, place, number)
    except (IndexError, struct.error) as error:
        raise ValueError(f"{len(data)} bytes are too few for the names of its joints") from error
    return tuple(names)


def _behind_text(data: bytes, place: int, number: struct.Struct) -> int:
    """Where the next number begins behind a text: its length, its bytes, and what fills them up to four."""
    end = place + number.size + int(number.unpack_from(data, place)[0])
    return end + -end % number.size
