"""SimCLRv2 (Chen et al. 2020, "Big self-supervised models are strong semi-supervised learners"), in its three steps.

* `SimCLRv2` pre-trains: larger networks, a head of three layers, and a memory of negatives from an averaged network.
* `Finetune` trains a classifier that keeps a part of the head, on the few examples that have a label.
* `Distill` teaches a student, smaller or of the same size, what the fine-tuned network says about all examples.

The last two begin with the weights of the step before: `start_from` names its run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.methods.classifier import (
    Supervised,
    SupervisedOptions,
    build_classifier,
    distillation_loss,
    entries_below,
    labelled_accuracy,
    labelled_loss,
    load_named,
    take_labels,
)
from v2r_core.methods.method import Batch, Horizon, Step
from v2r_core.methods.simclr import (
    SimCLR,
    SimCLRRecipe,
    build_backbone,
)
from v2r_core.nn.distributed import gather
from v2r_core.nn.ema import copy_for_ema, ema_update
from v2r_core.nn.queue import check_queue, enqueue, random_queue


@dataclass(frozen=True, kw_only=True)
class SimCLRv2Recipe(SimCLRRecipe):
    """Settings of SimCLRv2's pre-training.

    Attributes:
        memory: keys of an averaged network that are further negatives, a multiple of the batch size. The paper has
            65536, the released code none: 0.
        momentum: of the averaged network.
    """

    head_layers: int = 3
    base_lr: float = 0.1
    lr_scaling: Literal["linear", "sqrt"] = "sqrt"
    weight_decay: float = 1e-4
    memory: int = 65536
    momentum: float = 0.999

    @classmethod
    def paper(cls) -> Self:
        """ResNet-152, three times as wide, selective kernels, 800 epochs (section 3 and appendix)."""
        return cls(epochs=800, batch_size=4096, depth=152, width=3, selective=True, warmup_epochs=40)

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels, a ResNet-18 of half the width, a memory of 256."""
        return cls(
            epochs=14,
            batch_size=64,
            depth=18,
            width=0.5,
            size=64,
            head_dim=64,
            temperature=0.2,
            optimizer="adam",
            base_lr=4e-3,
            lr_scaling="linear",
            warmup_epochs=1,
            weight_decay=1e-6,
            crop_min=0.5,
            flip=0.0,
            strength=0.5,
            memory=256,
            momentum=0.99,
        )


class SimCLRv2(SimCLR):
    """SimCLR with a memory: an averaged network sees the second views, and what it said of them is compared with later.

    Args:
        recipe: the settings.
        horizon: how long the training is.

    Raises:
        ValueError: a memory that the batch size does not divide.
    """

    name = "simclrv2"
    recipe_type = SimCLRv2Recipe
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, recipe: SimCLRv2Recipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.memory_recipe = recipe
        if recipe.memory:
            check_queue(recipe.memory, horizon.batch_size)
            self.averaged = copy_for_ema(nn.Sequential(self.backbone, self.head))
            self.register_buffer("queue", random_queue(self.head.dim, recipe.memory))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def loss(self, batch: Batch, step: int) -> Step:
        """NT-Xent of two views, with the memory among the negatives.

        Args:
            batch: `views`: two, (N, 3, S, S), levels in [0, 1].
            step: not used.
        """
        if not self.memory_recipe.memory:
            return super().loss(batch, step)
        outcome = self.contrast(self.project(batch), self.queue.T.clone())
        with torch.no_grad():
            keys = functional.normalize(self.averaged(batch["views"][1]), dim=1)
        enqueue(self.queue, self.queue_ptr, gather(keys))
        return outcome

    def after_step(self, step: int) -> None:
        """Moves the averaged network."""
        if self.memory_recipe.memory:
            for target, source in zip(self.averaged, (self.backbone, self.head), strict=True):
                ema_update(target, source, self.memory_recipe.momentum)


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(SupervisedOptions):
    """Settings of SimCLRv2's fine-tuning; the network's are those of the pre-training.

    Attributes:
        head_layers: layers that the pre-trained head has.
        head_dim: channels of its output.
        from_layer: layers of the head that are kept: 1 for few labels, 0 for none of it.
    """

    head_layers: int = 3
    head_dim: int = 128
    from_layer: int = 1
    base_lr: float = 0.005
    lr_scaling: Literal["linear", "sqrt"] = "sqrt"
    warmup_epochs: float = 0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.from_layer <= self.head_layers:
            raise ValueError(f"from_layer is {self.from_layer}, but the head has {self.head_layers} layers; keep fewer")

    @classmethod
    def paper(cls) -> Self:
        """ResNet-152, three times as wide, selective kernels, 1 % of the labels: 60 epochs."""
        return cls(epochs=60, batch_size=1024, depth=152, width=3, selective=True)

    @classmethod
    def tiny(cls) -> Self:
        """What fits behind the pre-training's `tiny`: eight classes."""
        return cls(
            epochs=10,
            batch_size=64,
            depth=18,
            width=0.5,
            size=64,
            classes=8,
            head_dim=64,
            optimizer="adam",
            base_lr=4e-3,
            lr_scaling="linear",
        )


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(SupervisedOptions):
    """Settings of SimCLRv2's distillation; the network's are the student's.

    `compat`: `official` multiplies the loss by the square of the temperature, as the released notebook does, `paper`
    does not (equation 3).

    Attributes:
        from_layer: layers of a head that the student has in front of its classifier.
        teacher_depth: of the teacher's ResNet.
        teacher_width: factor on its channels.
        teacher_selective: whether it has selective kernels.
        teacher_layers: layers of the head that it has in front of its classifier.
        temperature: of both sides.
        alpha: weight of the teacher's words; 1 - alpha is the weight of the labels, where there are any (equation 4).
    """

    from_layer: int = 0
    teacher_depth: int = 152
    teacher_width: float = 3.0
    teacher_selective: bool = True
    teacher_layers: int = 1
    temperature: float = 1.0
    alpha: float = 1.0
    base_lr: float = 0.1
    lr_scaling: Literal["linear", "sqrt"] = "sqrt"
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise ValueError(f"alpha is {self.alpha}, temperature {self.temperature}; [0, 1] and above 0 expected")

    @classmethod
    def paper(cls) -> Self:
        """ResNet-50 learns from ResNet-152, three times as wide, for 400 epochs."""
        return cls(epochs=400, batch_size=4096, warmup_epochs=20)

    @classmethod
    def self_distillation(cls) -> Self:
        """The teacher's own architecture, the step before a smaller student."""
        return cls(epochs=400, batch_size=4096, warmup_epochs=20, depth=152, width=3, selective=True, from_layer=1)

    @classmethod
    def tiny(cls) -> Self:
        """A ResNet-18 of half the width teaches one of a quarter."""
        return cls(
            epochs=10,
            batch_size=64,
            depth=18,
            width=0.25,
            size=64,
            classes=8,
            teacher_depth=18,
            teacher_width=0.5,
            teacher_selective=False,
            optimizer="adam",
            base_lr=4e-3,
            lr_scaling="linear",
            warmup_epochs=1,
            weight_decay=1e-6,
        )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """A smaller student, and one of the same size."""
        return {"paper": cls.paper(), "paper-self": cls.self_distillation(), "tiny": cls.tiny()}


