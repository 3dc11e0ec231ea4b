"""A labelled rosbag2: the rewards of a bag as labels, and the images that they belong to. No ROS in here."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from v2r_core.deploy.stream import Status
from v2r_core.label.messages import REWARD, REWARD_INFO, SECOND_NS, read_header
from v2r_core.label.table import LabelOrigin, Labels
from v2r_core.look.bag_types import types_of
from v2r_core.look.labelled_set import LabelledEpisode, LabelledSet, NotLabelledError
from v2r_core.rewards.reward import RewardCurve, RewardKind
from v2r_core.video.bag import COMPRESSED, RAW, BagVideo, open_bag
from v2r_core.video.resize import Frame
from v2r_core.video.video import Video, VideoError, mean_rate, resolve_index

NUMBERS = ("reward", "raw_reward", "value", "progress", "uncertainty")
INTEGERS = ("subgoal_index", "subgoal_count", "status", "episode")
SAME_STAMP = 5e-7
"""Seconds; a double holds the seconds since 1970 to a quarter of a microsecond."""
NO_IMAGE = -1


def bag_set(path: Path, topic: str | None) -> LabelledSet:
    """The episodes of a bag with rewards.

    An episode is a run of messages with the same `episode`. Its images are those with the header stamps of its
    rewards, on the topic on which the first reward's image is; they are indexed when the first one is asked for.

    Args:
        path: folder of a rosbag2, or one of its files.
        topic: a reward topic, or the image topic; None: what is found.

    Raises:
        VideoError: the bag cannot be read.
        NotLabelledError: no rewards in it, or several topics of them and none was chosen.
    """
    with closing(open_bag(path)) as reader:
        rewards = _reward_connections(path, reader.connections, topic)
        images = [c for c in reader.connections if c.msgtype in (RAW, COMPRESSED)]
        chosen = next((c.topic for c in images if c.topic == topic), None) or _image_topic(reader, rewards, images)
        rows = _read(path, reader, rewards)
    pictures = _Pictures(path, chosen)
    bounds = [*rows.starts, len(rows)]

    def read(place: int) -> LabelledEpisode:
        labels = rows.labels(str(path), bounds[place], bounds[place + 1], rows.infos[place])
        moments = rows.recorded[bounds[place] : bounds[place + 1]]
        return LabelledEpisode(labels.origin.name, labels, lambda: pictures.frames(labels, moments))

    names = tuple(f"episode {rows.columns['episode'][start]}" for start in rows.starts)
    about = {"image topic": chosen or "none has the stamps of the rewards", "reward topic": rewards[0].topic}
    return LabelledSet(path, "bag", names, about | _about(rows.infos), read, free=pictures.close)


def _reward_connections(path: Path, connections: list[Connection], topic: str | None) -> list[Connection]:
    types = {connection.topic: connection.msgtype for connection in connections}
    if topic is not None and topic not in types:
        raise NotLabelledError(f"{path}: no topic {topic!r}; topics: {', '.join(sorted(types))}")
    there = sorted(name for name, kind in types.items() if kind == REWARD)
    if topic in there:
        there = [topic]
    if not there:
        raise NotLabelledError(f"{path} has no topic of {REWARD}; label it first: v2r label {path} --out LABELLED")
    if len(there) > 1:
        raise NotLabelledError(f"{path} has several topics of {REWARD}, choose one as in {path}:{there[0]}; {there}")
    return [connection for connection in connections if connection.topic == there[0]]


def _image_topic(reader: Reader, rewards: list[Connection], images: list[Connection]) -> str | None:
    """The topic of the image that came last before a reward with its stamp; None if there is no such image."""
    newest: dict[str, int] = {}
    topic = rewards[0].topic
    for connection, _, data in reader.messages(connections=[*rewards, *images]) if images else ():
        try:
            stamp = read_header(data).stamp_ns
        except ValueError:  # a damaged image; reading it will say so
            continue
        if connection.topic != topic:
            newest.pop(connection.topic, None)  # so that the one that was heard last comes last
            newest[connection.topic] = stamp
            continue
        found = [name for name, each in newest.items() if each == stamp]
        if found:
            return found[-1]
    return None


@dataclass
class _Rows:
    """All rewards of a bag, a few numbers each.

    Attributes:
        columns: fields of the messages.
        stamps: header stamps, seconds.
        recorded: when they were recorded, seconds.
        starts: first row of each episode.
        infos: the description in force at each of these.
        goals: goal of each of these.
    """

    columns: dict[str, array[Any]] = field(
        default_factory=lambda: {n: array("d") for n in NUMBERS} | {n: array("q") for n in INTEGERS}
    )
    stamps: array[float] = field(default_factory=lambda: array("d"))
    recorded: array[float] = field(default_factory=lambda: array("d"))
    starts: list[int] = field(default_factory=list)
    infos: list[Any] = field(default_factory=list)
    goals: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.stamps)

    def add(self, recorded_ns: int, message: Any, info: Any) -> None:
        if not len(self) or self.columns["episode"][-1] != message.episode:
            self.starts.append(len(self))
            self.infos.append(info)
            self.goals.append(message.goal_id)
        for name, column in self.columns.items():
            column.append(getattr(message, name))
        stamp = message.header.stamp
        self.stamps.append(float(stamp.sec) + float(stamp.nanosec) * 1e-9)
        self.recorded.append(recorded_ns / SECOND_NS)

    def labels(self, source: str, start: int, stop: int, info: Any) -> Labels:
        def column(name: str, dtype: type) -> NDArray[Any]:
            return np.array(self.columns[name][start:stop], dtype)

        curve = RewardCurve(
            **{name: column(name, np.float64) for name in NUMBERS},
            subgoal_index=column("subgoal_index", np.int64),
            subgoal_count=column("subgoal_count", np.int64),
        )
        stamps = np.array(self.stamps[start:stop])
        place = self.starts.index(start)
        origin = LabelOrigin(
            source=source,
            name=f"episode {self.columns['episode'][start]}",
            reward=info.reward_name if info else "unknown",
            kind=_kind(info, curve),
            goal=self.goals[place],
            goal_source=info.goal_source if info else "",
            model=info.model_name if info else "unknown",
            model_sha256=info.model_sha256 if info else "",
        )
        # Where no image has a stamp, the times of recording are all that there is.
        moments = stamps if stamps.any() else np.array(self.recorded[start:stop])
        return Labels(origin, moments, curve, column("status", np.int64))


def _read(path: Path, reader: Reader, rewards: list[Connection]) -> _Rows:
    """Reads all rewards, and with them what was said about them on the info topic beside them."""
    beside = rewards[0].topic.rpartition("/")[0] + "/info"
    infos = [c for c in reader.connections if c.msgtype == REWARD_INFO and c.topic == beside]
    types = {c.msgtype: types_of(c) for c in [*rewards, *infos]}
    rows, info = _Rows(), None
    try:
        for connection, time_ns, data in reader.messages(connections=[*rewards, *infos]):
            message = types[connection.msgtype].deserialize_cdr(data, connection.msgtype)
            if connection.msgtype == REWARD_INFO:
                info = message
            else:
                rows.add(time_ns, message, info)
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        raise VideoError(
            f"{path}: reward {len(rows)} cannot be read ({error}); the bag is damaged, try `ros2 bag reindex`"
        ) from error
    if not len(rows):
        raise NotLabelledError(f"{path}: no message on {rewards[0].topic}; label it again")
    return rows


def _kind(info: Any, curve: RewardCurve) -> RewardKind:
    if info is not None:
        return "value" if info.kind == info.KIND_VALUE else "step_reward"
    return "value" if np.isfinite(curve.value).any() else "step_reward"


def _about(infos: list[Any]) -> dict[str, str]:
    info = next((each for each in infos if each is not None), None)
    if info is None:
        return {"model": "unknown: no info topic beside the rewards"}
    kind = "value" if info.kind == info.KIND_VALUE else "step reward"
    return {
        "model": info.model_name,
        "sha256 of the model": info.model_sha256,
        "reward": f"{info.reward_name} ({kind})",
    }


class _Pictures:
    """The images of a bag, opened and indexed once for all its episodes."""

    def __init__(self, path: Path, topic: str | None) -> None:
        self._path, self._topic = path, topic
        self._video: BagVideo | None = None
        self._recorded: NDArray[np.float64] | None = None

    def frames(self, labels: Labels, recorded: array[float]) -> Video:
        if self._topic is None:
            raise VideoError(f"{self._path}: no image topic has the stamps of the rewards; record the images too")
        if self._video is None:
            self._video = BagVideo(self._path, self._topic)
            if len(np.unique(self._video.stamps)) < len(self._video):
                self._recorded = _recording_times(self._path, self._topic)
        moments = np.array(recorded)
        numbers = _same_stamp(self._video.stamps, labels.stamps)
        if (numbers == NO_IMAGE).all():
            # An unstamped image comes right before its reward; rewards of a live node come a little later.
            numbers = np.searchsorted(self._video.stamps, moments, side="right") - 1
        elif self._recorded is not None:
            numbers = _of_the_same_run(numbers, self._video.stamps, self._recorded, moments)
        stale = np.isin(labels.status, [int(Status.STALE_IMAGE)])
        return _EpisodeFrames(self._video, labels.origin.name, np.where(stale, NO_IMAGE, numbers), labels.stamps)

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None


def _same_stamp(images: NDArray[np.float64], rewards: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the image with the stamp of each reward, `NO_IMAGE` where there is none; stamps may go back."""
    order = np.argsort(images, kind="stable")
    ascending = images[order]
    found = np.searchsorted(ascending, rewards + SAME_STAMP, side="right") - 1
    close = (found >= 0) & (np.abs(ascending[found] - rewards) <= SAME_STAMP)
    return np.where(close, order[found], NO_IMAGE)


