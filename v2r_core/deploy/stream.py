"""The scorer: bundle + runtime + reward. The node and the command line both go through it, so they agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.ahead import ahead, groups
from v2r_core.deploy.bundle import Bundle, Precision
from v2r_core.deploy.pacing import frames_apart
from v2r_core.deploy.runtime import NetworkSession, Session
from v2r_core.rewards import EmbeddingReward, make_reward
from v2r_core.rewards.baselines import pixel_embedding
from v2r_core.rewards.calibration import CameraRule
from v2r_core.rewards.goal import Goal, goal_from_demonstration, goal_from_images, load_goal, thinned_frames
from v2r_core.rewards.reward import Embed, Network, RewardCurve, RewardKind, RewardSample
from v2r_core.rewards.uvd import decompose
from v2r_core.video.resize import Frame, resize_frame
from v2r_core.video.video import mean_rate

View = Frame | tuple[Frame, ...]
"""What is seen at one moment: a frame, or one frame of each camera."""

DEFAULT_BATCH = 4


class Status(IntEnum):
    """How far a sample can be trusted; the numbers are those of v2r_msgs/Reward (a test holds them together)."""

    OK = 0
    STALE_IMAGE = 1
    NO_GOAL = 2
    BAD_IMAGE = 3
    OUT_OF_DISTRIBUTION = 4
    WARMING_UP = 5
    INTERNAL_ERROR = 6


class NoGoalError(RuntimeError):
    """A frame was to be scored before a goal was set."""


class SizedFrames(Protocol):
    """Frames (or views of several cameras) in order, and their number."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[View]: ...


class SizedVideo(SizedFrames, Protocol):
    """What `score` needs of a video: its frames in order, their number and their stamps in seconds."""

    @property
    def stamps(self) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class VideoScore:
    """A scored video.

    Attributes:
        stamps: (T,) float64 seconds.
        curve: the samples.
        status: (T,) int64, values of `Status`.
        encoder_ms: mean wall milliseconds a frame spent in the encoder.
        seconds: wall time of the whole, decoding included.
    """

    stamps: NDArray[np.float64]
    curve: RewardCurve
    status: NDArray[np.int64]
    encoder_ms: float
    seconds: float


