"""VIP (Ma et al., ICLR 2023): an embedding in which the distance to the goal is a value function, learned from videos.

    V(o; g) = -||phi(o) - phi(g)||
    L = (1 - gamma) E[-V(o_0; g)] + log E[exp(V(o_k; g) + 1 - gamma V(o_k+1; g))]

The dual of offline goal-conditioned reinforcement learning with a reward of -1 in every step, on videos without
actions (section 4.1). Time-contrastive learning, which the paper compares with, is a loss of the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.encoders.checkpoints import RESNET_FEATURES, resnet_backbone
from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.backbone import BackboneMethod, BackboneRecipe, architecture_of, head, with_head
from v2r_core.methods.method import Batch, Horizon, RewardExport, Step
from v2r_core.video.augment import IMAGENET_MEAN, IMAGENET_STD, vip_view, whole_view
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

EPS = 1e-8
"""What the released code adds before it takes a logarithm."""

Metric = Literal["l2", "cosine"]


@dataclass(frozen=True, kw_only=True)
class VipRecipe(BackboneRecipe):
    """Settings of VIP (section 5 and appendix on Ego4D pre-training).

    `encoder` may also be `resnet18`, `resnet34` or `resnet50`: the paper's network, from random weights, whose last
    layer has `dim` outputs. With `compat="paper"` the pairs of other videos join the one logarithm of a mean; in the
    released code (`official`) they have a second one, which is added.

    Attributes:
        loss: `vip`, or `tcn`: time-contrastive learning as R3M has it, without language.
        metric: `l2`, or `cosine` over 1 - gamma, as in LIV.
        gamma: discount; the released code has .98 whatever its settings say.
        negatives: pairs (o_k, o_k+1) of other videos for each sample.
        l1: weight of the mean sum of absolute values of an embedding.
        l2: weight of its mean Euclidean norm.
        crop: `video`: one crop for all frames of a sample; `none`: whole frames. A frozen encoder sees whole frames.
    """

    loss: Literal["vip", "tcn"] = "vip"
    metric: Metric = "l2"
    gamma: float = 0.98
    negatives: int = 3
    l1: float = 1e-3
    l2: float = 1e-3
    crop: Literal["video", "none"] = "video"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma is {self.gamma}, a number between 0 and 1 expected")
        if self.negatives < 0 or min(self.l1, self.l2) < 0:
            raise ValueError(f"negatives {self.negatives}, l1 {self.l1}, l2 {self.l2}: none of them may be below 0")
        if self.encoder in RESNET_FEATURES and self.freeze:
            raise ValueError(f"encoder {self.encoder} has random weights; add --no-freeze to train it")

    @classmethod
    def paper(cls) -> Self:
        """ResNet-50 with 1024 outputs, batch 32; two million steps in the released settings."""
        return cls(encoder="resnet50", freeze=False, size=224, dim=1024, batch_size=32, epochs=1000, samples=64_000)

    @classmethod
    def tiny(cls) -> Self:
        """A head on ImageNet's EfficientNet-Lite0 at 128 pixels, whose features are computed once."""
        return cls(pool="grid", size=128, batch_size=64, epochs=20, dim=64, lr=5e-4, l1=0.0, l2=0.0)