class Finetune(Supervised):
    """Fine-tunes a pre-trained network from a middle layer of its head (section 2, "Fine-tuning").

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "simclrv2-finetune"
    recipe_type = FinetuneRecipe
    labels = "required"
    before = "simclrv2"

    def __init__(self, recipe: FinetuneRecipe, horizon: Horizon) -> None:
        backbone = build_backbone(recipe.depth, recipe.width, recipe.selective, recipe.small_images)
        whole = (recipe.head_layers, recipe.head_dim)
        super().__init__(recipe, horizon, build_classifier(backbone, recipe.classes, recipe.from_layer, *whole))
        self.recipe = recipe

    def start(self, state: Mapping[str, Tensor]) -> None:
        """Takes network and head of a run of `simclrv2` (or `simclr`); the classifier stays as it is.

        Args:
            state: `state_dict` of that method.

        Raises:
            ValueError: other shapes, or something is missing; it is named.
        """
        kept = entries_below(state, "backbone.", "backbone.")
        for number in range(self.recipe.from_layer):
            kept |= entries_below(state, f"head.layers.{number}.", f"layers.{number}.")
        kept |= {f"classifier.{key}": value for key, value in self.network.classifier.state_dict().items()}
        load_named(self.network, kept, self.name)

    def loss(self, batch: Batch, step: int) -> Step:
        """Cross-entropy of the examples that have a label.

        Args:
            batch: `views`: one, (N, 3, S, S); `labels`: int64 (N,), -1 where there is none.
            step: not used.
        """
        labels = take_labels(batch, self.recipe.classes, self.name)
        features = self.network.features(batch["views"][0])
        logits = self.network.classifier(features)
        metrics = {"accuracy": labelled_accuracy(logits, labels)}
        return Step(labelled_loss(logits, labels), metrics, features.detach())


class Distill(Supervised):
    """A student learns what a fine-tuned teacher says (section 2, "Self-training / knowledge distillation").

    The state holds the student as `network`, so that it can teach the next one: self-distillation first, then a
    smaller student.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "simclrv2-distill"
    recipe_type = DistillRecipe
    labels = "optional"
    before = "simclrv2-finetune"

    def __init__(self, recipe: DistillRecipe, horizon: Horizon) -> None:
        student = build_backbone(recipe.depth, recipe.width, recipe.selective, recipe.small_images)
        super().__init__(recipe, horizon, build_classifier(student, recipe.classes, recipe.from_layer))
        self.recipe = recipe
        teacher = build_backbone(recipe.teacher_depth, recipe.teacher_width, recipe.teacher_selective)
        self.teacher = build_classifier(teacher, recipe.classes, recipe.teacher_layers).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def start(self, state: Mapping[str, Tensor]) -> None:
        """Takes the network of a run of `simclrv2-finetune`, or the student of one of this method, as the teacher.

        Args:
            state: `state_dict` of that method.

        Raises:
            ValueError: other shapes, or something is missing; it is named.
        """
        load_named(self.teacher, entries_below(state, "network.", ""), self.name)

    def loss(self, batch: Batch, step: int) -> Step:
        """Cross-entropy with the teacher's probabilities, and with labels if `alpha` leaves them a weight.

        Args:
            batch: `views`: one, (N, 3, S, S); with `alpha` below 1 `labels`, int64 (N,), -1 where there is none.
            step: not used.
        """
        recipe, images = self.recipe, batch["views"][0]
        features = self.network.features(images)
        logits = self.network.classifier(features)
        with torch.no_grad():
            taught = self.teacher(images)
        scaled = recipe.compat == "official"
        loss = distillation_loss(logits, taught, recipe.temperature, scaled)
        metrics = {"agreement": (logits.argmax(dim=1) == taught.argmax(dim=1)).float().mean()}
        if recipe.alpha < 1:
            labels = take_labels(batch, recipe.classes, self.name)
            loss = recipe.alpha * loss + (1 - recipe.alpha) * labelled_loss(logits, labels)
            metrics["accuracy"] = labelled_accuracy(logits, labels)
        return Step(loss, metrics, features.detach())
