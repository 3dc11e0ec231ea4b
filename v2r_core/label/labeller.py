"""From the images of a recording to serialised labels, one by one, in bounded memory."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.ahead import groups
from v2r_core.deploy.cameras import component_fields
from v2r_core.deploy.description import reward_info_fields
from v2r_core.deploy.judging import StreamJudge
from v2r_core.deploy.stream import DEFAULT_BATCH, Scorer, Status, flat
from v2r_core.label.goals import LAST, GoalPlan, GoalReader, GoalTable, OneGoal, OwnEnds
from v2r_core.label.messages import Header, Messages
from v2r_core.rewards.camera_progress import CameraProgress
from v2r_core.rewards.goal import Goal, goal_from_demonstration, goal_name, thinned_frames
from v2r_core.rewards.reward import RewardSample
from v2r_core.rewards.uvd import decompose
from v2r_core.video.pixels import ImageError
from v2r_core.video.resize import Frame


@dataclass(frozen=True)
class RecordedImage:
    """An image message.

    Attributes:
        recorded_ns: when it was recorded.
        header: its header.
        view: prepared for the encoder, one frame of each camera, uint8 (C, S, S, 3); None if they cannot be used.
        problem: why they cannot, as the live node's error; None if they can.
        size: height and width before it was prepared; (0, 0) if it cannot be read.
        begins: whether it is the first one of an episode other than the first.
    """

    recorded_ns: int
    header: Header
    view: Frame | None
    problem: Exception | None
    size: tuple[int, int]
    begins: bool


@dataclass(frozen=True)
class Label:
    """What is to be written behind an image message.

    Attributes:
        info: a serialised v2r_msgs/RewardInfo that comes before the reward; None: what was said still holds.
        reward: a serialised v2r_msgs/Reward; None: the image had no turn, see `StreamJudge.due`.
        progress: a serialised std_msgs/Float64 for each camera, if that was asked for; they come behind the reward.
    """

    info: bytes | None
    reward: bytes | None
    progress: tuple[bytes, ...] = ()


@dataclass
class LabelCounts:
    """What the labels came to.

    Attributes:
        images: image messages seen.
        labels: rewards among them.
        episodes: begun so far.
        statuses: number of labels of each status.
        problems: for each status the first problem, in words.
        sizes: height and width of the first camera's images, in the order in which they came up first.
    """

    images: int = 0
    labels: int = 0
    episodes: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    problems: dict[Status, str] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)


class Labeller:
    """Labels images as a live node would that got every one of them in time.

    Attributes:
        counts: what the labels came to so far.
    """

    def __init__(
        self,
        scorer: Scorer,
        plan: GoalPlan,
        messages: Messages,
        name: str,
        start_ns: int,
        scratch: Path,
        cameras: Sequence[str] = ("",),
    ) -> None:
        """Prepares to label one recording.

        Args:
            scorer: paced; has the goal if there is one for all episodes.
            plan: the goals of the episodes.
            messages: serialises labels, and knows whether the progress of every camera is one.
            name: of the recording, for the names of its episodes' own goals.
            start_ns: when the recording begins.
            scratch: folder for temporary files: an episode that is its own goal is kept until its end is known.
            cameras: names of the scorer's cameras.
        """
        self.counts = LabelCounts()
        self._scorer, self._plan, self._messages = scorer, plan, messages
        self._name, self._scratch, self._cameras = name, scratch, tuple(cameras)
        self._judge = StreamJudge(scorer)
        self._goals = GoalReader(scorer, self._cameras)
        self._progress: tuple[Goal, CameraProgress] | None = None
        self._start_ns = self._info_ns = start_ns
        self._pending: bytes | None = None

    def label(self, images: Iterable[RecordedImage]) -> Iterator[Label]:
        """One label for each image, in their order; the first one has an info.

        Raises:
            OSError: a goal of a table, or a temporary file.
            ValueError: a goal of a table is none.
        """
        self._judge.begin()
        self._begin_episode(self._start_ns)
        if isinstance(self._plan, OwnEnds):
            yield from self._label_towards_ends(images)
        else:
            yield from self._label_at_once(images)

    def _label_at_once(self, images: Iterable[RecordedImage]) -> Iterator[Label]:
        # Whether an image has its turn depends on what became of those before it, so with a period each goes alone.
        for group in groups(images, DEFAULT_BATCH if self._scorer.period is None else 1):
            turns = [self._judge.due(image.header.stamp_ns, image.recorded_ns) for image in group]
            embeddings = self._encode([image for image, turn in zip(group, turns, strict=True) if turn])
            for image, turn in zip(group, turns, strict=True):
                if image.begins:
                    self._begin_episode(image.recorded_ns)
                yield self._answer(image, next(embeddings)) if turn else self._leave_out()

    def _label_towards_ends(self, images: Iterable[RecordedImage]) -> Iterator[Label]:
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            episode = _StoredEpisode(file)
            for group in groups(images, DEFAULT_BATCH):
                for image, embedding in zip(group, self._encode(group), strict=True):
                    if image.begins:
                        yield from self._label_episode(episode)
                        self._begin_episode(image.recorded_ns)
                        episode.clear()
                    episode.add(image, embedding)
            yield from self._label_episode(episode)

    def _label_episode(self, episode: _StoredEpisode) -> Iterator[Label]:
        name = goal_name(f"{self._name}, end of episode {self._judge.episode}")
        goal = episode.own_goal(name, subgoals=self._scorer.reward_name == "uvd")
        if goal is None:
            self._scorer.drop_goal()
            self._say("")
        else:
            self._judge.set_goal(goal)
            self._say(LAST)
        for image, embedding in episode.stored():
            turn = self._judge.due(image.header.stamp_ns, image.recorded_ns)
            yield self._answer(image, embedding) if turn else self._leave_out()

    def _encode(self, images: Sequence[RecordedImage]) -> Iterator[NDArray[np.float32] | None]:
        """Embeddings, (C, D), of the usable ones among the images, None for the others."""
        views = [image.view for image in images if image.view is not None]
        embeddings = iter(self._scorer.encode(views) if views else ())
        return iter([None if image.view is None else next(embeddings) for image in images])

    def _begin_episode(self, moment_ns: int) -> None:
        self._info_ns = moment_ns
        self.counts.episodes += 1
        first = self.counts.episodes == 1
        if not first:
            self._judge.reset()
        if isinstance(self._plan, GoalTable):
            source = self._plan.source(self._judge.episode)
            if source is None:
                self._scorer.drop_goal()
            else:
                self._judge.set_goal(self._goals.read(source))
            self._say(source or "")
        elif isinstance(self._plan, OneGoal) and first:
            self._say(self._plan.source)

    def _say(self, source: str) -> None:
        """Has the next label begin with a description of what stands behind it."""
        fields = reward_info_fields(self._scorer, source, scale=1.0, clip=0.0, cameras=self._cameras)
        self._pending = self._messages.info(self._info_ns, fields)

    def _leave_out(self) -> Label:
        self.counts.images += 1
        return Label(None, None)

    def _answer(self, image: RecordedImage, embedding: NDArray[np.float32] | None) -> Label:
        def step() -> tuple[RewardSample, Status]:
            if embedding is None:
                raise image.problem or ImageError("the image cannot be used")
            return self._scorer.step_encoded(embedding)

        judged = self._judge.judge(image.header.stamp_ns, image.recorded_ns, step)
        counts, status = self.counts, judged.status
        counts.images += 1
        counts.labels += 1
        counts.statuses[status] += 1
        if judged.problem:
            counts.problems.setdefault(status, f"image {counts.images - 1}: {judged.problem}")
        if any(image.size) and image.size not in counts.sizes:
            counts.sizes.append(image.size)
        info, self._pending = self._pending, None
        components = component_fields(self._scorer, self._cameras, judged.sample)
        reward = self._messages.reward(image.header, judged.fields(self._scorer.goal) | components)
        return Label(info, reward, self._camera_progress(judged.sample, embedding))

    def _camera_progress(self, sample: RewardSample | None, embedding: NDArray[np.float32] | None) -> tuple[bytes, ...]:
        if not self._messages.progress_topics:
            return ()
        goal, found = self._scorer.goal, np.full(len(self._cameras), np.nan, np.float32)
        if goal is not None and sample is not None and embedding is not None:
            if self._progress is None or self._progress[0] is not goal:
                self._progress = goal, CameraProgress(goal, subgoals=self._scorer.reward_name == "uvd")
            found = self._progress[1].of(embedding, sample.subgoal_index)
        return tuple(self._messages.number(float(each)) for each in found)


class _StoredEpisode:
    """Images of an episode and their embeddings, which wait in a file until the last one is known."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._images: list[tuple[RecordedImage, bool]] = []
        self._demonstration: list[int] = []
        self._rows = self._newest_ns = 0
        self._shape: tuple[int, ...] = (1, 0)

    def clear(self) -> None:
        """Forgets all images, for a new episode."""
        self._file.seek(0)
        self._file.truncate()
        self._images.clear()
        self._demonstration.clear()
        self._rows = self._newest_ns = 0

    def add(self, image: RecordedImage, embedding: NDArray[np.float32] | None) -> None:
        """Keeps an image without its pixels."""
        self._images.append((replace(image, view=None), embedding is not None))
        if embedding is None:
            return
        stamp = image.header.stamp_ns
        if np.isfinite(embedding).all() and (not stamp or stamp > self._newest_ns):
            self._demonstration.append(self._rows)
            self._newest_ns = stamp
        self._shape = embedding.shape
        self._file.write(np.ascontiguousarray(embedding, np.float32).data)
        self._rows += 1

    def own_goal(self, name: str, subgoals: bool) -> Goal | None:
        """The episode as its own demonstration, as `Scorer.goal_from_video` makes it; None without a usable image."""
        count = len(self._demonstration)
        if not count:
            return None
        numbers = np.arange(count, dtype=np.int64) if subgoals else thinned_frames(count)
        embeddings = np.stack([self._row(self._demonstration[number]) for number in numbers])
        if subgoals:
            return goal_from_demonstration(embeddings, name, decompose(flat(embeddings)).indices)
        return goal_from_demonstration(embeddings, name, frame_numbers=numbers)

    def stored(self) -> Iterator[tuple[RecordedImage, NDArray[np.float32] | None]]:
        """What was added, in its order."""
        row = 0
        for image, usable in self._images:
            yield image, self._row(row) if usable else None
            row += usable

    def _row(self, number: int) -> NDArray[np.float32]:
        size = math.prod(self._shape) * 4
        self._file.seek(number * size)
        return np.frombuffer(self._file.read(size), np.float32).reshape(self._shape)