class Vip(BackboneMethod):
    """Value-implicit pre-training.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "vip"
    recipe_type = VipRecipe
    recipe: VipRecipe

    def __init__(self, recipe: VipRecipe, horizon: Horizon) -> None:
        if recipe.encoder in RESNET_FEATURES:
            base = _resnet(recipe)
            top: nn.Module = nn.Identity()
        else:
            base = architecture_of(recipe)
            top = head(base.embedding_dim, recipe.hidden, recipe.dim)
        super().__init__(recipe, horizon, base, top)

    @staticmethod
    def data(recipe: VipRecipe) -> DataSpec:
        """Four frames of a video: start, goal, k and k + 1; for `tcn` five: first, last and three between them."""
        size = recipe.size or 224
        views = (vip_view(size),) if recipe.crop == "video" else (whole_view(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),)
        picker = FramePicker(recipe.loss, recipe.rewind)
        slots = 4 if recipe.loss == "vip" else 5
        return DataSpec(views=views, frames=slots, picker=picker, samples=recipe.samples, shortest=slots)

    def begin(self) -> None:
        """Reads the weights of the encoder that is started from; the paper's own network starts from random ones."""
        if self.recipe.encoder not in RESNET_FEATURES:
            super().begin()

    def loss(self, batch: Batch, step: int) -> Step:
        """The loss of a batch; permutations for negatives come from torch's generator.

        Args:
            batch: see `embed`; T = 4 frames, or 5 for `tcn`.
            step: not used.
        """
        recipe = self.recipe
        phi = self.embed(batch)
        count = recipe.negatives * (2 if recipe.loss == "tcn" else 1)
        perms = torch.stack([torch.randperm(len(phi)) for _ in range(count)]) if count else None
        if recipe.loss == "tcn":
            parts = tcn_loss(phi, perms)
        else:
            parts = vip_loss(phi, perms, recipe.gamma, recipe.metric, recipe.compat)
        l1, l2 = phi.abs().sum(-1).mean(), phi.norm(dim=-1).mean()
        total = parts["loss"] + recipe.l1 * l1 + recipe.l2 * l2
        metrics = {key: value.detach() for key, value in parts.items()} | {"l1": l1.detach(), "l2": l2.detach()}
        metrics[recipe.loss] = metrics.pop("loss")
        return Step(total, metrics=metrics, features=phi[:, 1].detach())

    def encoder(self) -> Encoder:
        """The encoder in whose space distances are values."""
        if self.recipe.encoder in RESNET_FEATURES:
            return self.base.eval()
        return with_head(self.base, self.top, self.name, self.recipe.dim)

    def reward_export(self) -> RewardExport:
        """The distance to the goal; nothing but the encoder is needed."""
        return RewardExport("vip")


