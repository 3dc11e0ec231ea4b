"""The tokenizers of VIPER (Escontrela et al. 2023) and Diffusion Reward (Huang et al. 2024), both VQ-GANs.

    loss = l1 |x - x'| + perceptual LPIPS(x, x') + table + adversarial lambda g(x')

g is the generator's loss against a discriminator that is trained along (Esser et al. 2021). The papers update the two
networks in turn, from the same forward pass; here one loss holds both, which comes to the same: the generator's term
has no gradient for the discriminator, and the discriminator's none for the reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.encoders.checkpoints import load_strict, read_checkpoint
from v2r_core.encoders.encoder import Encoder
from v2r_core.encoders.zoo import create_encoder
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.methods.tokenizer import latent_encoder, to_levels
from v2r_core.nn.adversarial import (
    PatchDiscriminator,
    ResidualDiscriminator,
    adaptive_weight,
    fixed_scores,
    hinge_loss,
)
from v2r_core.nn.distributed import gather
from v2r_core.nn.perceptual import VGG16_LAYERS, BackboneStages, PerceptualDistance, VGG16Stages
from v2r_core.nn.viper_vqgan import ViperVQGANConfig, viper_vqgan
from v2r_core.nn.vqgan import VQGAN, perplexity
from v2r_core.video.augment import IMAGENET_MEAN, IMAGENET_STD, whole_view
from v2r_core.video.clips import DataSpec

PICTURE_COLUMNS = 8
VGG16 = "vgg16"
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class VQGANRecipe(Recipe):
    """Settings of both papers' tokenizers.

    `compat`: in the flavour diffusion-reward, `official` has beta on the term that pulls codes to latents, as released,
    `paper` on the one that pulls latents to codes. In the flavour viper both are the same.

    Attributes:
        flavour: whose network.
        size: side of the frames in pixels.
        channels: of each level, from the images on (viper), or of the stem and each level (diffusion-reward). The side
            is halved one time less than there are entries.
        residual_blocks: of each level; diffusion-reward only, viper has 1 in the encoder and 2 in the decoder.
        attention_resolutions: sides at which levels have attention; diffusion-reward only.
        latent: channels of a code.
        codes: entries of the table.
        beta: weight of the commitment, see `compat`.
        l1: weight of the mean absolute error.
        perceptual: network of the perceptual distance: `vgg16` (LPIPS), `efficientnet_lite0`, `timm:<model>` or `none`.
        perceptual_weights: file of its weights: torchvision's state of VGG16, or a timm model's.
        lpips_weights: file of LPIPS' channel weights for VGG16; without it all channels count alike.
        perceptual_weight: weight of that distance.
        adversarial_weight: weight of the generator's loss; 0 for no discriminator.
        adversarial_start: steps before the discriminator counts.
        adaptive: multiply it by lambda, see `nn.adversarial.adaptive_weight`.
        discriminator: `patch`, or `residual`, in the manner of StyleGAN.
        discriminator_width: channels of its first layer.
        lr: learning rate of Adam, constant.
        betas: Adam's.
        revive: steps after which codes that no frame used become latents of the newest batch; 0 for never, as in the
            papers. Short trainings need it: a table that starts near 0 else comes down to a few codes.
    """

    flavour: Literal["viper", "diffusion-reward"] = "viper"
    size: int = 64
    channels: tuple[int, ...] = (128, 256, 256, 256)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    latent: int = 64
    codes: int = 256
    beta: float = 0.25
    l1: float = 1.0
    paths: ClassVar[tuple[str, ...]] = ("perceptual_weights", "lpips_weights")
    perceptual: str = VGG16
    perceptual_weights: str = ""
    lpips_weights: str = ""
    perceptual_weight: float = 0.1
    adversarial_weight: float = 0.1
    adversarial_start: int = 0
    adaptive: bool = False
    discriminator: Literal["patch", "residual"] = "residual"
    discriminator_width: int = 64
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    revive: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "l1", "perceptual_weight", "adversarial_weight", "adversarial_start", "revive"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 0 expected")
        if self.lpips_weights and self.perceptual != VGG16:
            raise ValueError(f"lpips_weights are for {VGG16}, but perceptual is {self.perceptual}; drop one of them")

    @classmethod
    def paper(cls) -> Self:
        """VIPER's DeepMind Control: 8 x 8 tokens, 256 codes; a million steps in the released settings."""
        return cls(epochs=100, batch_size=128)

    @classmethod
    def paper_atari(cls) -> Self:
        """VIPER's Atari: 16 x 16 tokens, 1024 codes."""
        return cls(epochs=100, batch_size=128, channels=(128, 256, 256), codes=1024)

    @classmethod
    def paper_diffusion_reward(cls) -> Self:
        """Diffusion Reward's MetaWorld and Adroit."""
        return cls(
            flavour="diffusion-reward",
            epochs=200,
            batch_size=32,
            channels=(128, 128, 256, 256),
            codes=1024,
            adversarial_start=1000,
            adaptive=True,
            discriminator="patch",
            betas=(0.5, 0.9),
        )

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels, 8 x 8 tokens of 64 codes, no perceptual distance, a small discriminator."""
        return cls(
            epochs=8,
            batch_size=16,
            channels=(16, 32, 32, 64),
            latent=16,
            codes=64,
            perceptual=NONE,
            adversarial_start=400,
            adaptive=True,
            discriminator="patch",
            discriminator_width=16,
            lr=1e-3,
            revive=50,
        )

    @classmethod
    def tiny_diffusion_reward(cls) -> Self:
        """The same with Diffusion Reward's network, whose layers have 32 channels or more."""
        return replace(
            cls.tiny(),
            flavour="diffusion-reward",
            channels=(32, 32, 32, 64),
            residual_blocks=1,
            attention_resolutions=(),
        )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """Both papers', and a small one of each."""
        return {
            "paper": cls.paper(),
            "paper-atari": cls.paper_atari(),
            "paper-diffusion-reward": cls.paper_diffusion_reward(),
            "tiny": cls.tiny(),
            "tiny-diffusion-reward": cls.tiny_diffusion_reward(),
        }


