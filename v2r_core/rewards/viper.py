"""VIPER (Escontrela et al., NeurIPS 2023, section 3.2): a step is worth how likely a video model finds it.

    r_t = sum over the window of log p(x_i | x_<i)      "joint", the default of the released code
    r_t = log p(x_t | x_<t)                             "conditional", the paper's equation

The score belongs to the frame that was just seen, given those before it. It says how expected a step is, not how far
the task has come: a robot that stands still may be expected too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from v2r_core.rewards.goal import Goal
from v2r_core.rewards.goal_distance import (
    NAN,
    SCORE_BATCH,
    RewardShape,
    as_cameras,
    check_choice,
    check_positive,
    embed_in_batches,
)
from v2r_core.rewards.quantization import Codes, quantize
from v2r_core.rewards.reward import Embed, RewardCurve, RewardKind, RewardSample
from v2r_core.rewards.window import FrameWindow

WINDOW_BATCH = 8
"""Windows that go through the network at once, times the number of cameras."""

EntryT = TypeVar("EntryT")


@dataclass(frozen=True)
class _Query:
    """A window to be scored, int64 (C, T, L).

    Attributes:
        codes: of the window; behind `last` the frames are padding, which a causal model does not look at.
        last: place of the newest frame.
        begun: number of the newest frame, from 1, where there are too few frames for a window yet; 0 for a whole one.
    """

    codes: Codes
    last: int
    begun: int = 0


class ViperReward:
    """Log-likelihood of what was just seen, standardised.

    Frames whose latents are far from all codes (uncertainty above 1) are out of distribution: they have no reward, and
    the window starts anew, as after an embedding that is not finite. With `incomplete="official"` that means values of
    a begun window again, so that an episode goes on as one that starts there.

    Attributes:
        kind, needs_goal, history, stochastic: see `Reward`.
        embed: frames to latents before quantisation, float32 (N, h * w * z), z fastest.
    """

    kind: RewardKind = "step_reward"
    needs_goal = False
    stochastic = False

    def __init__(
        self,
        embed: Embed,
        networks: Mapping[str, Callable[..., NDArray[np.float32]]],
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        scale: float = 1.0,
        clip: float | None = None,
        cameras: Literal["mean"] = "mean",
        frames: int = 16,
        stride: int = 1,
        mode: Literal["joint", "conditional"] = "joint",
        incomplete: Literal["nan", "official"] = "nan",
        classes: int = 0,
        label: int = 0,
        mean: float = 0.0,
        std: float = 1.0,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Makes the reward.

        Args:
            embed: prepared frames to latents.
            networks: `likelihood`: `codes`, int64 (N, T, L), and with classes `label`, int64 (N,), to the
                log-probability of each frame in nats, float32 (N, T).
            tensors: `codebook`, float32 (K, z), and `quantization_threshold`, a scalar: the root mean square distance
                of latents to their codes from which on a frame is unlike all that the tokenizer was trained on.
            scale: factor on the standardised reward, above 0.
            clip: it is limited to [-clip, clip]; above 0, None for no limit.
            cameras: the scores of several cameras become their mean.
            frames: T, of the window.
            stride: camera frames from one of them to the next.
            mode: see above.
            incomplete: what a frame is worth before there are enough of them. "nan": nothing. "official", as in the
                released code, whose window takes frames * stride steps: its log-probability given what frames of its
                phase there are; in mode "joint" the running mean of these, so the scale jumps by about `frames` when
                the window is complete.
            classes: that the network is conditioned on, 0 for none.
            label: the class of the task, 0 to classes - 1.
            mean: of the raw score, subtracted.
            std: of the raw score, divided by; above 0.
            low: together with `high`, in place of mean and std: the raw score is mapped from [low, high] to [0, 1] and
                limited to that, as the released code can.
            high: see `low`.

        Raises:
            ValueError: a parameter out of range; a network or tensor that is missing.
        """
        self.embed = embed
        self._network = _entry("networks", networks, "likelihood")
        self._codebook = np.asarray(_entry("tensors", tensors, "codebook"), np.float32)
        threshold = float(np.asarray(_entry("tensors", tensors, "quantization_threshold")).reshape(-1)[0])
        self._threshold = check_positive("quantization_threshold", threshold)
        self._shape = RewardShape(scale, clip)
        check_choice("cameras", cameras, ("mean",))
        self._window: FrameWindow[Codes] = FrameWindow(frames, stride)
        self._joint = check_choice("mode", mode, ("joint", "conditional")) == "joint"
        self._official = check_choice("incomplete", incomplete, ("nan", "official")) == "official"
        self._label = _check_label(classes, label)
        self._standardise = _standardisation(mean, std, low, high)
        self.history = frames * stride if self._official else self._window.span
        # Emptied with the first answer of an episode: answers come behind all frames of a batch.
        self._prefix_scores: list[float] = []
        self._start()

    def reset(self, goal: Goal | None = None) -> None:
        """Starts an episode. There is no goal: the videos that the model was trained on say what to do."""
        self._start()

    def set_shape(self, scale: float, clip: float | None) -> None:
        """Changes scale and clip from the next frame on; see `__init__`."""
        self._shape = RewardShape(scale, clip)

    def observe(self, embedding: NDArray[np.float32]) -> RewardSample:
        """Scores one embedded frame.

        Args:
            embedding: latents, float32 (C, h * w * z), one row a camera.

        Returns:
            `raw_reward` is the score in nats, the mean over cameras. Both rewards are NaN while the window is not full
            and where the frame is out of distribution (`uncertainty` above 1, the worst camera's); if latents or score
            are not finite, all is NaN.

        Raises:
            ValueError: latents that are not made of code vectors' length.
        """
        return self.observe_many(embedding[None])[0]

    def observe_many(self, embeddings: NDArray[np.float32]) -> list[RewardSample]:
        """Scores embedded frames that follow each other, (T, C, D): as repeated `observe`, with windows batched."""
        if embeddings.ndim != 3 or embeddings.shape[2] % self._codebook.shape[1]:
            raise ValueError(
                f"embeddings have shape {embeddings.shape}, (frames, cameras, a multiple of {self._codebook.shape[1]}) "
                "expected; is this the encoder of the tokenizer?"
            )
        seen = [self._take(embedding) for embedding in embeddings]
        answers = iter(self._ask([query for query, _ in seen if query is not None]))
        return [
            self._sample(NAN, uncertainty) if query is None else self._answer(query, next(answers), uncertainty)
            for query, uncertainty in seen
        ]

    def step(self, frame: NDArray[np.uint8]) -> RewardSample:
        """Scores one prepared frame, uint8 (S, S, 3), or one per camera, uint8 (C, S, S, 3)."""
        return self.observe(self.embed(as_cameras(frame)))

    def score(self, frames: Iterable[NDArray[np.uint8]], goal: Goal | None = None) -> RewardCurve:
        """Resets and scores prepared frames; equals repeated `step`, but batches both networks.

        Raises:
            ValueError: fewer frames than a window takes, with `incomplete="official"`, as in the released code.
        """
        self.reset(goal)
        samples: list[RewardSample] = []
        embeddings = embed_in_batches(self.embed, frames)
        while group := list(islice(embeddings, SCORE_BATCH)):
            samples += self.observe_many(np.stack(group))
        if self._official and len(samples) < self.history:
            raise ValueError(f"{len(samples)} frames given, a window takes {self.history}; give a longer video")
        return RewardCurve.from_samples(samples)

    def _start(self) -> None:
        self._window.clear()
        self._prefix: list[Codes] = []

    def _take(self, embedding: NDArray[np.float32]) -> tuple[_Query | None, float]:
        """Quantises a frame and puts it into the window; what to ask the network, and the uncertainty."""
        if not np.isfinite(embedding).all():
            self._start()
            return None, NAN
        codes, distances = quantize(embedding, self._codebook)
        uncertainty = float(distances.max()) / self._threshold
        if uncertainty > 1:
            self._start()
            return None, uncertainty
        self._window.push(codes)
        if self._official and len(self._prefix) < self.history - 1:
            self._prefix.append(codes)
            return self._begun(), uncertainty
        if not self._window.full:
            return None, uncertainty
        return _Query(np.stack(self._window.items(), axis=1), self._window.length - 1), uncertainty

    def _begun(self) -> _Query:
        """The frames of the newest one's phase since the start, filled up with copies of it."""
        phase = (len(self._prefix) - 1) % self._window.stride
        chosen = self._prefix[phase :: self._window.stride]
        last = len(chosen) - 1
        chosen += [chosen[-1]] * (self._window.length - len(chosen))
        return _Query(np.stack(chosen, axis=1), last, len(self._prefix))

    def _ask(self, queries: Sequence[_Query]) -> list[NDArray[np.float64]]:
        """Log-probabilities of the frames of each window, (C, T)."""
        answers: list[NDArray[np.float64]] = []
        for first in range(0, len(queries), WINDOW_BATCH):
            codes = np.stack([query.codes for query in queries[first : first + WINDOW_BATCH]])
            rows = codes.reshape(-1, *codes.shape[2:])
            inputs = {"codes": rows}
            if self._label is not None:
                inputs["label"] = np.full(len(rows), self._label, np.int64)
            result = np.asarray(self._network(**inputs), np.float64)
            if result.shape != rows.shape[:2]:
                raise ValueError(f"network likelihood gave shape {result.shape}, {rows.shape[:2]} expected")
            answers += list(result.reshape(codes.shape[:3]))
        return answers

    def _answer(self, query: _Query, log_probs: NDArray[np.float64], uncertainty: float) -> RewardSample:
        if query.begun == 1:
            self._prefix_scores = []
        if not np.isfinite(log_probs[:, : query.last + 1]).all():
            return self._sample(NAN, NAN)
        newest = float(log_probs[:, query.last].mean())
        if not self._joint:
            return self._sample(newest, uncertainty)
        if not query.begun:
            return self._sample(float(log_probs.sum(axis=1).mean()), uncertainty)
        self._prefix_scores.append(newest)
        return self._sample(float(np.mean(self._prefix_scores)), uncertainty)

    def _sample(self, raw: float, uncertainty: float) -> RewardSample:
        return RewardSample(self._shape(self._standardise(raw)), raw, NAN, NAN, 0, 1, uncertainty)


def _entry(kind: str, entries: Mapping[str, EntryT], name: str) -> EntryT:
    if name not in entries:
        raise ValueError(f"{kind} have no {name!r}, only {', '.join(entries) or 'nothing'}; export the reward again")
    return entries[name]


def _check_label(classes: int, label: int) -> int | None:
    if classes < 0 or (classes and not 0 <= label < classes):
        raise ValueError(f"label = {label!r} of classes = {classes!r}: a class from 0 to classes - 1 expected")
    return label if classes else None


def _standardisation(mean: float, std: float, low: float | None, high: float | None) -> Callable[[float], float]:
    if low is None and high is None:
        if not np.isfinite(mean):
            raise ValueError(f"mean = {mean!r}: a finite number expected")
        divisor = check_positive("std", std)
        return lambda raw: (raw - mean) / divisor
    if low is None or high is None or not -np.inf < low < high < np.inf:
        raise ValueError(f"low = {low!r}, high = {high!r}: two finite numbers expected, the first one smaller")
    if mean != 0 or std != 1:
        raise ValueError(f"mean = {mean!r}, std = {std!r} beside low and high; give one of the two")
    start, width = low, high - low
    return lambda raw: float(np.clip((raw - start) / width, 0, 1))
