"""Which topics of a bag become which features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rosbags.interfaces import Connection

from v2r_core.convert.parts import ACTION, IMAGES, STATE, ConvertError, Wishes
from v2r_core.label.episodes import mark_topic
from v2r_core.label.messages import REWARD
from v2r_core.video.bag import COMPRESSED, RAW

STRING = "std_msgs/msg/String"
NUMBERS = re.compile(
    r"sensor_msgs/msg/JointState|trajectory_msgs/msg/JointTrajectory|std_msgs/msg/Float(32|64)(MultiArray)?"
    r"|geometry_msgs/msg/(Twist|Pose|Wrench|Point|Vector3|Accel)(Stamped)?"
)
"""Types that a user is told of where nothing is taken from their topics."""
_LEAVES = ("compressed", "image", "image_raw", "image_color", "image_rect", "image_rect_color", "image_mono")
_DEPTH = "compressedDepth"


@dataclass(frozen=True)
class Part:
    """Entries of a feature that come from one topic.

    Attributes:
        topic: which one.
        path: see `NumberReader`.
    """

    topic: str
    path: str = ""


@dataclass
class Topics:
    """What is taken from a bag.

    Attributes:
        cameras: topic by feature; the first one has the clock of the frames.
        vectors: parts by feature, in their order.
        marks: topic of the ends of episodes; None: there is none.
        texts: topic of tasks in words; None: there is none.
        rewards: topic of v2r_msgs/Reward; None: there is none.
        left_out: why topics are not taken, which could have been.
    """

    cameras: dict[str, str]
    vectors: dict[str, list[Part]]
    marks: str | None
    texts: str | None
    rewards: str | None
    left_out: dict[str, str] = field(default_factory=dict)

    def read(self) -> set[str]:
        """All topics that are read."""
        parts = {part.topic for each in self.vectors.values() for part in each}
        others = {topic for topic in (self.marks, self.texts, self.rewards) if topic is not None}
        return {*self.cameras.values(), *parts, *others}


def choose_topics(path: Path, connections: Sequence[Connection], wishes: Wishes, unreadable: dict[str, str]) -> Topics:
    """Decides what to take from a bag.

    Args:
        path: of the bag, for messages.
        connections: all that it has.
        wishes: see `Wishes`.
        unreadable: image topics that cannot be read, and why; left out unless they are wished for.

    Raises:
        ConvertError: no image topic, no such topic, one of another type, or two features of one name.
    """
    types = {connection.topic: connection.msgtype for connection in connections}
    left_out: dict[str, str] = {}
    cameras = _wished(path, types, wishes.images) if wishes.images else _all(path, types, unreadable, left_out)
    vectors: dict[str, list[Part]] = {}
    for prefix, plain, wished in (("observation.", STATE, wishes.states), ("", ACTION, wishes.actions)):
        for text in wished:
            topic, _, name = text.partition("=")
            vectors.setdefault(f"{prefix}{name}" if name else plain, []).append(Part(topic))
    for text in wishes.features:
        name, _, rest = text.partition("=")
        topic, _, dotted = rest.partition(":")
        if not name or not topic:
            raise ConvertError(f"--feature {text}: NAME=TOPIC:field.path expected")
        vectors.setdefault(name, []).append(Part(topic, dotted))
    for part in (part for parts in vectors.values() for part in parts):
        _check_there(path, types, part.topic)
    if wishes.task_topic is not None and types.get(wishes.task_topic) != STRING:
        _check_there(path, types, wishes.task_topic)
        raise ConvertError(f"--task-topic {wishes.task_topic}: {types[wishes.task_topic]}, {STRING} expected")
    try:
        marks = mark_topic(list(connections), wishes.episode_topic)
    except ValueError as error:
        raise ConvertError(f"{path}: {error}") from error
    chosen = Topics(cameras, vectors, marks, wishes.task_topic, _rewards(path, types, wishes.reward_topic), left_out)
    for topic in sorted(types.keys() - chosen.read()):
        if NUMBERS.fullmatch(types[topic]):
            left_out[topic] = f"{types[topic]}; --state, --action or --feature takes it"
    return chosen


def camera_name(topic: str) -> str:
    """What the camera of an image topic is called: /wrist/image_raw/compressed is `wrist`."""
    parts = topic.strip("/").split("/")
    while len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    return "_".join(parts)


def _wished(path: Path, types: dict[str, str], wished: Sequence[str]) -> dict[str, str]:
    cameras: dict[str, str] = {}
    for text in wished:
        topic, _, name = text.partition("=")
        _check_there(path, types, topic)
        if types[topic] not in (RAW, COMPRESSED):
            raise ConvertError(f"{path}: {topic} is {types[topic]}, no images; {_images(types)}")
        feature = IMAGES + (name or camera_name(topic))
        if feature in cameras:
            raise ConvertError(f"{path}: {cameras[feature]} and {topic} are both {feature}; say --image {topic}=NAME")
        cameras[feature] = topic
    return cameras


def _all(path: Path, types: dict[str, str], unreadable: dict[str, str], left_out: dict[str, str]) -> dict[str, str]:
    cameras: dict[str, str] = {}
    # Where a camera was recorded twice, what is not compressed is the better one.
    images = sorted((kind == COMPRESSED, topic) for topic, kind in types.items() if kind in (RAW, COMPRESSED))
    for _, topic in images:
        feature = IMAGES + camera_name(topic)
        if topic.endswith(_DEPTH):
            left_out[topic] = "depth, no picture"
        elif topic in unreadable:
            left_out[topic] = unreadable[topic]
        elif feature in cameras:
            left_out[topic] = f"the same camera as {cameras[feature]}; --image takes it"
        else:
            cameras[feature] = topic
    if not cameras:
        reasons = "; ".join(f"{topic}: {reason}" for topic, reason in left_out.items())
        raise ConvertError(f"{path}: no topic with images{f' ({reasons})' if reasons else ''}; {_list(types)}")
    return dict(sorted(cameras.items()))


def _rewards(path: Path, types: dict[str, str], wished: str | None) -> str | None:
    there = sorted(topic for topic, kind in types.items() if kind == REWARD)
    if wished is not None and wished not in there:
        raise ConvertError(f"{path}: no rewards on {wished!r}; topics of {REWARD}: {', '.join(there) or 'none'}")
    if wished is None and len(there) > 1:
        raise ConvertError(f"{path}: several topics of {REWARD}: {', '.join(there)}; choose one with --reward-topic")
    return wished or next(iter(there), None)


def _check_there(path: Path, types: dict[str, str], topic: str) -> None:
    if topic not in types:
        raise ConvertError(f"{path}: no topic {topic!r}; {_list(types)}")


def _list(types: dict[str, str]) -> str:
    return "topics: " + (", ".join(f"{topic} ({kind})" for topic, kind in sorted(types.items())) or "none")


def _images(types: dict[str, str]) -> str:
    return "topics with images: " + ", ".join(t for t, kind in sorted(types.items()) if kind in (RAW, COMPRESSED))
