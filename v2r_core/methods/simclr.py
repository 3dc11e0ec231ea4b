"""SimCLR (Chen et al. 2020): two views of a frame have to find each other among all views of the batch.

Inputs are in [0, 1] with no normalisation, batch norms are over all processes, and gradients flow through the gathered
views of the others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.nn.batch_norm import GlobalBatchNorm
from v2r_core.nn.distributed import gather_with_grad, rank
from v2r_core.nn.lars import LARS
from v2r_core.nn.projection import ProjectionHead
from v2r_core.nn.resnet import SimCLRResNet
from v2r_core.nn.schedules import simclr_lr, simclr_steps
from v2r_core.video.augment import simclr_views
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

Reduction = Literal["official_sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class SimCLROptions(Recipe):
    """What pre-training, fine-tuning and distillation have in common.

    `compat`: `official` adds the losses of the two directions, `paper` averages over all 2N rows (equation 1), which is
    half of it.

    Attributes:
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        width: factor on its channels.
        selective: selective kernels (depth 50 and more).
        small_images: stem for images of about 32 pixels.
        size: side of a view in pixels.
        optimizer: `lars`; `momentum` (Nesterov, 0.9) or `adam`, which decay all but batch norms.
        base_lr: learning rate that `lr_scaling` scales.
        lr_scaling: `linear`: times batch size over 256; `sqrt`: times the root of the batch size.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of all weights but biases and batch norms.
    """

    depth: int = 50
    width: float = 1.0
    selective: bool = False
    small_images: bool = False
    size: int = 224
    optimizer: Literal["lars", "momentum", "adam"] = "lars"
    base_lr: float = 0.3
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    warmup_epochs: float = 10
    weight_decay: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class SimCLRRecipe(SimCLROptions):
    """Settings of SimCLR.

    Attributes:
        head_layers: layers of the head: 2, or 1 for a linear one, or 0 for none.
        head_dim: channels of the head's output.
        temperature: that similarities are divided by.
        normalise: compare directions only (cosines).
        crop_min: smallest part of the frame's area that a view shows.
        flip: probability of mirroring.
        strength: of the colour jitter: 1 for ImageNet, 0.5 for CIFAR.
        blur: blur half of the views.
    """

    head_layers: int = 2
    head_dim: int = 128
    temperature: float = 0.1
    normalise: bool = True
    crop_min: float = 0.08
    flip: float = 0.5
    strength: float = 1.0
    blur: bool = True

    @classmethod
    def paper(cls) -> Self:
        """ResNet-50, batch 4096, 1000 epochs (section 6; the ablations train 100)."""
        return cls(epochs=1000, batch_size=4096)

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels, a ResNet-18 of half the width; large crops that are not mirrored keep where things are."""
        return cls(
            epochs=16,
            batch_size=64,
            depth=18,
            width=0.5,
            size=64,
            head_dim=64,
            temperature=0.2,
            optimizer="adam",
            base_lr=4e-3,
            warmup_epochs=1,
            crop_min=0.5,
            flip=0.0,
            strength=0.5,
        )


