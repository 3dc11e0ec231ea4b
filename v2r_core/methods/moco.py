"""MoCo: momentum contrast, versions 1 and 2 (He et al. 2020, Chen et al. 2020) with a queue, version 3 without one.

Versions 1 and 2: a query has to find its own key, the other view of its frame as the averaged network sees it, among
the keys of earlier batches. Batch norm would give the answer away, since query and key share a batch: keys are computed
in a shuffled order, so that they meet other statistics. That takes several processes, or parts of a batch that are
normalised by themselves (`bn_splits`); on one batch norm shuffling does nothing.

Version 3: both views are queries and keys, and the keys are those of the batch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.methods.mocov3 import ProjectedViT, mocov3_logits, mocov3_loss, projected_resnet, vit_config
from v2r_core.nn.batch_norm import SplitBatchNorm
from v2r_core.nn.distributed import broadcast, gather, rank, world
from v2r_core.nn.ema import copy_for_ema, ema_update
from v2r_core.nn.lars import LARS
from v2r_core.nn.projection import moco_head, mocov3_head
from v2r_core.nn.queue import check_queue, enqueue, random_queue
from v2r_core.nn.resnet import ResNet
from v2r_core.nn.schedules import cosine_momentum, half_cosine, step_decay, warmup_half_cosine
from v2r_core.nn.vit import VisionTransformer
from v2r_core.video.augment import moco_v1_views, moco_v2_views, moco_v3_views
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

Version = Literal["v1", "v2", "v3"]


@dataclass(frozen=True, kw_only=True)
class MocoRecipe(Recipe):
    """Settings of MoCo. Papers and released code compute the same, so `compat` changes nothing.

    Attributes:
        version: v1 and v2 have a queue and differ in head and views; v3 has a predictor and no queue.
        architecture: `resnet18` to `resnet152`; for v3 also `vit-` and a name of `v2r_core.nn.vit.ARCHITECTURES`.
        width: factor on the channels of a ResNet.
        size: side of a view in pixels.
        patch: side of a patch of a ViT in pixels.
        dim: channels of a key.
        hidden: hidden channels of v3's projector and predictor.
        queue: keys in the queue; a multiple of the batch size.
        momentum: of the averaged network; v3 starts with it.
        momentum_cosine: v3 raises the momentum to 1 along a cosine.
        temperature: that cosines are divided by.
        bn_splits: parts of a batch that v1 and v2 normalise by themselves, shared among the processes.
        crop_min: smallest part of the frame's area that a view shows.
        flip: probability of mirroring.
        optimizer: `sgd` with momentum 0.9, `lars` (v3, ResNet) or `adamw` (v3, ViT).
        base_lr: learning rate at batch size 256, scaled linearly.
        weight_decay: of all parameters; `lars` leaves out one-dimensional ones.
        schedule: of the learning rate: `step` (v1) and `cosine` (v2) change once an epoch, `warmup` (v3) each step.
        milestones: epochs at which `step` divides by 10.
        warmup_epochs: of `warmup`.
        freeze_patch: do not train the patch embedding of v3's ViT.
    """

    version: Version = "v2"
    architecture: str = "resnet50"
    width: float = 1.0
    size: int = 224
    patch: int = 16
    dim: int = 128
    hidden: int = 4096
    queue: int = 65536
    momentum: float = 0.999
    momentum_cosine: bool = False
    temperature: float = 0.2
    bn_splits: int = 8
    crop_min: float = 0.2
    flip: float = 0.5
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    base_lr: float = 0.03
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine", "warmup"] = "cosine"
    milestones: tuple[int, ...] = (120, 160)
    warmup_epochs: float = 0
    freeze_patch: bool = False

    @classmethod
    def paper(cls, version: Version = "v2", architecture: str = "") -> Self:
        """The papers' settings.

        v1 and v2: ResNet-50, 200 epochs on 8 devices. v3: ViT-B, 300 epochs; or ResNet-50, 300 epochs.

        Args:
            version: of MoCo.
            architecture: for v3 `vit-base` (if empty), `vit-small` or `resnet50`.
        """
        if version == "v1":
            return cls(version="v1", epochs=200, batch_size=256, temperature=0.07, schedule="step")
        if version == "v2":
            return cls(epochs=200, batch_size=256)
        common = cls(
            version="v3",
            epochs=300,
            batch_size=4096,
            precision="fp16",
            dim=256,
            momentum=0.99,
            momentum_cosine=True,
            schedule="warmup",
        )
        if architecture == "resnet50":
            return dataclasses.replace(
                common, temperature=1.0, optimizer="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10
            )
        return dataclasses.replace(
            common,
            architecture=architecture or "vit-base",
            crop_min=0.08,
            optimizer="adamw",
            base_lr=1.5e-4,
            weight_decay=0.1,
            warmup_epochs=40,
            freeze_patch=True,
        )

    @classmethod
    def tiny(cls, version: Version = "v2") -> Self:
        """64 pixels; a ResNet-18 of half the width (v1, v2) or a ViT of four blocks (v3).

        The queue is short, since a few thousand frames of videos are much alike: in a long one a frame would meet
        itself. Large crops that are not mirrored keep where things are.
        """
        if version == "v3":
            return dataclasses.replace(
                cls.paper("v3"),
                epochs=20,
                batch_size=64,
                precision="no",
                architecture="vit-mini",
                size=64,
                patch=16,
                dim=64,
                hidden=512,
                crop_min=0.5,
                flip=0.0,
                base_lr=2e-3,
                warmup_epochs=2,
            )
        small = dataclasses.replace(
            cls.paper(version),
            epochs=25,
            batch_size=64,
            architecture="resnet18",
            width=0.5,
            size=64,
            queue=256,
            momentum=0.99,
            temperature=0.1,
            bn_splits=2,
            crop_min=0.5,
            flip=0.0,
            optimizer="adamw",
            base_lr=4e-3,
        )
        return dataclasses.replace(small, milestones=(15, 20)) if version == "v1" else small

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """Papers' and small settings of the three versions."""
        return {
            "paper": cls.paper(),
            "tiny": cls.tiny(),
            "paper-v1": cls.paper("v1"),
            "paper-v3": cls.paper("v3"),
            "paper-v3-small": cls.paper("v3", "vit-small"),
            "paper-v3-resnet": cls.paper("v3", "resnet50"),
            "tiny-v1": cls.tiny("v1"),
            "tiny-v3": cls.tiny("v3"),
        }


