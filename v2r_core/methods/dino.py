"""DINO: self-distillation with no labels (Caron et al. 2021).

A student sees all crops of a frame, two large and several small ones; a teacher, its moving average, the large ones.
The student predicts what the teacher says about another crop. The teacher's words are centred, so that no prototype
wins for everybody, and sharpened, so that they say something at all: without either one the network collapses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.nn.batch_norm import GlobalBatchNorm
from v2r_core.nn.dino_head import DinoHead
from v2r_core.nn.dino_losses import centred_probabilities, dino_loss
from v2r_core.nn.ema import ema_update
from v2r_core.nn.lars import LARS
from v2r_core.nn.resnet import ResNet
from v2r_core.nn.schedules import teacher_temperature, warmup_cosine_table
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture
from v2r_core.video.augment import dino_views
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

WATCHED_ROWS = 64
"""Teacher rows of a batch that are handed out to be watched for collapse."""


@dataclass(frozen=True, kw_only=True)
class DinoRecipe(Recipe):
    """Settings of DINO. Paper and released code compute the same, so `compat` changes nothing.

    Attributes:
        architecture: `vit-` and a name of `v2r_core.nn.vit.ARCHITECTURES`, or `resnet18` to `resnet152`.
        patch: side of a patch of a ViT in pixels.
        size: side of a global crop in pixels.
        local_size: side of a local crop in pixels.
        local_count: local crops of a frame; 0 for none.
        global_scale: parts of the frame's area that global crops show; (0.14, 1) without local crops or for ResNets.
        local_scale: parts of the frame's area that local crops show.
        flip: probability of mirroring a crop.
        pool: what the encoder of a ViT gives in the end: the `cls` token, which is trained, or the `mean` of patches.
        drop_path: stochastic depth of the student's last block, less in those before; the teacher has none.
        prototypes: outputs K of the head. Small data wants fewer.
        head_hidden: hidden channels of the head.
        head_bottleneck: channels before the prototypes.
        norm_last_layer: prototypes keep length 1. Steadier; the best ViTs were trained without.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's logits after its warm-up.
        teacher_temperature_start: divides them at first.
        teacher_warmup_epochs: epochs of warm-up of the teacher's temperature.
        center_momentum: of the center.
        momentum: of the teacher at first; it rises to 1 along a cosine. Small batches want more: 0.9995 at 256.
        optimizer: `adamw`; `sgd` with momentum 0.9, or `lars`, for ResNets.
        base_lr: learning rate at batch size 256, scaled linearly.
        min_lr: learning rate at the end.
        warmup_epochs: of the learning rate.
        weight_decay: at first; biases and one-dimensional parameters are not decayed.
        final_weight_decay: at the end of a cosine.
        clip: largest norm of the gradient of each parameter by itself; 0 for no limit.
        freeze_last_layer: epochs in which the prototypes do not move.
    """

    architecture: str = "vit-small"
    patch: int = 16
    size: int = 224
    local_size: int = 96
    local_count: int = 8
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    flip: float = 0.5
    pool: Literal["cls", "mean"] = "cls"
    drop_path: float = 0.1
    prototypes: int = 65536
    head_hidden: int = 2048
    head_bottleneck: int = 256
    norm_last_layer: bool = True
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    teacher_temperature_start: float = 0.04
    teacher_warmup_epochs: int = 0
    center_momentum: float = 0.9
    momentum: float = 0.996
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    clip: float = 3.0
    freeze_last_layer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, a number above 0 expected")
        if self.architecture.startswith("vit-") and (self.size % self.patch or self.local_size % self.patch):
            raise ValueError(
                f"crops of {self.size} and {self.local_size} pixels are no multiples of the patch, {self.patch}"
            )

    @classmethod
    def paper(cls) -> Self:
        """ViT-S/16 at its best: 800 epochs, batch 1024, teacher temperature 0.07 after 30 epochs."""
        return cls(
            epochs=800,
            batch_size=1024,
            precision="fp16",
            norm_last_layer=False,
            teacher_temperature=0.07,
            teacher_warmup_epochs=30,
        )

    @classmethod
    def paper_resnet(cls) -> Self:
        """ResNet-50: 300 epochs with SGD, and larger global crops."""
        return dataclasses.replace(
            cls.paper(),
            architecture="resnet50",
            epochs=300,
            norm_last_layer=True,
            global_scale=(0.14, 1.0),
            local_scale=(0.05, 0.14),
            local_count=6,
            optimizer="sgd",
            base_lr=0.03,
            weight_decay=1e-4,
            final_weight_decay=1e-4,
        )

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels in patches of 8, four blocks, two local crops, 1024 prototypes."""
        return cls(
            epochs=8,
            batch_size=32,
            architecture="vit-mini",
            patch=8,
            size=64,
            local_size=32,
            local_count=2,
            global_scale=(0.4, 1.0),
            local_scale=(0.1, 0.4),
            flip=0.0,
            pool="mean",
            drop_path=0.0,
            prototypes=1024,
            head_hidden=512,
            head_bottleneck=128,
            # Frames of a fixed camera differ little, and the answers become uniform: sooner at 0.04, with a faster
            # teacher or at a higher rate.
            teacher_temperature=0.02,
            teacher_temperature_start=0.02,
            momentum=0.996,
            base_lr=1.5e-3,
            final_weight_decay=0.04,
            warmup_epochs=2,
        )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """The paper's transformer and ResNet, and a small one."""
        return {"paper": cls.paper(), "tiny": cls.tiny(), "paper-resnet": cls.paper_resnet()}


