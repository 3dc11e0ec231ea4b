"""MAE: masked autoencoders (He et al. 2021): encode a quarter of the patches, reconstruct the pixels of the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.nn.decoder import Decoder
from v2r_core.nn.masking import RandomNoise, shuffle
from v2r_core.nn.patches import patchify, unpatchify
from v2r_core.nn.schedules import warmup_half_cosine
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture, take
from v2r_core.video.augment import View
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

TARGET_EPS = 1e-6
"""Added to the variance of a patch."""
PICTURE_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class MAERecipe(Recipe):
    """Settings of MAE (appendix A.1, table 8). Paper and released code agree, so `compat` changes nothing.

    Attributes:
        architecture: name of the encoder's size, see `v2r_core.nn.vit.ARCHITECTURES`.
        size: side of the view in pixels.
        patch: side of a patch in pixels.
        pool: what the encoder gives in the end: the `cls` token, as the paper probes it, or the `mean` of the patches.
        mask_ratio: share of patches that the encoder does not see.
        decoder_width: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        norm_pix: predict pixels normalised by their patch's mean and standard deviation.
        base_lr: learning rate at batch size 256, scaled linearly.
        min_lr: learning rate at the end.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of everything but biases and other one-dimensional parameters.
        betas: AdamW's.
        scale: range of a crop's share of the frame.
        flip: probability of mirroring.
    """

    architecture: str = "large"
    size: int = 224
    patch: int = 16
    pool: Literal["cls", "mean"] = "cls"
    mask_ratio: float = 0.75
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    norm_pix: bool = True
    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5

    @classmethod
    def paper(cls) -> Self:
        """ViT-L/16, 800 epochs: the paper's ablations; its comparisons train 1600."""
        return cls(epochs=800, batch_size=4096, precision="fp16")

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels in patches of 8, four blocks, a decoder of two."""
        return cls(
            epochs=80,
            batch_size=64,
            architecture="mini",
            size=64,
            patch=8,
            pool="mean",
            decoder_width=96,
            decoder_depth=2,
            decoder_heads=3,
            base_lr=2e-3,
            warmup_epochs=2,
            scale=(0.2, 1.0),
            flip=0.0,
        )


class MAE(Method):
    """Masked autoencoder.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "mae"
    recipe_type = MAERecipe

    def __init__(self, recipe: MAERecipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        config = ViTConfig(
            size=recipe.size,
            patch=recipe.patch,
            positions="sincos",
            pool=recipe.pool,
            **architecture(recipe.architecture),
        )
        self.backbone = VisionTransformer(config)
        self.decoder = Decoder(config, recipe.decoder_width, recipe.decoder_depth, recipe.decoder_heads)
        init_mae(self.backbone, self.decoder)

    @staticmethod
    def data(recipe: MAERecipe) -> DataSpec:
        """One view, and noise to mask by."""
        view = View(size=recipe.size, scale=recipe.scale, interpolation="bicubic", flip=recipe.flip)
        return DataSpec(views=(view,), masks=RandomNoise((recipe.size // recipe.patch) ** 2))

    def loss(self, batch: Batch, step: int) -> Step:
        """Error of the reconstructed pixels of the masked patches.

        Args:
            batch: `views`: one, (N, 3, S, S); `noise`: (N, L), the patches with the largest are masked.
            step: not used.
        """
        images = batch["views"][0]
        order, count = shuffle(batch["noise"], self.recipe.mask_ratio)
        latent = self.backbone.tokens(images, keep=order[:, :count])
        prediction = self.decoder(latent, order)
        patches = take(patchify(images, self.recipe.patch), order[:, count:])
        loss = mae_loss(prediction, patches, norm_pix=self.recipe.norm_pix)
        return Step(loss, features=latent[:, 1:].detach().mean(dim=1))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions for all patches.

        Args:
            images: (N, 3, S, S).
            noise: (N, L), the patches with the largest are masked.

        Returns:
            Predictions (N, L, pixels of a patch) as the decoder makes them, normalised if `norm_pix`, row-major; and
            the mask, bool (N, L), True where a patch was masked.
        """
        order, count = shuffle(noise, self.recipe.mask_ratio)
        latent = self.backbone.tokens(images, keep=order[:, :count])
        restore = order.argsort(dim=1)
        return take(self.decoder(latent, order, masked_only=False), restore), restore >= count

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; biases and other one-dimensional parameters are not decayed, class and mask tokens are."""
        parameters = dict(self.named_parameters())
        groups: list[dict[str, object]] = []
        for decayed in (True, False):
            chosen = [parameters[name] for name, flag in weight_decay_names(self).items() if flag is decayed]
            groups.append({"params": chosen, "lr_scale": 1.0, "wd_scale": float(decayed)})
        return torch.optim.AdamW(groups, lr=self.schedule(0)["lr"], betas=self.recipe.betas, fused=True)

    def schedule(self, step: int) -> dict[str, float]:
        """Warm-up and half a cosine over fractional epochs; weight decay stays."""
        recipe, horizon = self.recipe, self.horizon
        peak = recipe.base_lr * horizon.batch_size / 256
        epoch = step / horizon.steps_per_epoch
        lr = warmup_half_cosine(epoch, peak, recipe.min_lr, recipe.warmup_epochs, horizon.epochs)
        return {"lr": lr, "weight_decay": recipe.weight_decay}

    def adjust_gradients(self, step: int) -> dict[str, float]:
        """Nothing is clipped; the norm is only measured."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        return {"grad_norm": float(nn.utils.get_total_norm(gradients))}

    def picture(self, batch: Batch) -> NDArray[np.uint8] | None:
        """Reconstructions of the first images of a batch, see `reconstruction`."""
        images, noise = batch["views"][0][:PICTURE_ROWS], batch["noise"][:PICTURE_ROWS]
        view = self.data(self.recipe).views[0]
        return reconstruction(self, images, noise, view.mean, view.std)

    def encoder(self) -> Encoder:
        """The encoder, on all patches."""
        view = self.data(self.recipe).views[0]
        preprocess = Preprocess(size=self.recipe.size, mean=view.mean, std=view.std)
        info = WeightsInfo(source="trained with MAE", license="as its training videos allow")
        name = f"mae-{self.recipe.architecture}"
        return Encoder(name, self.backbone, preprocess, self.backbone.embedding_dim, info).eval()


def init_mae(backbone: VisionTransformer, decoder: Decoder) -> None:
    """The released initial weights, in place: Xavier for all matrices, N(0, 0.02) for tokens.

    The patch embedding counts as a matrix; its bias keeps torch's default.
    """
    for network in (backbone, decoder):
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    embedding = cast(Tensor, backbone.patch_embed.proj.weight)
    nn.init.xavier_uniform_(embedding.data.flatten(1))
    nn.init.normal_(backbone.cls_token, std=0.02)
    nn.init.normal_(decoder.mask_token, std=0.02)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, with `TARGET_EPS`) of each patch (..., pixels): (..., 1) each."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + TARGET_EPS).sqrt()


def mae_loss(prediction: Tensor, patches: Tensor, mask: Tensor | None = None, norm_pix: bool = True) -> Tensor:
    """Mean squared error of patches (section 3, "Reconstruction target").

    Args:
        prediction: (N, L, pixels of a patch).
        patches: pixels as `patchify` gives them, (N, L, pixels of a patch).
        mask: (N, L), 1 where a patch was masked and counts; None where all of them were.
        norm_pix: compare with the patch after its mean and standard deviation are taken out.

    Returns:
        scalar. With `norm_pix`, a prediction of 0 scores (n - 1) / n for n pixels.
    """
    if norm_pix:
        mean, deviation = patch_statistics(patches)
        patches = (patches - mean) / deviation
    errors = (prediction.float() - patches).square().mean(dim=-1)
    return errors.mean() if mask is None else (errors * mask).sum() / mask.sum()


def weight_decay_names(network: nn.Module) -> dict[str, bool]:
    """Which trainable parameters are decayed: all but biases and other one-dimensional ones."""
    return {
        name: parameter.ndim > 1 and not name.endswith(".bias")
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def layer_decay(
    parameters: Iterable[tuple[str, Tensor]], decay: float, weight_decay: float
) -> dict[str, tuple[float, float]]:
    """Learning-rate factor and weight decay of each parameter in fine-tuning (appendix A.1).

    Args:
        parameters: names and values, as `named_parameters` gives them: `cls_token`, `pos_embed`, `patch_embed.*`,
            `blocks.<i>.*`, and what comes after the blocks.
        decay: factor from one layer to the one below.
        weight_decay: of what is decayed: neither one-dimensional parameters nor position table and class token.

    Returns:
        name to (factor, weight decay). The factor is 1 behind the blocks and falls towards the input.
    """
    tensors = dict(parameters)
    blocks = {name: int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    last = max(blocks.values(), default=-1) + 2
    scales = {}
    for name, tensor in tensors.items():
        first = name in {"cls_token", "pos_embed"} or name.startswith("patch_embed.")
        layer = 0 if first else blocks.get(name, last - 1) + 1
        plain = tensor.ndim == 1 or name in {"cls_token", "pos_embed"}
        scales[name] = (decay ** (last - layer), 0.0 if plain else weight_decay)
    return scales


def to_official(method: MAE) -> dict[str, Tensor]:
    """The state under the names of the released checkpoints with decoder, `mae_pretrain_vit_*_full.pth`."""
    return {**method.backbone.state_dict(), **method.decoder.state_dict()}


def load_official(method: MAE, state: Mapping[str, Tensor]) -> None:
    """Loads a state with the names of the released checkpoints, strictly.

    Raises:
        RuntimeError: a key is missing, unexpected or has another shape.
    """
    theirs = set(method.decoder.state_dict())
    method.decoder.load_state_dict({name: value for name, value in state.items() if name in theirs})
    method.backbone.load_state_dict({name: value for name, value in state.items() if name not in theirs})


def reconstruction(
    method: MAE, images: Tensor, noise: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> NDArray[np.uint8]:
    """A picture of reconstructions, one row for each image: input, masked, reconstruction, reconstruction and visible.

    A decoder of normalised pixels does not know how bright a patch is: its output gets the mean and the standard
    deviation of the true patch, so the picture flatters it.

    Args:
        method: the network.
        images: normalised, (N, 3, S, S).
        noise: (N, L), the patches with the largest are masked.
        mean: what was subtracted from each channel.
        std: what each channel was divided by.

    Returns:
        uint8 RGB, (N * S, 4 * S, 3). Masked patches are grey.
    """
    patch = method.recipe.patch
    patches = patchify(images, patch)
    prediction, mask = method.reconstruct(images, noise)
    prediction = prediction.float()
    if method.recipe.norm_pix:
        centre, deviation = patch_statistics(patches)
        prediction = prediction * deviation + centre
    hidden = mask[..., None]
    columns = [patches, patches.masked_fill(hidden, 0.0), prediction, torch.where(hidden, prediction, patches)]
    rows = torch.cat([unpatchify(column, patch) for column in columns], dim=3)
    shape = (1, 3, 1, 1)
    pixels = rows * rows.new_tensor(std).reshape(shape) + rows.new_tensor(mean).reshape(shape)
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).flatten(0, 1).cpu().numpy()