def _resnet(recipe: VipRecipe) -> Encoder:
    size = recipe.size or 224
    preprocess = Preprocess(size, "crop", round(size * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)
    info = WeightsInfo(source="trained with VIP", license="as its training videos allow")
    return Encoder(f"vip-{recipe.encoder}", resnet_backbone(recipe.encoder, recipe.dim), preprocess, recipe.dim, info)


@dataclass(frozen=True)
class FramePicker:
    """Which frames of a video make a sample.

    Attributes:
        loss: `vip` or `tcn`.
        rewind: probability of taking them from a rewound video.
    """

    loss: Literal["vip", "tcn"] = "vip"
    rewind: float = 0.0

    def __call__(self, frames: int, rng: np.random.Generator) -> Sequence[int]:
        """Numbers of four frames (vip: start, goal, k, k + 1) or five (tcn: start, goal, three in ascending order)."""
        order: Sequence[int] = range(frames)
        if self.rewind and rng.random() < self.rewind:
            order = rewound(frames, rng)
        if self.loss == "vip":
            picked: Sequence[int] = sample_transition(len(order), lambda low, high: int(rng.integers(low, high)))
        else:
            first = int(rng.integers(0, max(1, len(order) // 5)))
            last = int(rng.integers(len(order) - max(1, len(order) // 5), len(order)))
            middle = sorted(rng.choice(np.arange(first, last + 1), 3, replace=last - first < 2).tolist())
            picked = [first, last, *middle]
        return [order[index] for index in picked]


def sample_transition(frames: int, randint: Callable[[int, int], int]) -> tuple[int, int, int, int]:
    """Draws start, goal, k and k + 1 of a video, as the released data buffer does.

    k lies before the goal, so the reward 1[k = goal] - 1 is always -1.

    Args:
        frames: of the video, at least 3.
        randint: draws from low to high - 1.
    """
    start = randint(0, frames - 2)
    end = randint(start + 1, frames)
    k = randint(start, end)
    return start, end, k, min(k + 1, end)


def rewound(frames: int, rng: np.random.Generator) -> list[int]:
    """Frame numbers of a video that stops at a random frame and runs back from there (ReWiND).

    Args:
        frames: of the video, at least 3.
        rng: draws where it turns, in its second half or before the end, and how far it runs back.
    """
    turn = int(rng.integers(max(2, frames // 2), frames))
    back = int(rng.integers(1, turn + 1))
    return [*range(turn + 1), *range(turn - 1, turn - 1 - back, -1)]


def values(a: Tensor, goal: Tensor, gamma: float, metric: Metric = "l2") -> Tensor:
    """V(a; goal) of embeddings (..., D), which is (...): minus their distance, or LIV's cosine over 1 - gamma."""
    if metric == "cosine":
        return functional.cosine_similarity(a, goal, dim=-1) / (1 - gamma)
    return -torch.linalg.vector_norm(a - goal, dim=-1)


def vip_loss(
    phi: Tensor,
    perms: Tensor | None,
    gamma: float = 0.98,
    metric: Metric = "l2",
    compat: str = "official",
    goals: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of VIP (equation 5, and the released code).

    Args:
        phi: (B, 4, D): start, goal, k, k + 1.
        perms: (M, B) permutations of the batch: pairs of other videos, measured with the sample's own goal; None for
            no negatives. One permutation serves both frames of a pair, and fixed points stay.
        gamma: discount.
        metric: see `values`.
        compat: `official`: a second logarithm for the negatives; `paper`: one for all.
        goals: (B, D) in place of slot 1, say a text's embedding.

    Returns:
        Scalars `loss` and its terms `attract`, `repel` and, where there are negatives, `negatives`.
    """
    goal = phi[:, 1] if goals is None else goals
    attract = (1 - gamma) * -values(phi[:, 0], goal, gamma, metric).mean()
    errors = _bellman(phi[:, 2], phi[:, 3], goal, gamma, metric)
    if perms is None:
        repel = torch.log(EPS + errors.mean())
        return {"loss": attract + repel, "attract": attract, "repel": repel}
    others = torch.cat([_bellman(phi[perm, 2], phi[perm, 3], goal, gamma, metric) for perm in perms])
    if compat == "paper":
        repel = torch.log(EPS + torch.cat([errors, others]).mean())
        return {"loss": attract + repel, "attract": attract, "repel": repel}
    repel, negative = torch.log(EPS + errors.mean()), torch.log(EPS + others.mean())
    return {"loss": attract + repel + negative, "attract": attract, "repel": repel, "negatives": negative}


def _bellman(now: Tensor, after: Tensor, goal: Tensor, gamma: float, metric: Metric) -> Tensor:
    # exp(-(r + gamma V' - V)) with r = -1.
    return torch.exp(1 - gamma * values(after, goal, gamma, metric) + values(now, goal, gamma, metric))


def tcn_loss(phi: Tensor, perms: Tensor | None) -> dict[str, Tensor]:
    """Time-contrastive learning as R3M has it (Nair et al. 2022, section 3.2): near in time is near in space.

    Args:
        phi: (B, 5, D): first and last frame, which are not used, and three frames s0, s1, s2 in ascending order.
        perms: (2 M, B): for each of M negatives the permutation of s0 and that of s2; None for none.

    Returns:
        Scalars `loss` and `aligned`, the part of samples in which s1 is nearer to both ends than they to each other.
    """
    s0, s1, s2 = phi[:, 2], phi[:, 3], phi[:, 4]

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return -torch.linalg.vector_norm(a - b, dim=-1)

    ends, late, early = similarity(s2, s0), similarity(s2, s1), similarity(s1, s0)
    none = torch.zeros_like(ends)
    pairs = [] if perms is None else [(perms[i], perms[i + 1]) for i in range(0, len(perms), 2)]
    other0 = sum((torch.exp(similarity(s0, s0[first])) for first, _ in pairs), none)
    other2 = sum((torch.exp(similarity(s2, s2[second])) for _, second in pairs), none)
    to2 = _contrast(torch.exp(late), torch.exp(ends) + other2)
    to0 = _contrast(torch.exp(early), torch.exp(ends) + other0)
    aligned = ((ends < late) & (early > ends)).float().mean()
    return {"loss": ((to2 + to0) / 2).mean(), "aligned": aligned}


def _contrast(near: Tensor, far: Tensor) -> Tensor:
    return -torch.log(EPS + near / (EPS + near + far))