class SimCLR(Method):
    """Contrasts views.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "simclr"
    recipe_type = SimCLRRecipe

    def __init__(self, recipe: SimCLRRecipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.backbone = build_backbone(recipe.depth, recipe.width, recipe.selective, recipe.small_images)
        self.head = ProjectionHead(self.backbone.embedding_dim, recipe.head_dim, recipe.head_layers)

    @staticmethod
    def data(recipe: SimCLRRecipe) -> DataSpec:
        """Two views, with levels in [0, 1]."""
        views = simclr_views(recipe.size, recipe.strength, recipe.blur)
        scale, flip = (recipe.crop_min, 1.0), recipe.flip
        return DataSpec(views=tuple(dataclasses.replace(view, scale=scale, flip=flip) for view in views))

    def loss(self, batch: Batch, step: int) -> Step:
        """NT-Xent of two views.

        Args:
            batch: `views`: two, (N, 3, S, S), levels in [0, 1].
            step: not used.
        """
        return self.contrast(self.project(batch))

    def project(self, batch: Batch) -> Tensor:
        """Both views in one batch, since batch norms see both: (2N, D), first views first."""
        return self.head(self.backbone(torch.cat(batch["views"])))

    def contrast(self, projections: Tensor, negatives: Tensor | None = None) -> Step:
        """Loss of projections (2N, D), with more negatives (M, D) if there are any."""
        recipe = self.recipe
        if recipe.normalise:
            projections = functional.normalize(projections, dim=1)
        logits, labels = nt_xent_logits(projections, recipe.temperature, negatives)
        reduction: Reduction = "mean" if recipe.compat == "paper" else "official_sum"
        hits = (logits.argmax(dim=1) == labels).float().mean()
        features = functional.normalize(projections.detach(), dim=1)
        return Step(_reduce(logits, labels, reduction), {"accuracy": hits}, features)

    def optimizer(self) -> torch.optim.Optimizer:
        """LARS in SimCLR's dialect, or Nesterov momentum, or Adam."""
        return build_optimizer(self, self.recipe, self.schedule(0)["lr"])

    def schedule(self, step: int) -> dict[str, float]:
        """Warm-up and half a cosine, counted in steps."""
        return lr_and_decay(self.recipe, self.horizon, step)

    def encoder(self) -> Encoder:
        """The base network without the head."""
        bare = bare_copy(self.backbone)
        return as_encoder(f"simclr-r{self.recipe.depth}", bare, self.recipe, bare.embedding_dim)


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    normalise: bool = True,
    reduction: Reduction = "official_sum",
    negatives: Tensor | None = None,
) -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross-entropy (equation 1).

    Over several processes the views of all are compared, and the gradient is that of the sum of all processes' losses.

    Args:
        first: one view of each of this process's examples, (N, D).
        second: the other view, (N, D).
        temperature: T.
        normalise: compare directions only.
        reduction: `official_sum`: mean over the examples of the sum of both directions; `mean`: mean over all rows,
            half of it, as in the paper.
        negatives: more of them, (M, D), normalised if need be.

    Returns:
        scalar, this process's loss.
    """
    views = torch.cat([first, second])
    if normalise:
        views = functional.normalize(views, dim=1)
    return _reduce(*nt_xent_logits(views, temperature, negatives), reduction)


def nt_xent_logits(
    views: Tensor, temperature: float, negatives: Tensor | None = None, joined: Tensor | None = None, place: int = -1
) -> tuple[Tensor, Tensor]:
    """Similarities of this process's views with everybody's.

    Args:
        views: (2N, D), first views first.
        temperature: T.
        negatives: (M, D) to compare with besides.
        joined: views of all processes (world * 2N, D) in the order of ranks; gathered if None.
        place: rank of this process, where `joined` is given.

    Returns:
        logits (2N, world * 2N + M), -inf where a view would meet itself, and labels int64 (2N,): the column of the
        other view.
    """
    if joined is None:
        joined, place = gather_with_grad(views), rank()
    count = len(views)
    rows = torch.arange(count, device=views.device)
    logits = (views @ joined.T) / temperature
    logits = logits.index_put((rows, rows + place * count), logits.new_tensor(float("-inf")))
    if negatives is not None:
        logits = torch.cat([logits, views @ negatives.T / temperature], dim=1)
    return logits, place * count + (rows + count // 2) % count


def _reduce(logits: Tensor, labels: Tensor, reduction: Reduction) -> Tensor:
    mean = functional.cross_entropy(logits, labels)
    return 2 * mean if reduction == "official_sum" else mean


def build_backbone(depth: int, width: float, selective: bool, small: bool = False) -> SimCLRResNet:
    """A ResNet with batch norms over all processes; see `SimCLRResNet`."""
    return SimCLRResNet(depth, width, selective, small, partial(GlobalBatchNorm, population=True))


def bare_copy(network: SimCLRResNet) -> SimCLRResNet:
    """The same weights, shared, in a network of torch's own batch norms, which any export knows."""
    bare = SimCLRResNet(*network.settings)
    bare.load_state_dict(network.state_dict(), assign=True)
    return bare


def as_encoder(name: str, network: nn.Module, options: SimCLROptions, dim: int) -> Encoder:
    """An encoder that takes levels in [0, 1] as they are."""
    preprocess = Preprocess(size=options.size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    info = WeightsInfo(source="trained with SimCLR", license="as its training videos allow")
    return Encoder(name, network, preprocess, dim, info).eval()


def lr_and_decay(options: SimCLROptions, horizon: Horizon, step: int) -> dict[str, float]:
    """SimCLR's schedule: peak scaled by the batch size, warm-up, half a cosine."""
    factor = horizon.batch_size / 256 if options.lr_scaling == "linear" else horizon.batch_size**0.5
    total, warmup = simclr_steps(horizon.examples, horizon.batch_size, horizon.epochs, options.warmup_epochs)
    lr = simclr_lr(step, options.base_lr * factor, total, warmup)
    return {"lr": lr, "weight_decay": options.weight_decay}


def build_optimizer(network: nn.Module, options: SimCLROptions, lr: float) -> torch.optim.Optimizer:
    """The optimizer of some options, with groups of its own for what is not decayed.

    LARS neither decays nor scales biases, batch norms and the supervised head (a `classifier`), but for the decay of
    the latter's matrix. The others decay all but batch norms.
    """
    lars = options.optimizer == "lars"
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, module in network.named_modules():
        for kind, weight in module.named_parameters(recurse=False):
            if weight.requires_grad:
                normal = isinstance(module, _BatchNorm)
                decayed = not normal and not (lars and kind == "bias")
                adapt = decayed and not name.endswith("classifier")
                groups.setdefault((decayed, adapt), []).append(weight)
    listed = [
        {"params": weights, "lr_scale": 1.0, "wd_scale": float(decayed), "adapt": adapt}
        for (decayed, adapt), weights in groups.items()
    ]
    if lars:
        return LARS(listed, lr=lr, dialect="simclr")
    if options.optimizer == "momentum":
        return torch.optim.SGD(listed, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.Adam(listed, lr=lr)
