"""Diffusion Reward (Huang et al., ECCV 2024): how sure a video model that knows experts only is of the next frame.

    entropy       r_t = -H(next frame | frames t-1, t)       what the paper proposes
    likelihood    r_t = log p(frame t | frames before)       its comparison

Frames are codes of a VQ-GAN, and the model is a discrete diffusion. Both rewards are bounds from a denoising chain, see
`rewards.denoising`: 11 calls of the network a frame as released. Unfamiliar frames make the model unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from v2r_core.nn.diffusion_schedule import chain_steps, log_probabilities
from v2r_core.rewards.denoising import denoising_chain, first_prediction, log_likelihood, negative_entropy
from v2r_core.rewards.goal import Goal
from v2r_core.rewards.goal_distance import (
    NAN,
    RewardShape,
    as_cameras,
    check_choice,
    check_positive,
    embed_in_batches,
)
from v2r_core.rewards.quantization import quantize
from v2r_core.rewards.reward import Embed, Network, RewardCurve, RewardKind, RewardSample
from v2r_core.rewards.window import FrameWindow

Draw = Callable[[tuple[int, ...]], NDArray[np.floating]]
"""Shape to uniform numbers in [0, 1)."""
Speed = Literal["exact", "five_calls", "two_calls", "one_call"]

CHAIN_ROWS = 32
"""Chains that go through the network together."""
SCORE_FRAMES = 32
UNSCORED = RewardSample(NAN, NAN, NAN, NAN, 0, 1, NAN)


@dataclass(frozen=True)
class _Job:
    """A frame that can be scored: its place among the samples, its number, condition (C, M) and codes (C, L)."""

    place: int
    frame: int
    condition: NDArray[np.int64]
    target: NDArray[np.int64]


class DiffusionReward:
    """The reward of Diffusion Reward, a step reward: it scores frames by themselves and measures no progress.

    `speed` trades exactness for calls of the network. All but `exact` ignore `skip_step`:

    * `exact`: the released chain, 11 calls with skip_step 9.
    * `five_calls`: the same chain with steps of a quarter: 99, 74, 49, 24, 0 of 100.
    * `two_calls`: only the first and the last step. The first call, from nothing but masks, draws nearly all tokens at
      once, each by itself; the second one corrects them. (With skip_step T - 1 there are two calls too, but then the
      first one draws hardly a token, and the last one has to predict from masks at a step where it was never trained
      on them.)
    * `one_call`: no chain and no noise. The prediction from nothing but masks is a distribution of each token; the
      reward is minus their summed entropy (mode entropy) or the log-probability of the observed tokens (likelihood).
      This is what the bound comes to if the network's prediction did not change along the chain, in expectation
      over the draws: another draw makes no other reward. That tokens tell about each other is lost.

    Besides, all of them share one network call a step between frames, cameras and samples, and the exported network
    has the keys and values of the condition in tables (`nn.denoiser_fold`), where the released one computes them again
    in each of its calls.

    Draws depend on seed and frame number only. Where a run-time rounds batched calls another way than single ones, a
    draw may fall on the other of two tokens that are equal to rounding.

    Attributes:
        kind, needs_goal, history, stochastic: see `Reward`; `stochastic` says that another seed gives another reward.
        embed: frames to latents.
        noise: frame number to the source of its uniform numbers, asked step by step for (samples, cameras, K + 1, L);
            to be replaced where numbers are to be reproduced.
        calls: calls of the network a frame.
    """

    kind: RewardKind = "step_reward"
    needs_goal = False

    def __init__(
        self,
        embed: Embed,
        networks: Mapping[str, Network],
        tensors: Mapping[str, NDArray[Any]],
        *,
        scale: float = 1.0,
        clip: float | None = None,
        cameras: Literal["mean"] = "mean",
        mode: Literal["entropy", "likelihood"] = "entropy",
        compat: Literal["official", "paper"] = "official",
        speed: Speed = "exact",
        skip_step: int = 9,
        samples: int = 1,
        sampling: Literal["gumbel", "argmax"] = "gumbel",
        seed: int = 0,
        steps: int = 100,
        stride: int = 1,
        incomplete: Literal["nan", "repeat"] = "nan",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        """Makes the reward.

        Args:
            embed: prepared frames to latents before quantisation, float32 (N, L Z), Z fastest.
            networks: `denoiser`: tokens int64 (N, L), t int64 (N,), condition int64 (N, M) to float32 (N, K + 1, L).
            tensors: `codebook`, float (K, Z); `quantization_threshold`, scalar: distance of latents to their codes,
                root mean square of a frame, above which it is out of distribution.
            scale: factor on the standardised reward, above 0.
            clip: the scaled reward is limited to [-clip, clip]; above 0, None for no limit.
            cameras: rewards of several cameras, all by the same model, become their mean.
            mode: entropy or likelihood.
            compat: matters to the likelihood. "official": the condition is the frames t-2, t-1 **and t**, which is the
                one that is scored, so the network must have been exported for three; and bounds are divided by the
                number of calls. "paper": frames t-2 and t-1, and a bound is a sum.
            speed: see above.
            skip_step: steps left out between two calls, 0 to steps - 1.
            samples: chains a frame, averaged; at least 1.
            sampling: the chain draws its tokens, or takes the most likely ones.
            seed: of the draws, at least 0.
            steps: T that the network was trained with.
            stride: frames from one frame of a window to the next, as the network was trained.
            incomplete: a frame with too few before it has no reward ("nan"), or stands in for all of them ("repeat",
                as released).
            mean: subtracted from the raw reward; of expert videos, as std is.
            std: the rest is divided by it, above 0.

        Raises:
            ValueError: a parameter out of range, or tensors that do not fit.
        """
        self.embed = embed
        if "denoiser" not in networks:
            raise ValueError(
                f"networks are {', '.join(networks) or 'none'}, denoiser expected; export the bundle again"
            )
        self._network = networks["denoiser"]
        self._codebook, self._threshold = _check_tensors(tensors)
        self._shape = RewardShape(scale, clip)
        check_choice("cameras", cameras, ("mean",))
        self._mode = check_choice("mode", mode, ("entropy", "likelihood"))
        self._official = check_choice("compat", compat, ("official", "paper")) == "official"
        self._repeat = check_choice("incomplete", incomplete, ("nan", "repeat")) == "repeat"
        if self._repeat and mode == "likelihood" and not self._official:
            raise ValueError(
                "incomplete = 'repeat': a frame would be its own condition; take 'nan', or compat official"
            )
        self._draws = check_choice("sampling", sampling, ("gumbel", "argmax")) == "gumbel"
        self._one_call = check_choice("speed", speed, ("exact", "five_calls", "two_calls", "one_call")) == "one_call"
        self._samples = _check_whole("samples", samples, 1)
        self._mean, self._std = float(mean), check_positive("std", std)
        _check_whole("seed", seed, 0)
        self._steps = _check_whole("steps", steps, 2)
        self._schedule = log_probabilities(self._steps, len(self._codebook))
        self._skip = {"five_calls": max(self._steps // 4 - 1, 0), "two_calls": self._steps - 2}.get(speed, skip_step)
        self.calls = 1 if self._one_call else len(chain_steps(self._steps, self._skip))
        self._window: FrameWindow[NDArray[np.int64]] = FrameWindow(2 if mode == "entropy" else 3, stride)
        self.history = self._window.span
        self.stochastic = self._draws and not self._one_call
        self.noise: Callable[[int], Draw] = lambda frame: np.random.default_rng((seed, frame)).random
        self._frame = 0

    def reset(self, goal: Goal | None = None) -> None:
        """Starts an episode; there is no goal to set."""
        self._window.clear()
        self._frame = 0

    def set_shape(self, scale: float, clip: float | None) -> None:
        """Changes scale and clip from the next frame on; see `__init__`."""
        self._shape = RewardShape(scale, clip)

    def observe(self, embedding: NDArray[np.float32]) -> RewardSample:
        """Scores one embedded frame, float32 (C, L Z); see `observe_many`."""
        return self.observe_many(embedding[None])[0]

    def observe_many(self, embeddings: NDArray[np.float32]) -> list[RewardSample]:
        """Scores embedded frames that follow each other; equals repeated `observe` but for rounding.

        Until the window is full there is no reward, but an uncertainty. A frame out of distribution (uncertainty above
        1 in any camera) has no reward and empties the window; so does one that is not finite, which has no uncertainty
        either.

        Args:
            embeddings: float32 (T, C, L Z), one row a camera.

        Raises:
            ValueError: another shape.
        """
        length = self._codebook.shape[1]
        if embeddings.ndim != 3 or embeddings.shape[2] % length or not embeddings.size:
            raise ValueError(
                f"embedding has shape {embeddings.shape[1:]}, (cameras, tokens x {length}) expected; "
                "score with the encoder of the same bundle"
            )
        samples: list[RewardSample] = []
        jobs: list[_Job] = []
        for place, embedding in enumerate(embeddings):
            samples.append(self._look(embedding, place, jobs))
        group = max(1, CHAIN_ROWS // (self._samples * embeddings.shape[1]))
        for first in range(0, len(jobs), group):
            some = jobs[first : first + group]
            for job, raw in zip(some, self._scores(some), strict=True):
                samples[job.place] = self._sample(float(raw), samples[job.place].uncertainty)
        return samples

    def _look(self, embedding: NDArray[np.float32], place: int, jobs: list[_Job]) -> RewardSample:
        """Moves the window on; adds a job if the frame can be scored, whose sample has no reward yet."""
        # Counted in steps of the window: a robot leaves out the frames between, and has to draw the same.
        frame = self._frame // self._window.stride
        self._frame += 1
        if not np.isfinite(embedding).all():
            self._window.clear()
            return UNSCORED
        codes, distances = quantize(embedding, self._codebook)
        uncertainty = float(distances.max()) / self._threshold
        if uncertainty > 1:
            self._window.clear()
        else:
            self._window.push(codes)
            if self._window.full or self._repeat:
                frames = self._window.items() if self._window.full else [codes] * self._window.length
                shown = frames if self._mode == "entropy" or self._official else frames[:-1]
                jobs.append(_Job(place, frame, np.concatenate(shown, axis=1), codes))
        return RewardSample(NAN, NAN, NAN, NAN, 0, 1, uncertainty)

    def _sample(self, raw: float, uncertainty: float) -> RewardSample:
        if not np.isfinite(raw):
            return UNSCORED
        reward = self._shape((raw - self._mean) / self._std)
        return RewardSample(reward, raw, NAN, NAN, 0, 1, uncertainty)

    def _scores(self, jobs: list[_Job]) -> NDArray[np.float64]:
        """Raw rewards, (jobs,), the mean over samples and cameras."""
        repeats = 1 if self._one_call else self._samples
        condition, target = (
            np.repeat(np.stack(each)[:, None], repeats, axis=1).reshape(-1, each[0].shape[-1])
            for each in ([job.condition for job in jobs], [job.target for job in jobs])
        )
        scores = self._predicted(condition, target) if self._one_call else self._chain(condition, target, jobs)
        result: NDArray[np.float64] = scores.reshape(len(jobs), -1).mean(axis=1)
        return result

    def _predicted(self, condition: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.float64]:
        sizes = {"tokens": target.shape[1], "codes": len(self._codebook)}
        log_x0 = first_prediction(self._denoise, condition, self._steps, **sizes)
        return negative_entropy(log_x0) if self._mode == "entropy" else log_likelihood(log_x0, target)

    def _chain(self, condition: NDArray[np.int64], target: NDArray[np.int64], jobs: list[_Job]) -> NDArray[np.float64]:
        length, codes = target.shape[1], len(self._codebook)
        sources = [self.noise(job.frame) for job in jobs]
        cameras = len(condition) // (len(jobs) * self._samples)

        def uniform() -> NDArray[np.floating]:
            drawn = [source((self._samples, cameras, codes + 1, length)) for source in sources]
            return np.stack(drawn).reshape(-1, codes + 1, length)

        likelihood = self._mode == "likelihood"
        chain = denoising_chain(
            self._denoise,
            condition,
            self._schedule,
            self._skip,
            tokens=length,
            codes=codes,
            uniform=uniform if self._draws else None,
            target=target if likelihood else None,
        )
        bound = chain.bound()
        return bound / len(chain.steps) if likelihood and self._official else bound

    def _denoise(
        self, tokens: NDArray[np.int64], t: NDArray[np.int64], condition: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return self._network(tokens=tokens, t=t, condition=condition)

    def step(self, frame: NDArray[np.uint8]) -> RewardSample:
        """Scores one prepared frame, uint8 (S, S, 3), or one per camera, uint8 (C, S, S, 3)."""
        return self.observe(self.embed(as_cameras(frame)))

    def score(self, frames: Iterable[NDArray[np.uint8]], goal: Goal | None = None) -> RewardCurve:
        """Resets and scores prepared frames, 32 at a time; equals repeated `step` but for rounding."""
        self.reset(goal)
        samples: list[RewardSample] = []
        waiting: list[NDArray[np.float32]] = []
        for embedding in embed_in_batches(self.embed, frames):
            waiting.append(embedding)
            if len(waiting) == SCORE_FRAMES:
                samples += self.observe_many(np.stack(waiting))
                waiting = []
        if waiting:
            samples += self.observe_many(np.stack(waiting))
        return RewardCurve.from_samples(samples)


def _check_tensors(tensors: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], float]:
    if missing := {"codebook", "quantization_threshold"} - set(tensors):
        raise ValueError(f"tensors lack {', '.join(sorted(missing))}; export the bundle again")
    codebook = np.asarray(tensors["codebook"], np.float32)
    threshold = float(np.asarray(tensors["quantization_threshold"]).reshape(()))
    if codebook.ndim != 2 or not threshold > 0:
        raise ValueError(
            f"codebook has shape {codebook.shape} and quantization_threshold is {threshold}; (codes, length) and a "
            "number above 0 expected, export the bundle again"
        )
    return codebook, threshold


def _check_whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} = {value!r}: a whole number from {least} on expected")
    return value
