"""What every kind of recording is turned into on its way to another one: episodes of frames at a constant rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from v2r_core.convert.grid import summed
from v2r_core.rewards.reward import RewardKind
from v2r_core.video.resize import Frame

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
"""Names that LeRobot's policies look for."""


CameraNames = Literal["folders", "files"]
"""What is named after the camera in a folder of videos: CAMERA/EPISODE.mp4, or EPISODE/CAMERA.mp4."""


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


LABEL_FIELDS = (
    "reward",
    "raw_reward",
    "value",
    "progress",
    "uncertainty",
    "subgoal_index",
    "subgoal_count",
    "status",
)
NUMBER_FIELDS = ("reward", "raw_reward", "value", "progress", "uncertainty")
"""Those that are no integers."""
STEP_FIELDS = ("reward", "raw_reward")
"""Those that are of a step, so that they add up where frames are left out."""


@dataclass(frozen=True)
class LabelRow:
    """The label of one frame: fields of v2r_msgs/Reward. NaN means "not available"."""

    reward: float
    raw_reward: float
    value: float
    progress: float
    uncertainty: float
    subgoal_index: int
    subgoal_count: int
    status: int


def label_row(values: NDArray[np.float64]) -> LabelRow:
    """A label of its fields in the order of `LABEL_FIELDS`, (8,)."""
    fields = dict(zip(LABEL_FIELDS, values.tolist(), strict=True))
    return LabelRow(**{name: value if name in NUMBER_FIELDS else int(value) for name, value in fields.items()})


def resampled(rows: NDArray[np.float64], at: NDArray[np.int64]) -> NDArray[np.float64]:
    """Labels, (N, 8), of the frames that remain of (T, 8); rewards are summed over the frames that do not.

    Args:
        rows: fields in the order of `LABEL_FIELDS`.
        at: (N,) ascending numbers of the frames that remain.
    """
    found = rows[at].copy()
    for column in map(LABEL_FIELDS.index, STEP_FIELDS):
        found[:, column] = summed(rows[:, column], at)
    return found


def no_label(status: int) -> NDArray[np.float64]:
    """The fields of a frame that has no label, (8,)."""
    numbers = [float("nan") if name in NUMBER_FIELDS else 0.0 for name in LABEL_FIELDS[:-1]]
    return np.array([*numbers, status], np.float64)


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
        skip: to be called instead of `samples` if nobody needs the frames.
        key: name in the `EpisodeJournal`; whoever writes the episode gives it.
    """

    name: str
    task: str
    start_ns: int
    length: int
    samples: Callable[[], Iterator[Sample]]
    skip: Callable[[], None] = lambda: None
    key: str = ""


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
    """A recording that is being written.

    Its episodes also go into a journal. What was finished there by a run that died is taken over instead of being
    decoded and encoded again.
    """

    def place(self) -> tuple[int, ...]:
        """What decides how the next recording is written besides that recording itself; empty: nothing, as for the
        first one."""

    def recall(self, episode: Episode) -> bool:
        """Takes an episode from the journal; False: it is not there, begin it."""

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
        """Closes the files of a recording that will not be complete now; the journal stays if anything is in it."""


@dataclass(frozen=True)
class Wishes:
    """How to convert; see the options of `v2r convert`.

    Attributes:
        fps: frames a second; None: those of the first recording.
        images: "TOPIC[=NAME]" of a bag, cameras of a dataset or of videos, or the name for the pictures of videos.
        cameras: which videos are cameras of one episode; see `camera_videos.group_videos`. None: each is an episode.
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
    cameras: CameraNames | None = None
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