class Scorer:
    """Turns frames into rewards. Not thread-safe: one thread at a time.

    Attributes:
        bundle: what it was made from.
        session: the running encoder.
        reward_name: vip, uvd, pixel, or what the bundle has learned: time, viper, diffusion.
        cameras: number of cameras C; with more than one, every frame is a tuple of C frames.
        period: seconds from one frame to the next that the reward's window wants, None if it does not matter.
        goal: the goal in force, or None.
    """

    def __init__(
        self,
        bundle: Bundle,
        reward: str | None = None,
        parameters: Mapping[str, float | int | str | bool] | None = None,
        precision: Precision | None = None,
        providers: Sequence[str] = ("auto",),
        threads: int = 1,
        cameras: int = 1,
        paced: bool = False,
        through: Callable[[str, Network], Network] | None = None,
    ) -> None:
        """Loads encoder and, where the bundle has one for so many cameras, goal.

        Args:
            bundle: a checked bundle.
            reward: vip, uvd, pixel, or the bundle's own; None takes that.
            parameters: parameters of the reward that override the bundle's.
            precision: see `Session`.
            providers: see `choose_providers`.
            threads: CPU threads of the encoder.
            cameras: number of cameras; the reward's parameter of that name says how their distances become one.
            paced: frames will come `period` apart, as on a robot, where the caller leaves out what comes between. Else
                they come as the videos of the training have them, and windows take every so manieth of them.
            through: given the encoder and every network by name, returns what is to be asked in its stead; it answers
                the same, e.g. out of a journal.

        Raises:
            BundleError, ProviderError: see `Session`.
            ValueError: a parameter of the reward is unknown or out of range.
        """
        spec = bundle.manifest.reward
        self.bundle = bundle
        self.cameras = cameras
        self.session = Session(bundle, precision, providers, threads, DEFAULT_BATCH * cameras)
        self.reward_name: str = reward or spec.name
        own = self.reward_name == spec.name
        networks: dict[str, Network] = {
            name: NetworkSession(bundle, name, providers, threads) for name in bundle.manifest.networks if own
        }
        self._embed: Embed = pixel_embedding if self.reward_name == "pixel" else self.session
        if through is not None:
            self._embed = through("encoder", self._embed)
            networks = {name: through(name, network) for name, network in networks.items()}
        chosen: dict[str, Any] = {**(spec.parameters if own else {}), **(parameters or {})}
        self.period = 1 / spec.rate if own and spec.rate else None
        if paced and self.period is not None:
            chosen["stride"] = 1
        tensors = bundle.tensors() if own else {}

        def make() -> EmbeddingReward:
            return make_reward(self.reward_name, self._embed, self._parameters, networks=networks, tensors=tensors)

        self._make, self._parameters = make, chosen
        self.reward = make()
        self.goal: Goal | None = None
        self._newest: NDArray[np.float32] | None = None
        if bundle.manifest.goal and self.reward_name != "pixel":
            own_goal = load_goal(bundle.path / bundle.manifest.goal)
            if own_goal.milestones.shape[1] == cameras:
                self.set_goal(own_goal)

    def prepare(self, frame: Frame) -> Frame:
        """Resizes one frame, uint8 (H, W, 3), to what the encoder takes, uint8 (S, S, 3)."""
        return resize_frame(frame, self.bundle.preprocess)

    def embed(self, frames: Iterable[View], batch: int = DEFAULT_BATCH) -> NDArray[np.float32]:
        """Embeddings, float32 (T, C, D), of frames of any size; decoding and encoding overlap."""
        rows = [self.encode(group) for group in self._prepared(frames, batch)]
        if not rows:
            raise ValueError("no frames to embed; give a video with at least one frame")
        return np.concatenate(rows)

    def _prepared(self, frames: Iterable[View], batch: int) -> Iterator[list[Frame]]:
        """Groups of prepared views, each uint8 (C, S, S, 3), made ahead of time in a thread."""
        return groups(ahead(self._prepare_view(view) for view in frames), batch)

    def _prepare_view(self, view: View) -> Frame:
        each = view if isinstance(view, tuple) else (view,)
        if len(each) != self.cameras:
            raise ValueError(f"{len(each)} frames at one moment for {self.cameras} cameras; give one of each camera")
        return np.stack([self.prepare(frame) for frame in each])

    def encode(self, views: list[Frame]) -> NDArray[np.float32]:
        """Embeddings, float32 (N, C, D), of prepared views, each uint8 (C, S, S, 3)."""
        return self._embed(np.concatenate(views)).reshape(len(views), self.cameras, -1)

    def goal_from_frames(self, frames: Iterable[View], name: str) -> Goal:
        """A goal out of one or several goal images; it has no demonstration, so progress will be NaN."""
        embeddings = self.embed(frames)
        # Where the distance is no norm, that to the mean of several goals is not the mean distance to them.
        return goal_from_images(embeddings, name, keep_all=self.reward_name == "time")

    def goal_from_video(self, video: SizedFrames, name: str, subgoals: bool | None = None) -> Goal:
        """A goal out of a demonstration: its last frame, with progress and uncertainty calibrated on all of it.

        Args:
            video: the frames of the demonstration in order.
            name: identifier.
            subgoals: split it by UVD; None does so if the reward is uvd.
        """
        split = self.reward_name == "uvd" if subgoals is None else subgoals
        if split:
            embeddings = self.embed(video)
            return goal_from_demonstration(embeddings, name, decompose(flat(embeddings)).indices)
        numbers = thinned_frames(len(video))
        wanted = set(numbers.tolist())
        embeddings = self.embed(frame for number, frame in enumerate(video) if number in wanted)
        return goal_from_demonstration(embeddings, name, frame_numbers=numbers)

    def set_goal(self, goal: Goal) -> None:
        """Puts a goal in force and starts an episode. Raises ValueError and changes nothing if it does not fit."""
        expected = self._embed(np.zeros((1, self.session.size, self.session.size, 3), np.uint8)).shape[1]
        found = goal.milestones.shape[2]
        if found != expected:
            raise ValueError(
                f"goal {goal.name!r} has embeddings of length {found}, the encoder gives {expected}; "
                "make the goal again with this bundle"
            )
        if goal.milestones.shape[1] != self.cameras:
            raise ValueError(
                f"goal {goal.name!r} is for {goal.milestones.shape[1]} cameras, there are {self.cameras}; "
                "make the goal again with these cameras"
            )
        self.reward.reset(goal)
        self.goal = goal

    def drop_goal(self) -> None:
        """Takes the goal out of force; a reward that needs one scores nothing until the next one is set."""
        self.goal = None

    def set_shape(self, scale: float, clip: float | None) -> None:
        """Changes factor and bound of the reward from the next frame on; they outlive a change of the videos' rate.

        Args:
            scale: factor on the reward, above 0.
            clip: the scaled reward is limited to [-clip, clip]; above 0, None for no limit.

        Raises:
            ValueError: a number out of its range; nothing is changed.
        """
        self.reward.set_shape(scale, clip)
        self._parameters |= {"scale": scale, "clip": clip}

    @property
    def camera_rule(self) -> CameraRule:
        """How the distances of several cameras become one."""
        rule: CameraRule = self._parameters.get("cameras", "mean")
        return rule

    def reset(self) -> None:
        """Starts an episode with the goal in force."""
        self.reward.reset()

    def step(self, view: View) -> tuple[RewardSample, Status]:
        """Scores one camera frame, uint8 (H, W, 3) of any size, or a tuple of one of each camera.

        Raises:
            NoGoalError: the reward needs a goal and has none.
        """
        return self.step_encoded(self.encode([self._prepare_view(view)])[0])

    def step_encoded(self, embedding: NDArray[np.float32]) -> tuple[RewardSample, Status]:
        """What `step` says of a view with that embedding, float32 (C, D); see `encode`."""
        self._newest = embedding
        self._need_goal()
        return judge(self.reward.observe(self._newest), self.reward.kind)

    def distances_to_goal(self) -> NDArray[np.float32]:
        """Embedding distance of each camera, (C,), from the newest view given to `step` to the goal; NaN without."""
        if self._newest is None or self.goal is None:
            return np.full(self.cameras, np.nan, np.float32)
        result: NDArray[np.float32] = np.linalg.norm(self._newest - self.goal.milestones[-1], axis=-1)
        return result

    def score(
        self,
        video: SizedVideo,
        on_progress: Callable[[int, int], None] | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> VideoScore:
        """Scores a video as one episode; equals repeated `step`. Decoding and encoding overlap.

        Args:
            video: what `open_video` gives.
            on_progress: called with (frames done, frames in all).
            batch: frames an inference.

        Raises:
            NoGoalError: the reward needs a goal and has none.
        """
        self._need_goal()
        self._match_rate(video)
        self.reset()
        samples: list[RewardSample] = []
        statuses: list[Status] = []
        encoding = 0.0
        start = time.perf_counter()
        for group in self._prepared(video, batch):
            before = time.perf_counter()
            embeddings = self.encode(group)
            encoding += time.perf_counter() - before
            for each in self.reward.observe_many(embeddings):
                sample, status = judge(each, self.reward.kind)
                samples.append(sample)
                statuses.append(status)
            if on_progress is not None:
                on_progress(len(samples), len(video))
        return VideoScore(
            stamps=np.asarray(video.stamps, np.float64)[: len(samples)],
            curve=RewardCurve.from_samples(samples),
            status=np.array(statuses, np.int64),
            encoder_ms=encoding / max(len(samples), 1) * 1e3,
            seconds=time.perf_counter() - start,
        )

    def _match_rate(self, video: SizedVideo) -> None:
        """Lets windows take every so manieth frame of a video, so that they span the time that they did in training."""
        fps = mean_rate(np.asarray(video.stamps, np.float64))
        if self.period is None or not np.isfinite(fps):
            return
        stride = frames_apart(1 / fps, self.period)
        if stride < 1:
            raise ValueError(
                f"the video has {fps:.3g} frames/s, a window of {self.reward_name!r} wants {1 / self.period:.3g}; "
                "give a video with more, or train with a larger stride"
            )
        if stride != self._parameters.get("stride"):
            self._parameters["stride"] = stride
            self.reward = self._make()

    def _need_goal(self) -> None:
        if self.reward.needs_goal and self.goal is None:
            raise NoGoalError(f"the reward {self.reward_name!r} needs a goal and none is set; see set_goal")


def flat(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings (T, C, D) of several cameras as one long embedding, (T, C * D), for UVD's decomposition."""
    return embeddings.reshape(len(embeddings), -1)


def judge(sample: RewardSample, kind: RewardKind = "value") -> tuple[RewardSample, Status]:
    """Says how far a sample can be trusted, and takes out the numbers that cannot.

    A step reward has no value; it has an uncertainty for every frame that it understood, and no reward until its
    window is full.
    """
    if sample.uncertainty > 1.0:
        nan = float("nan")
        return replace(sample, reward=nan, raw_reward=nan, value=nan, progress=nan), Status.OUT_OF_DISTRIBUTION
    if not np.isfinite(sample.value if kind == "value" else sample.uncertainty):
        return sample, Status.INTERNAL_ERROR
    return sample, Status.OK if np.isfinite(sample.reward) else Status.WARMING_UP
