"""Where a reward method starts from: an encoder of ours or a run of another method, and the head that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder
from v2r_core.encoders.zoo import DEFAULT_ENCODER, create_encoder
from v2r_core.methods.method import Batch, FrozenPart, Horizon, Method, Recipe
from v2r_core.methods.runs import RUN, method_of_run


@dataclass(frozen=True, kw_only=True)
class BackboneRecipe(Recipe):
    """Settings of methods that start from an encoder.

    Attributes:
        encoder: a name that `v2r models` lists, or the folder of a run of `v2r train`, which must stay where it is.
        weights: file with the weights of a named encoder that needs one.
        freeze: train the head only. Every frame is then embedded once, before training.
        size: side of its input in pixels, 0 for the one that its weights were trained at. A run has its own.
        hidden: channels of the head's hidden layer.
        dim: channels of the embedding.
        lr: learning rate of Adam, constant.
        pool: `mean`: the encoder's own features; `grid`: those of the four quarters of its last map, which tell where
            things are. Convolutional networks only.
        samples: of an epoch, drawn from all videos alike.
        rewind: probability that a sample is from a video that runs back from some frame on: a failure made out of a
            success (ReWiND, section on video rewind).
    """

    paths: ClassVar[tuple[str, ...]] = ("encoder", "weights")
    encoder: str = DEFAULT_ENCODER
    weights: str = ""
    freeze: bool = True
    size: int = 0
    hidden: int = 512
    dim: int = 256
    lr: float = 1e-4
    pool: Literal["mean", "grid"] = "mean"
    samples: int = 6400
    rewind: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "samples", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        if not 0 <= self.rewind <= 1:
            raise ValueError(f"rewind is {self.rewind}, a probability from 0 to 1 expected")


class BackboneMethod(Method):
    """What methods share that train a head on an encoder, and the encoder too where it is not frozen.

    Args:
        recipe: the settings.
        horizon: how long the training is.
        base: the encoder.
        top: the head, (N, D) to (N, dim).
    """

    recipe: BackboneRecipe

    def __init__(self, recipe: BackboneRecipe, horizon: Horizon, base: Encoder, top: nn.Module) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.base = base
        self.top = top
        if recipe.freeze:
            base.requires_grad_(False)

    def begin(self) -> None:
        """Reads the weights of the encoder that is started from."""
        self.base.backbone.load_state_dict(pretrained(self.recipe).backbone.state_dict())

    def frozen(self) -> FrozenPart | None:
        """The encoder, where only what is on top of it is trained."""
        return frozen_part(self.base) if self.recipe.freeze else None

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder keeps the statistics of its batch norms."""
        super().train(mode)
        if self.recipe.freeze:
            self.base.eval()
        return self

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings of a batch's frames, (N, T, dim).

        Args:
            batch: `views`: one, (N, 3, T, S, S), in [0, 1], or `features`, (N, T, D). All frames pass in one go, item
                by item, so that batch norm mixes their roles.
        """
        if "features" in batch:
            embedded: Tensor = self.top(batch["features"])
            return embedded
        frames = batch["views"][0].transpose(1, 2)
        images = (frames.flatten(0, 1) - self.base.mean) / self.base.std
        phi: Tensor = self.top(self.base.backbone(images))
        return phi.unflatten(0, frames.shape[:2])

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with its defaults."""
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.recipe.lr)

    def schedule(self, step: int) -> dict[str, float]:
        """Nothing changes with time."""
        return {"lr": self.recipe.lr, "weight_decay": 0.0}


def architecture_of(recipe: BackboneRecipe) -> Encoder:
    """The encoder that a recipe names, as far as its architecture: weights may be random.

    Raises:
        ValueError: no such encoder, run or file.
    """
    return _build(recipe, False)


def pretrained(recipe: BackboneRecipe) -> Encoder:
    """The encoder that a recipe names, with its weights.

    Raises:
        ValueError: no such encoder, run or file.
    """
    return _build(recipe, True)


class GridPool(nn.Module):
    """A convolutional network of timm whose last map is averaged over its four quarters.

    Args:
        network: the network; its classifier and its own pooling are not used.

    Raises:
        ValueError: it has no such map.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not hasattr(network, "forward_features") or not hasattr(network, "global_pool"):
            raise ValueError(f"pool is grid, but {type(network).__name__} has no map of features; use pool mean")
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) to (N, 4 C): upper left, upper right, lower left, lower right."""
        forward_features = cast(Callable[[Tensor], Tensor], self.network.forward_features)
        maps = forward_features(images)
        # Quarters overlap by a row or a column where the map has an odd number of them.
        rows, columns = (maps.shape[2] + 1) // 2, (maps.shape[3] + 1) // 2
        upper, lower = maps[:, :, :rows], maps[:, :, -rows:]
        quarters = [half[..., part] for half in (upper, lower) for part in (slice(columns), slice(-columns, None))]
        return torch.cat([quarter.mean(dim=(2, 3)) for quarter in quarters], dim=1)


def frozen_part(encoder: Encoder) -> FrozenPart:
    """The encoder as what never changes; its name tells its weights."""
    digest = float(sum(value.double().abs().sum() for value in encoder.backbone.state_dict().values()))

    def apply(frames: Tensor) -> Tensor:
        return encoder(frames)

    # Pooling changes what the same weights give.
    name = f"{encoder.name} {type(encoder.backbone).__name__} {encoder.embedding_dim} {digest:.9e}"
    return FrozenPart(name, encoder.preprocess, apply)


def head(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Two layers on normalised features: (N, width) to (N, dim)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def with_head(encoder: Encoder, top: nn.Module, method: str, dim: int) -> Encoder:
    """The encoder followed by a head, sharing the weights of both; named by the method and the encoder."""
    name = f"{method}-{encoder.name.removeprefix('random:')}"
    return Encoder(name, nn.Sequential(encoder.backbone, top), encoder.preprocess, dim, encoder.weights).eval()


def _build(recipe: BackboneRecipe, with_weights: bool) -> Encoder:
    size = recipe.size or None
    if (Path(recipe.encoder) / RUN).is_file():
        encoder = _encoder_of_run(Path(recipe.encoder))
    elif recipe.weights:
        encoder = create_encoder(recipe.encoder, recipe.weights, size=size)
    else:
        encoder = create_encoder(recipe.encoder, pretrained=with_weights, size=size)
    if recipe.pool == "mean":
        return encoder
    grid = GridPool(encoder.backbone)
    return Encoder(encoder.name, grid, encoder.preprocess, 4 * encoder.embedding_dim, encoder.weights)


def _encoder_of_run(run: Path) -> Encoder:
    # Building it draws random numbers, on which the new method's own weights must not depend.
    with torch.random.fork_rng(devices=[]):
        return method_of_run(run).encoder().eval()
