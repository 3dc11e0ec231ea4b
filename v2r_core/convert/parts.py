"""What every kind of recording is turned into on its way to another one: episodes of frames at a constant rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.reward import RewardKind
from v2r_core.video.resize import Frame

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
"""Names that LeRobot's policies look for."""


class ConvertError(ValueError):
    """A recording cannot be converted; the message names it, what is wrong and the remedy."""


@dataclass(frozen=True)
class Vector:
    """A feature of numbers.

    Attributes:
        length: how many.
        names: of its entries; None: they have none.
    """

    length: int
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LabelHead:
    """What stands behind the labels of a recording.

    Attributes:
        camera: feature that was labelled.
        model: name of the bundle.
        model_sha256: of the bundle; empty: not known.
        reward: vip, uvd, time...
        reward_kind: "value" or "step_reward".
    """

    camera: str
    model: str
    model_sha256: str
    reward: str
    reward_kind: RewardKind


LABEL_FIELDS = ("reward", "value", "progress", "uncertainty", "status")


@dataclass(frozen=True)
class LabelRow:
    """The label of one frame: fields of v2r_msgs/Reward. NaN means "not available"."""

    reward: float
    value: float
    progress: float
    uncertainty: float
    status: int


def label_row(values: NDArray[np.float64]) -> LabelRow:
    """A label of its fields in the order of `LABEL_FIELDS`, (5,)."""
    reward, value, progress, uncertainty, status = values.tolist()
    return LabelRow(reward, value, progress, uncertainty, int(status))


@dataclass(frozen=True)
class Layout:
    """What every frame of a recording has.

    Attributes:
        fps: frames a second.
        cameras: height and width by feature, e.g. "observation.images.front".
        vectors: by feature, e.g. "observation.state" and "action".
        head: None: the recording is not labelled.
    """

    fps: int
    cameras: Mapping[str, tuple[int, int]]
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    head: LabelHead | None = None

    def check_same(self, other: Layout) -> None:
        """Refuses a recording that does not go into one dataset with this one.

        Raises:
            ConvertError: what differs.
        """
        for what, ours, theirs in (
            ("cameras (height, width)", dict(self.cameras), dict(other.cameras)),
            ("numbers", dict(self.vectors), dict(other.vectors)),
            ("labels", self.head, other.head),
        ):
            if ours != theirs:
                raise ConvertError(
                    f"its {what} are {_say(theirs)}, those of the recordings before it {_say(ours)}; "
                    "convert it by itself"
                )


@dataclass(frozen=True)
class Sample:
    """One frame.

    Attributes:
        images: uint8 RGB (H, W, 3) by feature.
        vectors: float32 (N,) by feature.
        label: None: the recording is not labelled.
    """

    images: Mapping[str, Frame]
    vectors: Mapping[str, NDArray[np.float32]]
    label: LabelRow | None = None


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        name: where it comes from, for people.
        task: what was to be done, in words.
        start_ns: when it began, in nanoseconds since 1970; 0: not known.
        length: number of frames.
        samples: gives the frames, once; raises ValueError where one cannot be read.
    """

    name: str
    task: str
    start_ns: int
    length: int
    samples: Callable[[], Iterator[Sample]]


@dataclass
class LeftOut:
    """What was not converted.

    Attributes:
        frames: number of frames by reason.
        topics: topics and cameras by reason.
        cuts: places at which an episode was cut in two.
    """

    frames: Counter[str] = field(default_factory=Counter)
    topics: dict[str, str] = field(default_factory=dict)
    cuts: int = 0


class Source(Protocol):
    """An open recording; one episode is read at a time, in order.

    Attributes:
        layout: what its frames have.
        left_out: what is not converted; complete when all episodes were read.
    """

    layout: Layout
    left_out: LeftOut

    def episodes(self) -> Sequence[Episode]:
        """Its episodes."""

    def close(self) -> None:
        """Frees the files."""


class Sink(Protocol):
    """A recording that is being written."""

    def begin(self, episode: Episode) -> None:
        """Starts an episode."""

    def add(self, sample: Sample) -> None:
        """Writes the next frame."""

    def end(self) -> None:
        """Ends the episode."""

    def discard(self) -> None:
        """Takes back the episode that has begun, if one has."""

    def finish(self) -> None:
        """Makes the recording complete."""

    def abort(self) -> None:
        """Closes the files of a recording that will never be complete."""


@dataclass(frozen=True)
class Wishes:
    """How to convert; see the options of `v2r convert`.

    Attributes:
        fps: frames a second; None: those of the first recording.
        images: "TOPIC[=NAME]" of a bag, cameras of a dataset, or the name for the pictures of videos.
        states: "TOPIC[=NAME]".
        actions: topics.
        features: "NAME=TOPIC:field.path".
        reward_topic: None: the only one.
        max_age: seconds; None: see `plan.oldest`.
        clock: "header": stamps of messages that have one; "recorded": times of recording.
        task: in words; None: as the recording says.
        task_topic: of std_msgs/String.
        episode_topic: see `mark_topic`.
        gap: see `EpisodeCutter`.
    """

    fps: int | None = None
    images: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    reward_topic: str | None = None
    max_age: float | None = None
    clock: str = "header"
    task: str | None = None
    task_topic: str | None = None
    episode_topic: str | None = None
    gap: float | None = None


def _say(value: object) -> str:
    return "none" if value in (None, {}) else str(value)
