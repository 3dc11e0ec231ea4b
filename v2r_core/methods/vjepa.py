"""V-JEPA (Bardes et al. 2024) and V-JEPA 2 (Assran et al. 2025): predict features of masked regions of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.jepa import Jepa, JepaRecipe
from v2r_core.methods.method import Batch, Horizon, Step
from v2r_core.nn.masking import BlockKind, MultiBlock3d
from v2r_core.nn.predictor import Predictor, at_targets
from v2r_core.nn.schedules import linear_decay, warmup_stable_decay
from v2r_core.nn.still_clip import still_clip
from v2r_core.nn.vit import ViTConfig, architecture
from v2r_core.video.augment import View
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

HINGE_EPS = 1e-4
"""Added to the variance in the logged hinge."""


@dataclass(frozen=True, kw_only=True)
class VJepaRecipe(JepaRecipe):
    """Settings of V-JEPA (section 3, appendix) and of V-JEPA 2 (section 2.1, appendix A).

    With `compat="paper"` the initial weights are divided by depth, and lists of patches are cut without preferring the
    early frames.

    Attributes:
        frames: frames of a clip.
        stride: frames of the video from one frame of a clip to the next.
        tubelet: frames that one token covers.
        positions: `sincos`, a fixed table; `rotary` in V-JEPA 2.
        predictor_heads: attention heads of the predictor; 0 for as many as the encoder has.
        blocks: blocks of each kind of mask.
        spatial_scale: each kind's share of a frame that a block covers.
        temporal_scale: each kind's share of the clip's length that a block covers.
        aspect: range of a block's height over its width.
        schedule_kind: `cosine`; `warmup_stable_decay`: warm-up, constant, linear fall over `anneal_epochs`;
            `linear_decay`: cool-down from `lr` to `final_lr`, without warm-up.
        anneal_epochs: epochs of the fall of `warmup_stable_decay`.
        clip: largest gradient norm of encoder and of predictor, each for itself, from the first epoch after the
            warm-up on; 0 for no clipping.
        hinge: weight of the variance hinge in the loss; it is logged in any case.
        ratio: range of a crop's width over its height.
        flip: probability of mirroring a clip.
    """

    frames: int = 16
    stride: int = 4
    tubelet: int = 2
    positions: Literal["sincos", "rotary"] = "sincos"
    predictor_heads: int = 0
    blocks: tuple[int, ...] = (8, 2)
    spatial_scale: tuple[float, ...] = (0.15, 0.7)
    temporal_scale: tuple[float, ...] = (1.0, 1.0)
    aspect: tuple[float, float] = (0.75, 1.5)
    schedule_kind: Literal["cosine", "warmup_stable_decay", "linear_decay"] = "cosine"
    anneal_epochs: float = 0.0
    clip: float = 10.0
    hinge: float = 0.0
    ratio: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5
    lr: float = 6.25e-4
    momentum: float = 0.998
    stretch: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.blocks) == len(self.spatial_scale) == len(self.temporal_scale) >= 1:
            raise ValueError(
                f"blocks {self.blocks}, spatial_scale {self.spatial_scale} and temporal_scale {self.temporal_scale} "
                "need one entry for each kind of mask"
            )

    @classmethod
    def paper(cls, version: Literal["1", "2", "2-cooldown"] = "1") -> Self:
        """ViT-L/16: V-JEPA; V-JEPA 2 up to its cool-down; its cool-down on longer clips.

        V-JEPA 2 counts epochs of 300 steps and samples four frames a second, `stride` 8 at 30 frames a second.
        """
        if version == "1":
            return cls(epochs=300, batch_size=3072, precision="bf16", architecture="large")
        second = cls(
            epochs=800,
            batch_size=3072,
            precision="bf16",
            architecture="large",
            size=256,
            positions="rotary",
            predictor_heads=12,
            stride=8,
            start_lr=1e-4,
            lr=5.25e-4,
            final_weight_decay=0.04,
            momentum=0.99925,
            final_momentum=0.99925,
            stretch=1.0,
            clip=0.0,
            schedule_kind="warmup_stable_decay",
        )
        return second if version == "2" else replace(second, epochs=40, frames=64, schedule_kind="linear_decay")

    @classmethod
    def tiny(cls) -> Self:
        """8 frames of 64 pixels, four blocks, a predictor of two."""
        return cls(
            epochs=10,
            batch_size=32,
            architecture="mini",
            size=64,
            patch=8,
            frames=8,
            stride=2,
            predictor_width=192,
            predictor_depth=2,
            lr=5e-4,
            warmup_epochs=2,
            # A fraction of the paper's steps: an average over as many would still be the initial network.
            momentum=0.998,
            final_weight_decay=0.04,
            # Clips of a fixed camera are nearly still: without it, features fall into one dimension.
            hinge=1.0,
            scale=(0.3, 1.0),
            flip=0.0,
        )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """V-JEPA's settings under `paper` and `tiny`, V-JEPA 2's under `paper-v2` and `paper-v2-cooldown`."""
        return {
            **super().presets(),
            "paper-v2": cls.paper("2"),
            "paper-v2-cooldown": cls.paper("2-cooldown"),
        }


class VJepa(Jepa):
    """Video joint-embedding predictive architecture, first and second.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "vjepa"
    recipe_type = VJepaRecipe
    recipe: VJepaRecipe

    def __init__(self, recipe: VJepaRecipe, horizon: Horizon) -> None:
        config = ViTConfig(
            size=recipe.size,
            patch=recipe.patch,
            frames=recipe.frames,
            tubelet=recipe.tubelet,
            class_token=False,
            positions=recipe.positions,
            pool="mean",
            **architecture(recipe.architecture),
        )
        predictor = Predictor(
            config.width,
            recipe.predictor_width,
            recipe.predictor_depth,
            recipe.predictor_heads or config.heads,
            config.grid,
            positions=recipe.positions,
            mask_tokens=len(recipe.blocks),
        )
        super().__init__(recipe, horizon, config, predictor)

    @staticmethod
    def data(recipe: VJepaRecipe) -> DataSpec:
        """One clip, the same crop in all frames, and the indices of contexts and targets of each kind of mask."""
        side = recipe.size // recipe.patch
        kinds = tuple(
            BlockKind(count, (space, space), (time, time), recipe.aspect)
            for count, space, time in zip(recipe.blocks, recipe.spatial_scale, recipe.temporal_scale, strict=True)
        )
        masks = MultiBlock3d((recipe.frames // recipe.tubelet, side, side), kinds, recipe.compat)
        view = View(
            size=recipe.size, scale=recipe.scale, ratio=recipe.ratio, interpolation="bilinear", flip=recipe.flip
        )
        return DataSpec(views=(view,), frames=recipe.frames, stride=recipe.stride, masks=masks)

    def loss(self, batch: Batch, step: int) -> Step:
        """Distance of predicted from actual features, averaged over the kinds of masks.

        Args:
            batch: `views`: one, (N, 3, T, S, S); for each kind i `context_<i>`, (N, K), and `target_<i>`, (N, P), patch
                indices.
            step: not used.
        """
        clips = batch["views"][0]
        actual, features = self._targets(clips)
        predictions, targets = [], []
        for kind in range(len(self.recipe.blocks)):
            context, target = batch[f"context_{kind}"], batch[f"target_{kind}"]
            tokens = self.online.tokens(clips, keep=context)
            predictions.append(self.predictor(tokens, context, target, kind))
            targets.append(at_targets(actual, target))
        loss = vjepa_loss(predictions, targets)
        hinge = variance_hinge(predictions)
        if self.recipe.hinge:
            loss = loss + self.recipe.hinge * hinge
        return Step(loss, {"variance_hinge": hinge.detach()}, features)

    def adjust_gradients(self, step: int) -> dict[str, float]:
        """Clips encoder and predictor, each for itself, once the epoch is past the warm-up."""
        late = step // self.horizon.steps_per_epoch > self.recipe.warmup_epochs
        limit = self.recipe.clip if self.recipe.clip and late else float("inf")
        return {
            f"grad_norm_{what}": float(nn.utils.clip_grad_norm_(network.parameters(), limit))
            for what, network in (("encoder", self.online), ("predictor", self.predictor))
        }

    def encoder(self) -> Encoder:
        """The target encoder for single camera images, averaged over patches.

        An image counts as a clip of `tubelet` equal frames at the first time step: the encoder is `still_clip` of the
        target encoder. Unlike other methods' encoders it is a copy, which does not follow further training.
        """
        view = self.data(self.recipe).views[0]
        preprocess = Preprocess(size=self.recipe.size, mean=view.mean, std=view.std)
        info = WeightsInfo(source="trained with V-JEPA", license="as its training videos allow")
        name = f"vjepa-{self.recipe.architecture}"
        return Encoder(name, still_clip(self.target), preprocess, self.target.embedding_dim, info).eval()

    def _lr(self, step: int) -> float:
        recipe, per_epoch = self.recipe, self.horizon.steps_per_epoch
        total = int(self._schedule_steps())
        if recipe.schedule_kind == "linear_decay":
            return linear_decay(step, recipe.lr, recipe.final_lr, total)
        if recipe.schedule_kind == "warmup_stable_decay":
            warmup, anneal = (int(epochs * per_epoch) for epochs in (recipe.warmup_epochs, recipe.anneal_epochs))
            return warmup_stable_decay(step, recipe.start_lr, recipe.lr, recipe.final_lr, warmup, anneal, total)
        return super()._lr(step)


def vjepa_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor], exponent: float = 1.0) -> Tensor:
    """Mean of |z - h|^p / p, averaged over the kinds of masks (section 3.1; p = 1).

    Args:
        predictions: z, (N, P, D) for each kind.
        targets: h, normalised, the same shapes, no gradient.
        exponent: p.

    Returns:
        scalar.
    """
    errors = [(z.float() - h).abs().pow(exponent).mean() / exponent for z, h in zip(predictions, targets, strict=True)]
    return torch.stack(errors).mean()


def variance_hinge(predictions: Sequence[Tensor]) -> Tensor:
    """How far the standard deviation of predictions over their tokens stays below 1: a sign of collapse.

    Args:
        predictions: (N, P, D) for each kind of mask.

    Returns:
        scalar, the mean of max(0, 1 - s), with s (N, D) averaged over the kinds.
    """
    deviations = [(z.float().var(dim=1) + HINGE_EPS).sqrt() for z in predictions]
    return functional.relu(1 - torch.stack(deviations).mean(dim=0)).mean()
