"""TimeRewarder (arXiv 2509.26627): how far apart in time two frames are, learned from videos of success alone.

    d(u, v) = (v - u) / (T - 1), between -1 and 1, as a distribution over 20 bins (two-hot targets, cross-entropy)

No goal is needed: a robot that makes progress sees frames that lie ahead of those it saw. Two things are ours. Rollouts
that lead nowhere (`negatives`) say what is no progress: between two of their frames lies 0. Without them a policy can
fool it by what only looks like progress; see docs/results.md. And the goal-conditioned form: the value of a frame is
minus the mean distance that is left to the demonstrations' last frames; from a frame of a negative to a goal lies 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.encoders.encoder import Encoder
from v2r_core.methods.backbone import BackboneMethod, BackboneRecipe, architecture_of, head, with_head
from v2r_core.methods.method import Batch, Horizon, NetworkExport, RewardExport, Step
from v2r_core.video.augment import vip_view
from v2r_core.video.clips import DataSpec

SHOWN_VIDEOS = 5


@dataclass(frozen=True, kw_only=True)
class TimeRewarderRecipe(BackboneRecipe):
    """Settings of TimeRewarder.

    Of the paper's text we know the target, the bins and that short intervals are drawn more often, not how fast their
    weight falls (`decay` is ours). `rewind` changes nothing here: a pair of frames of a rewound video is a pair of the
    video in the other order, and both orders are drawn anyway.

    Attributes:
        bins: of the distribution over [-1, 1].
        decay: an interval of a part x of the video is drawn with a weight of exp(-decay x).
        goal_form: the goal-conditioned form; besides each pair, the distance to the video's last frame is learned.
        negatives: patterns of the paths or names of videos that lead nowhere, such as `*/random/*`: between two of
            their frames lies no time.
        pair_hidden: channels of the hidden layers that see both frames.
    """

    bins: int = 20
    decay: float = 3.0
    goal_form: bool = False
    negatives: tuple[str, ...] = ()
    pair_hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2 or self.pair_hidden < 1 or not self.decay >= 0:
            raise ValueError(
                f"bins is {self.bins}, pair_hidden {self.pair_hidden}, decay {self.decay}; at least 2, 1 and 0 expected"
            )

    @classmethod
    def paper(cls) -> Self:
        """The whole encoder is trained; the paper's is a vision transformer."""
        return cls(freeze=False, size=224, batch_size=32, epochs=100, lr=1e-5)

    @classmethod
    def tiny(cls) -> Self:
        """On frozen features of EfficientNet-Lite0 at 128 pixels."""
        return cls(pool="grid", size=128, batch_size=256, epochs=12, samples=12_800, lr=1e-3)

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """Also the goal-conditioned form."""
        goal = {**vars(cls.tiny()), "goal_form": True}
        return {**super().presets(), "tiny-goal": cls(**goal)}


class TimeRewarder(BackboneMethod):
    """Temporal distance between two frames.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "time-rewarder"
    recipe_type = TimeRewarderRecipe
    recipe: TimeRewarderRecipe

    def __init__(self, recipe: TimeRewarderRecipe, horizon: Horizon) -> None:
        base = architecture_of(recipe)
        super().__init__(recipe, horizon, base, head(base.embedding_dim, recipe.hidden, recipe.dim))
        self.pair = PairNetwork(recipe.dim, recipe.pair_hidden, recipe.bins)

    @staticmethod
    def data(recipe: TimeRewarderRecipe) -> DataSpec:
        """Three frames of a video: two at random, in any order, and the last one."""
        picker = PairPicker(recipe.decay)
        return DataSpec(
            views=(vip_view(recipe.size or 224),), frames=3, picker=picker, samples=recipe.samples, shortest=2
        )

    def check_videos(self, videos: Sequence[str]) -> None:
        """Refuses a pattern of `negatives` that no video matches, and patterns that leave no success to learn from."""
        for pattern in self.recipe.negatives:
            if not any(_matches(video, pattern) for video in videos):
                raise ValueError(
                    f"negatives: no video matches {pattern!r}; patterns are for whole paths or names, and the videos "
                    f"are {_some(videos)}"
                )
        if videos and all(self._matched(video) for video in videos):
            raise ValueError(
                f"negatives: {', '.join(map(repr, self.recipe.negatives))} match all {len(videos)} videos, so that "
                "none shows the task done; narrow the patterns, or add demonstrations to --data"
            )

    def loss(self, batch: Batch, step: int) -> Step:
        """Cross-entropy of the distances of all pairs.

        Args:
            batch: see `embed`, T = 3; and `frames` (N, 3), `lengths` (N,), `names`.
            step: not used.
        """
        phi = self.embed(batch)
        goes = ~torch.tensor([self._leads_nowhere(name) for name in batch["names"]], device=phi.device)
        times = batch["frames"].to(phi.device) / (batch["lengths"].to(phi.device)[:, None] - 1)
        first, second = phi[:, 0], phi[:, 1]
        target = torch.where(goes, times[:, 1] - times[:, 0], 0.0)
        if self.recipe.goal_form and bool(goes.any()):
            first, second, target = self._with_goals(phi, times, goes, first, second, target)
        logits = self.pair(first, second)
        loss = distance_loss(logits, target)
        error = (expected_distance(logits) - target).abs().mean()
        return Step(loss, metrics={"absolute_error": error.detach()}, features=phi[:, 0].detach())

    def _with_goals(
        self, phi: Tensor, times: Tensor, goes: Tensor, first: Tensor, second: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds the pairs (frame, goal): the own last frame, or for what leads nowhere that of another video."""
        rows = torch.arange(len(phi), device=phi.device)
        successes = rows[goes]
        # Row after row of the successes: no random number is needed, since the batch is in random order.
        goal = torch.where(goes, rows, successes[rows % len(successes)])
        left = torch.where(goes, 1.0 - times[:, 0], 1.0)
        return (
            torch.cat([first, phi[:, 0]]),
            torch.cat([second, phi[goal, 2]]),
            torch.cat([target, left]),
        )

    def _leads_nowhere(self, name: str) -> bool:
        return self._matched(name.rpartition("#")[0])

    def _matched(self, video: str) -> bool:
        return any(_matches(video, pattern) for pattern in self.recipe.negatives)

    def encoder(self) -> Encoder:
        """What one frame becomes before two are compared."""
        return with_head(self.base, self.top, self.name, self.recipe.dim)

    def reward_export(self) -> RewardExport:
        """The comparison of two frames, as expected distance."""
        example = torch.zeros(2, self.recipe.dim)
        network = NetworkExport(ExpectedDistance(self.pair).eval(), {"first": example, "second": example}, "distance")
        form = "goal" if self.recipe.goal_form else "start"
        return RewardExport("time", {"form": form}, {"pair": network})


