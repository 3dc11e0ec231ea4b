"""What I-JEPA and V-JEPA share: an encoder, its average as the target, a predictor, and their schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.methods.method import Horizon, Method, Recipe
from v2r_core.nn.block import Block
from v2r_core.nn.ema import copy_for_ema, ema_update
from v2r_core.nn.masking import Compat
from v2r_core.nn.predictor import Predictor
from v2r_core.nn.schedules import jepa_lr, jepa_weight_decay, linear_momentum
from v2r_core.nn.vit import VisionTransformer, ViTConfig


@dataclass(frozen=True, kw_only=True)
class JepaRecipe(Recipe):
    """Settings that I-JEPA and V-JEPA have in common.

    Attributes:
        architecture: name of the encoder's size, see `v2r_core.nn.vit.ARCHITECTURES`.
        size: side of the view in pixels.
        patch: side of a patch in pixels.
        predictor_width: channels of the predictor.
        predictor_depth: blocks of the predictor.
        start_lr: learning rate at the start of the warm-up.
        lr: learning rate at its end; not scaled with the batch size.
        final_lr: learning rate that the cosine falls to.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: at the start, of everything but biases and other one-dimensional parameters.
        final_weight_decay: that the cosine rises to.
        momentum: of the target encoder's average, at the start.
        final_momentum: that it rises to, linearly.
        stretch: length of all schedules over that of the training; above 1, the final values are not reached.
        scale: range of a crop's share of the frame.
    """

    architecture: str = "base"
    size: int = 224
    patch: int = 16
    predictor_width: int = 384
    predictor_depth: int = 12
    start_lr: float = 2e-4
    lr: float = 1e-3
    final_lr: float = 1e-6
    warmup_epochs: float = 40
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    momentum: float = 0.996
    final_momentum: float = 1.0
    stretch: float = 1.0
    scale: tuple[float, float] = (0.3, 1.0)


class Jepa(Method):
    """Joint-embedding predictive architecture; what is masked, and how far off a prediction is, is up to subclasses.

    `online`, `predictor` and `target` have the parameter names of the released entries `encoder`, `predictor` and
    `target_encoder`.

    Args:
        recipe: the settings.
        horizon: how long the training is.
        config: the encoder.
        predictor: the predictor.
    """

    recipe: JepaRecipe

    def __init__(self, recipe: JepaRecipe, horizon: Horizon, config: ViTConfig, predictor: Predictor) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.online = VisionTransformer(config)
        self.predictor = predictor
        init_jepa(self.online, recipe.compat)
        if recipe.compat == "paper":
            rescale_by_depth(self.predictor.predictor_blocks)
        self.target = copy_for_ema(self.online)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; what has "bias" in its name or one dimension is not decayed, mask tokens are."""
        groups: list[dict[str, object]] = []
        for decayed in (True, False):
            for network in (self.online, self.predictor):
                flags = weight_decay_names(network)
                chosen = [p for name, p in network.named_parameters() if p.requires_grad and flags[name] is decayed]
                groups.append({"params": chosen, "lr_scale": 1.0, "wd_scale": float(decayed)})
        return torch.optim.AdamW(groups, lr=self.schedule(0)["lr"], fused=True)

    def schedule(self, step: int) -> dict[str, float]:
        """Learning rate and weight decay, whose first step counts as 1, and momentum, whose first counts as 0."""
        recipe, count = self.recipe, self._schedule_steps()
        return {
            "lr": self._lr(step + 1),
            "weight_decay": jepa_weight_decay(step + 1, recipe.weight_decay, recipe.final_weight_decay, int(count)),
            "momentum": linear_momentum(step, recipe.momentum, recipe.final_momentum, count),
        }

    def after_step(self, step: int) -> None:
        """The target encoder follows the encoder."""
        ema_update(self.target, self.online, self.schedule(step)["momentum"])

    def _lr(self, step: int) -> float:
        recipe = self.recipe
        warmup = int(recipe.warmup_epochs * self.horizon.steps_per_epoch)
        return jepa_lr(step, recipe.start_lr, recipe.lr, recipe.final_lr, warmup, int(self._schedule_steps()))

    def _schedule_steps(self) -> float:
        return self.recipe.stretch * self.horizon.epochs * self.horizon.steps_per_epoch

    @torch.no_grad()
    def _targets(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What has to be predicted, for all patches (N, L, D); and the mean of the target encoder's tokens, (N, D)."""
        tokens = self.target.tokens(images)
        return normalise(tokens), tokens.float().mean(dim=1)


def normalise(tokens: Tensor) -> Tensor:
    """Layer norm over channels without parameters, eps 1e-5, of targets (..., D)."""
    return functional.layer_norm(tokens.float(), tokens.shape[-1:])


def weight_decay_names(network: nn.Module) -> dict[str, bool]:
    """Which parameters are in a decayed group; fixed tables are, and have no gradient."""
    return {name: "bias" not in name and parameter.ndim > 1 for name, parameter in network.named_parameters()}


def init_jepa(encoder: VisionTransformer, compat: Compat) -> None:
    """The released initial weights, in place: truncated normal of 0.02 for linear layers and the patch embedding.

    The released code divides the last layers of each residual branch by sqrt(2 depth) and then initialises them again,
    so nothing is left of it; with `compat="paper"` it is.
    """
    embedding = encoder.patch_embed.proj
    nn.init.trunc_normal_(cast(Tensor, embedding.weight), std=0.02)
    nn.init.zeros_(cast(Tensor, embedding.bias))
    if compat == "paper":
        rescale_by_depth(encoder.blocks)


@torch.no_grad()
def rescale_by_depth(blocks: nn.ModuleList) -> None:
    """Divides the last layer of both branches of the l-th block, from 1, by sqrt(2 l), in place."""
    for number, block in enumerate(cast(list[Block], list(blocks)), start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            cast(nn.Linear, layer).weight.div_(math.sqrt(2.0 * number))
