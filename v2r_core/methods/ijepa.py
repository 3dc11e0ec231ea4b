"""I-JEPA (Assran et al. 2023): predict an average encoder's features of four blocks from the rest of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.jepa import Jepa, JepaRecipe
from v2r_core.methods.method import Batch, Horizon, Step
from v2r_core.nn.masking import Compat, MultiBlock
from v2r_core.nn.predictor import Predictor, at_targets
from v2r_core.nn.vit import ViTConfig, architecture
from v2r_core.video.augment import View
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess


@dataclass(frozen=True, kw_only=True)
class IJepaRecipe(JepaRecipe):
    """Settings of I-JEPA (appendix A).

    With `compat="paper"` the distance is L2 and not smooth L1, the initial weights are divided by depth, and masks
    reach the last row and column and are cut without preferring the top, see `v2r_core.nn.masking.MultiBlock`.

    Attributes:
        target_scale: range of a target block's share of the image.
        target_aspect: range of its height over its width.
        context_scale: range of the context block's share, before targets are taken out.
        targets: number of target blocks.
        min_keep: a list of patches must have more than this.
    """

    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    targets: int = 4
    min_keep: int = 10

    @classmethod
    def paper(cls) -> Self:
        """ViT-H/14, 300 epochs: the smallest network whose weights were released."""
        return cls(epochs=300, batch_size=2048, precision="bf16", architecture="huge", patch=14)

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels in patches of 8, four blocks, a predictor of two."""
        return cls(
            epochs=36,
            batch_size=32,
            architecture="mini",
            size=64,
            patch=8,
            predictor_width=192,
            predictor_depth=2,
            warmup_epochs=2,
            # A fixed camera shows nearly the same everywhere: with a faster target, more weight decay or crops that
            # hardly differ, the features of all frames become one.
            momentum=0.998,
            final_weight_decay=0.04,
            min_keep=4,
            scale=(0.3, 1.0),
        )


class IJepa(Jepa):
    """Image-based joint-embedding predictive architecture.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "ijepa"
    recipe_type = IJepaRecipe
    recipe: IJepaRecipe

    def __init__(self, recipe: IJepaRecipe, horizon: Horizon) -> None:
        config = ViTConfig(
            size=recipe.size,
            patch=recipe.patch,
            class_token=False,
            positions="sincos",
            pool="mean",
            **architecture(recipe.architecture),
        )
        # The predictor has as many heads as the encoder, whatever its width.
        predictor = Predictor(config.width, recipe.predictor_width, recipe.predictor_depth, config.heads, config.grid)
        super().__init__(recipe, horizon, config, predictor)

    @staticmethod
    def data(recipe: IJepaRecipe) -> DataSpec:
        """One crop, neither mirrored nor recoloured, and the indices of context and targets."""
        side = recipe.size // recipe.patch
        masks = MultiBlock(
            (side, side),
            recipe.target_scale,
            recipe.target_aspect,
            recipe.context_scale,
            recipe.targets,
            recipe.min_keep,
            recipe.compat,
        )
        view = View(size=recipe.size, scale=recipe.scale, interpolation="bilinear", flip=0.0)
        return DataSpec(views=(view,), masks=masks)

    def loss(self, batch: Batch, step: int) -> Step:
        """Distance of predicted from actual features of the target blocks.

        Args:
            batch: `views`: one, (N, 3, S, S); `context`: (N, K) and `targets`: (M, N, P), patch indices.
            step: not used.
        """
        images, context = batch["views"][0], batch["context"]
        targets = batch["targets"].flatten(0, 1)
        actual, features = self._targets(images)
        tokens = self.online.tokens(images, keep=context)
        prediction = self.predictor(tokens, context, targets)
        return Step(ijepa_loss(prediction, at_targets(actual, targets), self.recipe.compat), features=features)

    def encoder(self) -> Encoder:
        """The target encoder, averaged over patches."""
        view = self.data(self.recipe).views[0]
        preprocess = Preprocess(size=self.recipe.size, mean=view.mean, std=view.std)
        info = WeightsInfo(source="trained with I-JEPA", license="as its training videos allow")
        name = f"ijepa-{self.recipe.architecture}"
        return Encoder(name, self.target, preprocess, self.target.embedding_dim, info).eval()


def ijepa_loss(prediction: Tensor, target: Tensor, compat: Compat = "official") -> Tensor:
    """Distance of predictions from normalised targets, averaged over everything (section 3, "Loss").

    Args:
        prediction: (M * N, P, D).
        target: the same shape, no gradient.
        compat: `official`: smooth L1, quadratic below 1. `paper`: L2.

    Returns:
        scalar.
    """
    if compat == "paper":
        return functional.mse_loss(prediction.float(), target)
    return functional.smooth_l1_loss(prediction.float(), target)