class PairNetwork(nn.Module):
    """Two embeddings, (N, dim) each, to logits (N, bins) of the distance between them.

    Args:
        dim: of an embedding.
        hidden: channels of its two hidden layers.
        bins: of the distribution.
    """

    def __init__(self, dim: int, hidden: int, bins: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.logits = nn.Linear(hidden, bins)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (N, bins)."""
        result: Tensor = self.logits(self.layers(torch.cat([first, second], dim=-1)))
        return result


class ExpectedDistance(nn.Module):
    """A pair network that gives a number: the mean of its distribution, (N,), between -1 and 1."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings (N, dim) of two frames to (N,): positive where the second one is later."""
        return expected_distance(self.pair(first, second))


@dataclass(frozen=True)
class PairPicker:
    """Draws two frames of a video and adds its last one.

    Attributes:
        decay: see `TimeRewarderRecipe`.
    """

    decay: float

    def __call__(self, frames: int, rng: np.random.Generator) -> Sequence[int]:
        """Numbers of u, v and the last frame; the interval is drawn first, then the place, then the order."""
        intervals = np.arange(frames)
        weights = np.exp(-self.decay * intervals / max(frames - 1, 1))
        interval = int(rng.choice(intervals, p=weights / weights.sum()))
        early = int(rng.integers(0, frames - interval))
        pair = [early, early + interval]
        if rng.random() < 0.5:
            pair.reverse()
        return [*pair, frames - 1]


def _matches(video: str, pattern: str) -> bool:
    return fnmatch(video, pattern) or fnmatch(Path(video).name, pattern)


def _some(videos: Sequence[str]) -> str:
    """Some of the videos, from the first to the last, so that those of several folders are among them."""
    chosen = [videos[place] for place in sorted({*np.linspace(0, len(videos) - 1, SHOWN_VIDEOS).astype(int).tolist()})]
    rest = len(videos) - len(chosen)
    return ", ".join(chosen) + (f" and {rest} more" if rest else "")


def bin_centres(bins: int) -> Tensor:
    """Distances that the bins stand for, (bins,), from -1 to 1."""
    return torch.linspace(-1, 1, bins)


def two_hot(distance: Tensor, bins: int) -> Tensor:
    """Distances (N,) in [-1, 1] as distributions (N, bins) on the two nearest bins, of which they are the mean."""
    place = (distance.clamp(-1, 1) + 1) / 2 * (bins - 1)
    low = place.floor().clamp(max=bins - 2).long()
    part = (place - low).unsqueeze(1)
    result = torch.zeros(len(distance), bins, device=distance.device)
    return result.scatter(1, low.unsqueeze(1), 1 - part).scatter(1, low.unsqueeze(1) + 1, part)


def distance_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy of predicted distributions, logits (N, bins), and distances (N,); scalar."""
    return -(two_hot(distance, logits.shape[1]) * functional.log_softmax(logits, dim=1)).sum(1).mean()


def expected_distance(logits: Tensor) -> Tensor:
    """Mean of the predicted distribution, (N, bins) to (N,)."""
    centres = bin_centres(logits.shape[1]).to(logits)
    return functional.softmax(logits, dim=1) @ centres