class VQGANMethod(Method):
    """Trains a tokenizer.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "vqgan"
    recipe_type = VQGANRecipe
    idle: Tensor

    def __init__(self, recipe: VQGANRecipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.tokenizer = build_tokenizer(recipe)
        self.perceptual = _perceptual_network(recipe)
        self.discriminator = _discriminator(recipe) if recipe.adversarial_weight else None
        # Steps since each code was last used.
        self.register_buffer("idle", torch.zeros(recipe.codes, dtype=torch.int64))

    @staticmethod
    def data(recipe: VQGANRecipe) -> DataSpec:
        """Whole frames in [-1, 1]."""
        return DataSpec(views=(whole_view(recipe.size),))

    def begin(self) -> None:
        """Reads the weights of the perceptual network.

        Raises:
            ValueError: VGG16 without a file; a file that does not fit.
        """
        recipe = self.recipe
        if self.perceptual is None:
            return
        if recipe.perceptual != VGG16:
            weights = recipe.perceptual_weights or None
            pretrained = create_encoder(recipe.perceptual, weights).backbone
            self.perceptual.stages.load_state_dict({f"backbone.{k}": v for k, v in pretrained.state_dict().items()})
            return
        if not recipe.perceptual_weights:
            raise ValueError(
                f"perceptual is {VGG16}, but perceptual_weights is empty; give torchvision's vgg16-397923af.pth, "
                "or set perceptual to efficientnet_lite0, whose weights are included"
            )
        state = read_checkpoint(recipe.perceptual_weights)
        kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        load_strict(self.perceptual.stages, kept, recipe.perceptual_weights)
        if recipe.lpips_weights:
            self.perceptual.load_channel_weights(read_checkpoint(recipe.lpips_weights), recipe.lpips_weights)

    def loss(self, batch: Batch, step: int) -> Step:
        """The sum of what the tokenizer and the discriminator lose.

        Args:
            batch: `views`: one, (N, 3, S, S), in [-1, 1].
            step: number of the optimizer step; the discriminator counts from `adversarial_start` on.
        """
        recipe, images = self.recipe, batch["views"][0]
        latents = self.tokenizer.encode(images)
        codes, quantized, table = self.tokenizer.quantize(latents)
        reconstructed = self.tokenizer.decode(quantized)
        l1 = (reconstructed - images).abs().mean()
        reconstruction = recipe.l1 * l1
        metrics = {"l1": l1, "table": table, "perplexity": perplexity(codes, recipe.codes)}
        metrics["codes_used"] = (torch.bincount(codes.flatten(), minlength=recipe.codes) > 0).sum().float()
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual(reconstructed, images).mean()
            reconstruction = reconstruction + recipe.perceptual_weight * metrics["perceptual"]
        total = reconstruction + table
        if self.discriminator is not None:
            total = total + self._adversarial(self.discriminator, images, reconstructed, reconstruction, step, metrics)
        if self.training and recipe.revive:
            self._revive(codes, latents, step)
        return Step(total, {key: value.detach() for key, value in metrics.items()})

    def _adversarial(
        self,
        discriminator: nn.Module,
        images: Tensor,
        reconstructed: Tensor,
        reconstruction: Tensor,
        step: int,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        recipe = self.recipe
        if step < recipe.adversarial_start:
            # No gradient at all would make processes that train together wait for it.
            return torch.stack([0.0 * weight.sum() for weight in discriminator.parameters()]).sum()
        generator = -fixed_scores(discriminator, reconstructed).mean()
        weight = torch.ones_like(generator)
        if recipe.adaptive:
            weight = adaptive_weight(reconstruction, generator, self.tokenizer.last_layer)
        critic = hinge_loss(discriminator(images), discriminator(reconstructed.detach()))
        metrics |= {"generator": generator, "discriminator": critic, "lambda": weight}
        return recipe.adversarial_weight * (weight * generator + critic)

    @torch.no_grad()
    def _revive(self, codes: Tensor, latents: Tensor, step: int) -> None:
        """Gives codes that were not used for long the values of random latents of this batch."""
        self.idle += 1
        self.idle[gather(codes.flatten())] = 0
        dead = self.idle >= self.recipe.revive
        if not bool(dead.any()):
            return
        rows = gather(latents.float().permute(0, 2, 3, 1).flatten(0, 2))
        # All processes must draw the same.
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
        self.tokenizer.codebook.data[dead] = rows[drawn][dead]
        self.idle[dead] = 0

    def optimizer(self) -> torch.optim.Optimizer:
        """One Adam for both networks."""
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.Adam(trained, lr=self.recipe.lr, betas=self.recipe.betas)

    def schedule(self, step: int) -> dict[str, float]:
        """Nothing changes with time."""
        return {"lr": self.recipe.lr, "weight_decay": 0.0}

    @torch.no_grad()
    def picture(self, batch: Batch) -> NDArray[np.uint8]:
        """Frames over their reconstructions, uint8 RGB (2 S, S * frames, 3), at most 8 frames."""
        images = batch["views"][0][:PICTURE_COLUMNS]
        reconstructed, _, _ = self.tokenizer(images)
        rows = [torch.cat(list(to_levels(each)), dim=1) for each in (images, reconstructed)]
        return torch.cat(rows).cpu().numpy()

    def encoder(self) -> Encoder:
        """Frames to latents before quantisation, (N, h * w * z), row-major, z fastest."""
        return latent_encoder(self.tokenizer, f"vqgan-{self.recipe.flavour}", "trained as a VQ-GAN")


def build_tokenizer(recipe: VQGANRecipe) -> VQGAN:
    """The tokenizer of a recipe, with fresh weights."""
    if recipe.flavour == "viper":
        sizes = ("size", "channels", "codes", "beta")
        return viper_vqgan(ViperVQGANConfig(dim=recipe.latent, **{name: getattr(recipe, name) for name in sizes}))
    from v2r_core.nn.taming_vqgan import TamingConfig, TamingVQGAN  # noqa: PLC0415 (only this flavour has a use for it)

    names = ("size", "channels", "residual_blocks", "attention_resolutions", "latent", "codes", "beta", "compat")
    grid = recipe.size // 2 ** (len(recipe.channels) - 1)
    return TamingVQGAN(TamingConfig(grid=grid, **{name: getattr(recipe, name) for name in names}))


def _discriminator(recipe: VQGANRecipe) -> nn.Module:
    if recipe.discriminator == "patch":
        return PatchDiscriminator(recipe.discriminator_width)
    return ResidualDiscriminator(recipe.size, recipe.discriminator_width)


def _perceptual_network(recipe: VQGANRecipe) -> PerceptualDistance | None:
    if recipe.perceptual == NONE or not recipe.perceptual_weight:
        return None
    if recipe.perceptual == VGG16:
        channels = [width for width, _ in VGG16_LAYERS] if recipe.lpips_weights else []
        return PerceptualDistance(VGG16Stages(), IMAGENET_MEAN, IMAGENET_STD, channels)
    encoder = create_encoder(recipe.perceptual, pretrained=False)
    stages = BackboneStages(encoder.backbone)
    return PerceptualDistance(stages, encoder.preprocess.mean, encoder.preprocess.std)