class Moco(Method):
    """Momentum contrast. The state has the names of the released checkpoints, without `module.`.

    Args:
        recipe: the settings.
        horizon: how long the training is.

    Raises:
        ValueError: a queue that the batch size does not divide, parts of a batch of unequal size, or an architecture
            that the version does not have.
    """

    name = "moco"
    recipe_type = MocoRecipe
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, recipe: MocoRecipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self._averaged_at = -1
        if recipe.version == "v3":
            self.base_encoder = _build_v3(recipe)
            self.momentum_encoder = copy_for_ema(self.base_encoder)
            resnet = isinstance(self.base_encoder, ResNet)
            self.predictor = mocov3_head(2, recipe.dim, recipe.hidden, recipe.dim, last_norm=not resnet)
            return
        check_queue(recipe.queue, horizon.batch_size)
        splits = max(1, recipe.bn_splits // world())
        if horizon.batch_size % recipe.bn_splits:
            raise ValueError(
                f"batch size {horizon.batch_size} is no multiple of bn_splits {recipe.bn_splits}; change one of them"
            )
        network = ResNet(_depth(recipe), recipe.width, partial(SplitBatchNorm, splits=splits))
        network.fc = moco_head(recipe.version, network.embedding_dim, recipe.dim)
        self.encoder_q: nn.Module = network
        self.encoder_k: nn.Module = copy_for_ema(network)
        self.register_buffer("queue", random_queue(recipe.dim, recipe.queue))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @staticmethod
    def data(recipe: MocoRecipe) -> DataSpec:
        """Two views of a frame: query and key, or the two of version 3."""
        views = {"v1": moco_v1_views, "v2": moco_v2_views, "v3": moco_v3_views}[recipe.version](recipe.size)
        scale, flip = (recipe.crop_min, 1.0), recipe.flip
        return DataSpec(views=tuple(dataclasses.replace(view, scale=scale, flip=flip) for view in views))

    def loss(self, batch: Batch, step: int) -> Step:
        """Moves the averaged network, then contrasts.

        Args:
            batch: `views`: two, (N, 3, S, S).
            step: the averaged network moves once a step, before the first batch of it.
        """
        first, second = batch["views"]
        contrast = self._contrast_pairs if self.recipe.version == "v3" else self._contrast_queue
        return contrast(first, second, step)

    def _contrast_queue(self, queries: Tensor, keys: Tensor, step: int) -> Step:
        q = functional.normalize(self.encoder_q(queries), dim=1)
        self._average(self.encoder_k, self.encoder_q, step)
        every_key = shuffled_keys(self.encoder_k, keys, self._permutation(keys))
        own = every_key[rank() * len(keys) :][: len(keys)]
        logits = moco_logits(q, own, self.queue, self.recipe.temperature)
        enqueue(self.queue, self.queue_ptr, every_key)
        hits = (logits.argmax(dim=1) == 0).float().mean()
        return Step(moco_loss(logits), {"accuracy": hits}, features=q.detach())

    def _contrast_pairs(self, first: Tensor, second: Tensor, step: int) -> Step:
        temperature = self.recipe.temperature
        q1, q2 = self.predictor(self.base_encoder(first)), self.predictor(self.base_encoder(second))
        with torch.no_grad():
            self._average(self.momentum_encoder, self.base_encoder, step)
            k1, k2 = gather(self.momentum_encoder(first)), gather(self.momentum_encoder(second))
        start = rank() * len(first)
        loss = mocov3_loss(q1, k2, temperature, start) + mocov3_loss(q2, k1, temperature, start)
        found = mocov3_logits(q1.detach(), k2, temperature).argmax(dim=1)
        hits = (found == torch.arange(start, start + len(first), device=found.device)).float().mean()
        return Step(loss, {"accuracy": hits}, features=functional.normalize(q1.detach(), dim=1))

    def _permutation(self, keys: Tensor) -> Tensor | None:
        """The same random order on every process; None where one batch norm sees all keys and order means nothing."""
        if world() * self.recipe.bn_splits == 1:
            return None
        return broadcast(torch.randperm(world() * len(keys), device=keys.device))

    def _average(self, target: nn.Module, source: nn.Module, step: int) -> None:
        if step != self._averaged_at:
            ema_update(target, source, self.schedule(step)["momentum"])
            self._averaged_at = step

    def optimizer(self) -> torch.optim.Optimizer:
        """The recipe's; weight decay on everything, as in the released codes, but for LARS."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        groups = [{"params": weights, "lr_scale": 1.0, "wd_scale": 1.0}]
        lr = self.schedule(0)["lr"]
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=0.9)
        if self.recipe.optimizer == "lars":
            return LARS(groups, lr=lr)
        return torch.optim.AdamW(groups, lr=lr)

    def schedule(self, step: int) -> dict[str, float]:
        """Learning rate, weight decay and the momentum of the averaged network."""
        recipe, horizon = self.recipe, self.horizon
        peak = recipe.base_lr * horizon.batch_size / 256
        epoch = step / horizon.steps_per_epoch
        if recipe.schedule == "step":
            lr = step_decay(int(epoch), peak, recipe.milestones)
        elif recipe.schedule == "cosine":
            lr = half_cosine(int(epoch), peak, horizon.epochs)
        else:
            lr = warmup_half_cosine(epoch, peak, 0.0, recipe.warmup_epochs, horizon.epochs)
        momentum = recipe.momentum
        if recipe.momentum_cosine:
            momentum = cosine_momentum(epoch, momentum, horizon.epochs)
        return {"lr": lr, "weight_decay": recipe.weight_decay, "momentum": momentum}

    def encoder(self) -> Encoder:
        """The trained network without its head, as released: the query side, not the average."""
        recipe = self.recipe
        trained = self.base_encoder if recipe.version == "v3" else self.encoder_q
        if recipe.architecture.startswith("vit-"):
            bare: nn.Module = VisionTransformer(vit_config(recipe.architecture, recipe.size, recipe.patch))
        else:
            bare = ResNet(_depth(recipe), recipe.width)
        state = trained.state_dict()
        bare.load_state_dict({key: state[key] for key in bare.state_dict()}, assign=True)
        view = self.data(recipe).views[0]
        preprocess = Preprocess(size=recipe.size, mean=view.mean, std=view.std)
        info = WeightsInfo(source=f"trained with MoCo {recipe.version}", license="as its training videos allow")
        dim = cast(ResNet, bare).embedding_dim
        return Encoder(f"moco-{recipe.version}-{recipe.architecture}", bare, preprocess, dim, info).eval()


def moco_logits(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarities of queries with their own key and with the queue (equation 1 of the first paper).

    Args:
        queries: normalised, (N, D).
        keys: normalised, (N, D), row i belongs to query i; no gradient.
        queue: normalised columns, (D, K); copied, since it is overwritten before the backward pass.
        temperature: T.

    Returns:
        (N, 1 + K), the positive first.
    """
    positive = (queries * keys.detach()).sum(dim=1, keepdim=True)
    negative = queries @ queue.detach().clone()
    return torch.cat([positive, negative], dim=1) / temperature


def moco_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, 1 + K) whose first column is right; scalar."""
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


@torch.no_grad()
def shuffled_keys(network: nn.Module, images: Tensor, permutation: Tensor | None) -> Tensor:
    """Keys of all processes, computed in another order than they are in (section 3.3, "Shuffling BN").

    Args:
        network: of the keys.
        images: this process's, (N, ...).
        permutation: int64 (world * N,), the same on every process: row i of the shuffled batch is row permutation[i]
            of the joined one, and process r computes the r-th part. None to keep the order.

    Returns:
        normalised keys (world * N, D), in the original order.
    """
    if permutation is None:
        return gather(functional.normalize(network(images), dim=1))
    mine = permutation.reshape(world(), -1)[rank()]
    keys = gather(functional.normalize(network(gather(images)[mine]), dim=1))
    return keys[permutation.argsort()]


def _depth(recipe: MocoRecipe) -> int:
    kind, _, depth = recipe.architecture.partition("resnet")
    if kind or not depth.isdigit():
        also = ", or vit-mini and the like" if recipe.version == "v3" else ""
        raise ValueError(f"MoCo {recipe.version} has no {recipe.architecture!r}; resnet18 to resnet152{also} expected")
    return int(depth)


def _build_v3(recipe: MocoRecipe) -> ResNet | ProjectedViT:
    if recipe.architecture.startswith("vit-"):
        config = vit_config(recipe.architecture, recipe.size, recipe.patch)
        return ProjectedViT(config, recipe.hidden, recipe.dim, recipe.freeze_patch)
    return projected_resnet(_depth(recipe), recipe.width, recipe.hidden, recipe.dim)
