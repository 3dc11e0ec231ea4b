"""The contract of a method that learns a representation: networks, losses, schedules. It knows no trainer."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder
from v2r_core.video.clips import Batch, DataSpec
from v2r_core.video.resize import Preprocess


@dataclass(frozen=True, kw_only=True)
class Recipe(abc.ABC):
    """Hyper-parameters that every method has; each method's own recipe adds its paper's.

    Attributes:
        epochs: passes over the data.
        batch_size: examples that one optimizer step sees, over all processes and accumulated batches together.
        precision: arithmetic of forward and backward pass.
        compat: `official` computes what the released code does, `paper` what the paper says, where the two differ.
    """

    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that may name a file, or the folder of a run."""

    epochs: int = 100
    batch_size: int = 256
    precision: Literal["no", "fp16", "bf16"] = "no"
    compat: Literal["official", "paper"] = "official"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs is {self.epochs} and batch_size {self.batch_size}; both must be at least 1")

    @classmethod
    @abc.abstractmethod
    def paper(cls) -> Self:
        """The paper's own settings."""

    @classmethod
    @abc.abstractmethod
    def tiny(cls) -> Self:
        """Settings that train on two CPU cores within five minutes."""

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """All sets of settings by name; a paper with several of them has more than these two."""
        return {"paper": cls.paper(), "tiny": cls.tiny()}


@dataclass(frozen=True)
class Horizon:
    """How long the training is: what schedules are made of.

    Attributes:
        steps_per_epoch: optimizer steps in an epoch.
        epochs: number of epochs.
        batch_size: examples of one optimizer step, over all processes and accumulated batches together.
        examples: examples in the data.
    """

    steps_per_epoch: int
    epochs: int
    batch_size: int
    examples: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.epochs


@dataclass
class Step:
    """What a loss gives back.

    Attributes:
        loss: scalar with gradient.
        metrics: detached scalars for the log.
        features: detached (N, D), the representation that is watched for collapse; None if there is none.
        teacher_probs: detached (N, K), the teacher's probabilities over prototypes, of DINO-like methods only.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    teacher_probs: Tensor | None = None


@dataclass(frozen=True)
class FrozenPart:
    """What of a network never changes during a run: a tokenizer, a backbone that stays as it was.

    The trainer applies it once to every frame of every video; then a batch has `features` in place of `views`.

    Attributes:
        name: says which network with which weights it is; features are kept under this name.
        preprocess: what happens to a frame before.
        apply: uint8 (N, S, S, 3) to one row a frame, (N, ...).
    """

    name: str
    preprocess: Preprocess
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NetworkExport:
    """A network that the robot runs besides the encoder.

    Attributes:
        module: in evaluation mode; takes the inputs in their order, returns one tensor, batch axis first.
        inputs: an example of each, the batch axis first and free in length.
        output: name of what it returns.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


@dataclass(frozen=True)
class RewardExport:
    """A reward that was learned, as the exporter needs it.

    Attributes:
        name: which class of `v2r_core.rewards` computes it.
        parameters: of that class.
        networks: by the names that the class knows them by.
        tensors: numbers that it needs besides, such as a codebook.
    """

    name: str
    parameters: dict[str, float | int | str | bool] = field(default_factory=dict)
    networks: dict[str, NetworkExport] = field(default_factory=dict)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)


class Method(nn.Module, abc.ABC):
    """One way of learning. Queues, centres and averaged networks are buffers and modules: `state_dict` has everything.

    Args:
        recipe: an instance of `recipe_type`.
        horizon: how long the training is.

    Raises:
        ValueError: settings that do not fit together.
    """

    name: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]]
    labels: ClassVar[Literal["unused", "optional", "required"]] = "unused"
    """Whether a batch has `labels`, int64 (N,), -1 for none; with `required`, only labelled videos are trained on."""

    def __init__(self, recipe: Recipe, horizon: Horizon) -> None:
        super().__init__()
        if not isinstance(recipe, self.recipe_type):
            raise ValueError(f"{self.name} takes a {self.recipe_type.__name__}, {type(recipe).__name__} given")
        self.horizon = horizon

    @staticmethod
    @abc.abstractmethod
    def data(recipe: Any) -> DataSpec:
        """Which clips, views and masks a batch consists of."""

    def begin(self) -> None:
        """Reads the weights that the recipe names, if any.

        Called once, before the first step of a run; not when it goes on, or when it is loaded after training.
        """

    def check_videos(self, videos: Sequence[str]) -> None:
        """Refuses videos that the recipe's settings do not fit; called once, before the first step of every run.

        Args:
            videos: all that examples come from, by the paths that `names` of a batch have.

        Raises:
            ValueError: a setting speaks of videos that are not there.
        """

    @abc.abstractmethod
    def loss(self, batch: Batch, step: int) -> Step:
        """Loss of a batch.

        Args:
            batch: see `Batch`; on this module's device.
            step: number of the optimizer step, from 0.
        """

    def frozen(self) -> FrozenPart | None:
        """What never changes in this run, None if everything does; asked after `begin` or the checkpoint."""
        return None

    def forward(self, batch: Batch, step: int) -> Step:
        """The loss, under the name that a wrapper for several processes calls."""
        return self.loss(batch, step)

    @abc.abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer.

        Its groups carry `lr_scale` and `wd_scale`: before every step the trainer sets `lr` and `weight_decay` of each
        to the value of `schedule` times that. A group with `lr_key` takes that entry of `schedule` in place of `lr`.
        """

    @abc.abstractmethod
    def schedule(self, step: int) -> dict[str, float]:
        """`lr`, `weight_decay` and whatever else changes with time and is worth a line in the log."""

    def adjust_gradients(self, step: int) -> dict[str, float]:
        """Clips gradients as the paper does, between backward pass and optimizer; returns norms to log."""
        return {}

    def after_step(self, step: int) -> None:
        """Moves averaged networks, after the optimizer."""

    def picture(self, batch: Batch) -> NDArray[np.uint8] | None:
        """A picture of what was learned, RGB (H, W, 3), for the end of the run; None where there is nothing to see."""
        return None

    @abc.abstractmethod
    def encoder(self) -> Encoder:
        """What is kept: the backbone that its paper evaluates, in evaluation mode, sharing this module's weights."""

    def reward_export(self) -> RewardExport | None:
        """The reward that was learned on top of the encoder, None where the encoder is all."""
        return None