def _recording_times(path: Path, topic: str) -> NDArray[np.float64]:
    """When each message of a topic was recorded, seconds."""
    with closing(open_bag(path)) as reader:
        connections = [each for each in reader.connections if each.topic == topic]
        return np.array([time / SECOND_NS for _, time, _ in reader.messages(connections=connections)])


def _of_the_same_run(
    numbers: NDArray[np.int64], images: NDArray[np.float64], recorded: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Chooses among images with one stamp, as a simulator makes them that is reset: the last before the reward was.

    Args:
        numbers: (T,) of an image with the stamp of each reward.
        images: (N,) stamps of all images, seconds.
        recorded: (N,) when they were recorded, seconds.
        moments: (T,) when the rewards were recorded, seconds.
    """
    places: dict[float, list[int]] = {}
    for number, stamp in enumerate(images.tolist()):
        places.setdefault(stamp, []).append(number)
    found = numbers.copy()
    for row in np.flatnonzero(numbers != NO_IMAGE).tolist():
        same = places[float(images[numbers[row]])]
        found[row] = next((each for each in reversed(same) if recorded[each] <= moments[row]), same[0])
    return found


class _EpisodeFrames:
    """The images of some rewards, in their order; see `video.Video`. Closing it leaves the bag open for the next."""

    def __init__(self, video: BagVideo, name: str, numbers: NDArray[np.int64], stamps: NDArray[np.float64]) -> None:
        self.name, self.stamps = f"{video.name}, {name}", stamps
        self.fps = mean_rate(stamps) if len(stamps) else math.nan
        self._video, self._numbers = video, numbers

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, index: SupportsIndex) -> Frame:
        row = resolve_index(index, len(self), self.name)
        if self._numbers[row] == NO_IMAGE:
            raise VideoError(f"{self.name}: row {row} has no image in the bag")
        return self._video[int(self._numbers[row])]

    def __iter__(self) -> Iterator[Frame]:
        return (self[row] for row in range(len(self)))

    def close(self) -> None:
        """Nothing: the bag belongs to the set."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