class DinoNetwork(nn.Module):
    """A backbone and the head behind it: student or teacher.

    Args:
        backbone: a transformer with a class token, or a ResNet.
        head: from its features to logits.
    """

    def __init__(self, backbone: VisionTransformer | ResNet, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """All crops, with one pass through the backbone for each size and one through the head.

        Args:
            views: V tensors (B, 3, h, w); equal sizes follow each other.

        Returns:
            Features (V * B, D) and logits (V * B, K), crop by crop.
        """
        run = self.backbone.class_tokens if isinstance(self.backbone, VisionTransformer) else self.backbone
        sizes = [list(same) for _, same in groupby(views, key=lambda view: view.shape[-2:])]
        features = torch.cat([run(torch.cat(same)) for same in sizes])
        return features, self.head(features)


class Dino(Method):
    """Self-distillation. Student and teacher have the names of the released full checkpoints, without `module.`.

    Args:
        recipe: the settings.
        horizon: how long the training is.

    Raises:
        ValueError: no such architecture, or warm-up that is longer than the training.
    """

    name = "dino"
    recipe_type = DinoRecipe
    center: Tensor

    def __init__(self, recipe: DinoRecipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.student = _network(recipe, recipe.drop_path)
        self.teacher = _network(recipe, drop_path=0.0).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.register_buffer("center", torch.zeros(1, recipe.prototypes))
        steps, warmup = horizon.steps, recipe.warmup_epochs * horizon.steps_per_epoch
        peak = recipe.base_lr * horizon.batch_size / 256
        self._lr = warmup_cosine_table(peak, recipe.min_lr, steps, warmup)
        self._weight_decay = warmup_cosine_table(recipe.weight_decay, recipe.final_weight_decay, steps)
        self._momentum = warmup_cosine_table(recipe.momentum, 1.0, steps)

    @staticmethod
    def data(recipe: DinoRecipe) -> DataSpec:
        """Two global crops, then the local ones."""
        views = dino_views(recipe.size, recipe.local_size, recipe.local_count, recipe.global_scale, recipe.local_scale)
        return DataSpec(views=tuple(dataclasses.replace(view, flip=recipe.flip) for view in views))

    def loss(self, batch: Batch, step: int) -> Step:
        """Cross-entropy between what the teacher says about global crops and the student about all others.

        Args:
            batch: `views`: two global crops (N, 3, S, S), then local ones (N, 3, s, s).
            step: tells the epoch, hence the teacher's temperature.
        """
        views, temperature = batch["views"], self._temperature(step)
        with torch.no_grad():
            _, taught = self.teacher(views[:2])
        features, logits = self.student(views)
        center = self.center.clone()
        recipe = self.recipe
        loss, moved = dino_loss(logits, taught, center, recipe.student_temperature, temperature, recipe.center_momentum)
        self.center.copy_(moved)
        watched = centred_probabilities(taught[:WATCHED_ROWS], center, temperature)
        return Step(loss, features=features[: len(taught)].detach(), teacher_probs=watched)

    def adjust_gradients(self, step: int) -> dict[str, float]:
        """Clips each parameter's gradient by itself; early on, the prototypes get none, so that nothing moves them."""
        gradients = [weight.grad for weight in self.student.parameters() if weight.grad is not None]
        norms = clip_each(gradients, self.recipe.clip or float("inf"))
        if step < self.recipe.freeze_last_layer * self.horizon.steps_per_epoch:
            for weight in self.student.head.last_layer.parameters():
                weight.grad = None
        return {"grad_norm": float(torch.linalg.vector_norm(norms))}

    def after_step(self, step: int) -> None:
        """The teacher follows the student, prototypes and all."""
        ema_update(self.teacher, self.student, float(self._momentum[step]))

    def optimizer(self) -> torch.optim.Optimizer:
        """The recipe's, in two groups: with and without weight decay."""
        weights = dict(self.student.named_parameters())
        names = weight_decay_names(self.student)
        groups: list[dict[str, object]] = []
        for decayed in (True, False):
            chosen = [weights[name] for name, flag in names.items() if flag is decayed]
            groups.append({"params": chosen, "lr_scale": 1.0, "wd_scale": float(decayed)})
        lr = self.schedule(0)["lr"]
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=0.9)
        if self.recipe.optimizer == "lars":
            return LARS(groups, lr=lr)
        return torch.optim.AdamW(groups, lr=lr, fused=True)

    def schedule(self, step: int) -> dict[str, float]:
        """Learning rate, weight decay and momentum of the teacher by step, its temperature by epoch."""
        return {
            "lr": float(self._lr[step]),
            "weight_decay": float(self._weight_decay[step]),
            "momentum": float(self._momentum[step]),
            "teacher_temperature": self._temperature(step),
        }

    def encoder(self) -> Encoder:
        """The teacher's backbone."""
        recipe, backbone = self.recipe, self.teacher.backbone
        view = self.data(recipe).views[0]
        preprocess = Preprocess(recipe.size, "squash", round(recipe.size * 256 / 224), view.mean, view.std)
        info = WeightsInfo(source="trained with DINO", license="as its training videos allow")
        return Encoder(f"dino-{recipe.architecture}", backbone, preprocess, backbone.embedding_dim, info).eval()

    def _temperature(self, step: int) -> float:
        recipe = self.recipe
        epoch = step // self.horizon.steps_per_epoch
        return teacher_temperature(
            epoch, recipe.teacher_temperature_start, recipe.teacher_temperature, recipe.teacher_warmup_epochs
        )


def _network(recipe: DinoRecipe, drop_path: float) -> DinoNetwork:
    backbone: VisionTransformer | ResNet
    if recipe.architecture.startswith("vit-"):
        config = ViTConfig(
            size=recipe.size,
            patch=recipe.patch,
            drop_path=drop_path,
            pool=recipe.pool,
            **architecture(recipe.architecture.removeprefix("vit-")),
        )
        backbone = VisionTransformer(config)
    else:
        depth = recipe.architecture.removeprefix("resnet")
        if not depth.isdigit():
            raise ValueError(f"architecture is {recipe.architecture!r}, 'vit-small' or 'resnet50', say, expected")
        backbone = ResNet(int(depth), norm=GlobalBatchNorm)
    head = DinoHead(
        backbone.embedding_dim, recipe.prototypes, recipe.head_hidden, recipe.head_bottleneck, recipe.norm_last_layer
    )
    return DinoNetwork(backbone, head)


def weight_decay_names(network: nn.Module) -> dict[str, bool]:
    """Which trainable parameters are decayed: all but biases and one-dimensional ones; tokens and tables are."""
    return {
        name: weight.ndim > 1 and not name.endswith(".bias")
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }


@torch.no_grad()
def clip_each(gradients: Sequence[Tensor], limit: float) -> Tensor:
    """Clips each gradient to a norm of its own, in place, without waiting for the device.

    Args:
        gradients: of any shapes.
        limit: largest norm.

    Returns:
        The norms before, (len(gradients),).
    """
    norms = torch.stack(cast(list[Tensor], list(torch._foreach_norm(list(gradients)))))
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(list(gradients), list(factors.unbind()))
    return norms
