"""A classifier on a SimCLR network, and what it learns from: labels of some examples, and a teacher."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.encoders.checkpoints import read_run_state
from v2r_core.encoders.encoder import Encoder
from v2r_core.methods.method import Batch, Horizon, Method
from v2r_core.methods.simclr import SimCLROptions, as_encoder, bare_copy, build_optimizer, lr_and_decay
from v2r_core.nn.projection import ProjectionHead, ProjectionLayer
from v2r_core.nn.resnet import SimCLRResNet
from v2r_core.video.augment import View
from v2r_core.video.clips import DataSpec
from v2r_core.video.labels import UNLABELLED


class Classifier(nn.Module):
    """A ResNet, the first layers of a SimCLR head, and a linear classifier.

    Args:
        backbone: the ResNet.
        layers: layers of the head, each with its ReLU unless it was the head's last.
        width: channels behind the layers.
        classes: number of classes.
    """

    def __init__(self, backbone: SimCLRResNet, layers: nn.ModuleList, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers
        self.width = width
        self.classifier = nn.Linear(width, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) to what the classifier sees, (N, width)."""
        values = self.backbone(images)
        for layer in cast(list[ProjectionLayer], list(self.layers)):
            values = layer(values)
        return values

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) to logits (N, classes)."""
        return self.classifier(self.features(images))


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions(SimCLROptions):
    """What fine-tuning and distillation have in common.

    Attributes:
        start_from: folder of the run of the step before, or its `method.safetensors`.
        classes: number of classes.
    """

    paths: ClassVar[tuple[str, ...]] = ("start_from",)
    start_from: str = ""
    classes: int = 1000


class Supervised(Method):
    """What fine-tuning and distillation share: a classifier that begins with another run's weights."""

    before: ClassVar[str]

    def __init__(self, recipe: SupervisedOptions, horizon: Horizon, network: Classifier) -> None:
        super().__init__(recipe, horizon)
        self.options = recipe
        self.network = network

    @staticmethod
    def data(recipe: SimCLROptions) -> DataSpec:
        """One view, cropped and mirrored, with levels in [0, 1]. The batch needs `labels` besides."""
        plain = View(recipe.size, crop="tensorflow", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return DataSpec(views=(plain,))

    def begin(self) -> None:
        """Reads the weights of the step before.

        Raises:
            ValueError: `start_from` is empty, no such run, or one of another network; the keys are named.
        """
        if not self.options.start_from:
            raise ValueError(f"{self.name} begins with the weights of a run of {self.before}; name it as start_from")
        self.start(read_run_state(self.options.start_from))

    @abc.abstractmethod
    def start(self, state: Mapping[str, Tensor]) -> None:
        """Takes the weights of the step before from its `state_dict`.

        Raises:
            ValueError: other shapes, or something is missing; it is named.
        """

    def optimizer(self) -> torch.optim.Optimizer:
        """As in pre-training; LARS leaves the classifier alone but for its weight decay."""
        return build_optimizer(self.network, self.options, self.schedule(0)["lr"])

    def schedule(self, step: int) -> dict[str, float]:
        """As in pre-training."""
        return lr_and_decay(self.options, self.horizon, step)

    def encoder(self) -> Encoder:
        """ResNet and kept layers of the head, without the classifier."""
        bare = bare_copy(self.network.backbone)
        kept = nn.Sequential(bare, *self.network.layers)
        return as_encoder(f"{self.name}-r{self.options.depth}", kept, self.options, self.network.width)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, scaled: bool) -> Tensor:
    """Cross-entropy of the student's with the teacher's probabilities, both at a temperature (equation 3).

    Args:
        student: logits (N, C).
        teacher: logits (N, C), without gradient.
        temperature: T.
        scaled: times T squared, which keeps the size of the gradient.

    Returns:
        scalar.
    """
    probabilities = functional.softmax(teacher.detach() / temperature, dim=1)
    loss = functional.cross_entropy(student / temperature, probabilities)
    return loss * temperature**2 if scaled else loss


def labelled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose label is not -1; 0 where there are none."""
    total = functional.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def labelled_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labelled rows that are right; 0 where there are none."""
    known = labels != UNLABELLED
    return ((logits.argmax(dim=1) == labels) & known).sum() / known.sum().clamp(min=1)


def take_labels(batch: Batch, classes: int, name: str) -> Tensor:
    """The labels of a batch, int64 (N,).

    Raises:
        ValueError: there are none, or one is out of range.
    """
    labels = batch.get("labels")
    if labels is None:
        raise ValueError(f"{name} needs labels, and the batch has none; give labelled videos")
    if int(labels.min()) < UNLABELLED or int(labels.max()) >= classes:
        found = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"{name}: {found}, but there are {classes} classes; set classes")
    return labels


def build_classifier(
    backbone: SimCLRResNet, classes: int, from_layer: int, head_layers: int = 0, head_dim: int = 128
) -> Classifier:
    """A classifier that keeps the first layers of a head.

    Args:
        backbone: the ResNet.
        classes: number of classes.
        from_layer: layers that are kept.
        head_layers: layers of the whole head; 0 for more than are kept.
        head_dim: channels of the whole head's output.
    """
    head = ProjectionHead(backbone.embedding_dim, head_dim, head_layers or from_layer + 1)
    whole = from_layer > 0 and from_layer == head_layers
    width = head_dim if whole else backbone.embedding_dim
    return Classifier(backbone, head.layers[:from_layer], width, classes)


def entries_below(state: Mapping[str, Tensor], prefix: str, instead: str) -> dict[str, Tensor]:
    """Entries of a state whose names begin with a prefix, with another one in its place."""
    return {instead + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_named(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads a state strictly.

    Args:
        network: where to.
        state: its parameters and buffers.
        name: of the method, for the error.

    Raises:
        ValueError: an entry is missing, unexpected or of another shape; it is named.
    """
    own = network.state_dict()
    wrong = [key for key in own if key not in state] + [key for key in state if key not in own]
    wrong += [key for key in own if key in state and own[key].shape != state[key].shape]
    if wrong:
        raise ValueError(
            f"{name}: the run's weights are of another network: {', '.join(wrong[:4])}; give it the same depth, width, "
            "selective and layers"
        )
    network.load_state_dict(dict(state))
