"""Discriminators for the reconstructions of a VQ-GAN, and what is lost and won against them (Esser et al. 2021).

`PatchDiscriminator` is that of taming-transformers, which Diffusion Reward uses. VIPER trains against StyleGAN 2's
discriminator; `ResidualDiscriminator` has its residual blocks, and the spread over the batch before the end, but plain
averages where StyleGAN has blur filters, and no equalised learning rates. Both are trained with the hinge loss here,
without a gradient penalty.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

SLOPE = 0.2
_INIT_STD = 0.02
_SMALLEST = 4
_RATIO_EPS = 1e-4
_RATIO_LIMIT = 1e4


class PatchDiscriminator(nn.Module):
    """Says of every patch of an image how real it looks.

    Args:
        width: channels of the first layer; they double from layer to layer, up to 8 times.
        layers: strided layers.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"width is {width}, layers {layers}; both must be at least 1")
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        inputs = width
        for number in range(1, layers + 1):
            outputs, stride = width * min(2**number, 8), 2 if number < layers else 1
            parts.append(nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False))
            parts += [nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)]
            inputs = outputs
        self.model = nn.Sequential(*parts, nn.Conv2d(inputs, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_INIT_STD)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, _INIT_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [-1, 1] to (N, 1, h, w)."""
        scores: Tensor = self.model(images)
        return scores


class ResidualDiscriminator(nn.Module):
    """Says of an image how real it looks, in the manner of StyleGAN 2.

    Args:
        size: side of the images, 4 times a power of 2.
        width: channels of the first block; they double from block to block, up to 8 times.
    """

    def __init__(self, size: int = 64, width: int = 64) -> None:
        super().__init__()
        halvings = (size // _SMALLEST).bit_length() - 1
        if width < 1 or halvings < 0 or size != _SMALLEST * 2**halvings:
            raise ValueError(f"size is {size}, width {width}; a power of 2 from 4 on, and at least 1, expected")
        self.stem = nn.Conv2d(3, width, 1)
        widths = [width * min(2**number, 8) for number in range(halvings + 1)]
        self.blocks = nn.ModuleList([_ResidualBlock(before, after) for before, after in pairwise(widths)])
        last = widths[-1]
        self.end = nn.Conv2d(last + 1, last, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(last * _SMALLEST**2, last), nn.LeakyReLU(SLOPE), nn.Linear(last, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [-1, 1] to (N, 1)."""
        values = functional.leaky_relu(self.stem(images), SLOPE)
        for block in self.blocks:
            values = block(values)
        spread = values.std(dim=0, correction=0).mean().expand(len(values), 1, *values.shape[2:])
        values = functional.leaky_relu(self.end(torch.cat([values, spread], dim=1)), SLOPE)
        scores: Tensor = self.head(values.flatten(1))
        return scores


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.leaky_relu(self.conv1(x), SLOPE)
        hidden = functional.avg_pool2d(functional.leaky_relu(self.conv2(hidden), SLOPE), 2)
        # Both add up to unit variance.
        total: Tensor = (hidden + self.shortcut(functional.avg_pool2d(x, 2))) * 2**-0.5
        return total


def fixed_scores(discriminator: nn.Module, images: Tensor) -> Tensor:
    """What the discriminator says of images, with a gradient for the images but none for its parameters."""
    parameters = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    scores: Tensor = functional_call(discriminator, parameters, (images,))
    return scores


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: scores of real images below 1 and of others above -1 cost.

    Args:
        real: scores of images, any shape.
        fake: scores of reconstructions, any shape.

    Returns:
        scalar.
    """
    return (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, factor: float = 0.8) -> Tensor:
    """Weight of the adversarial loss that makes it pull as hard as the reconstruction loss (Esser et al., equation 7).

        factor * clamp(|d reconstruction / d W| / (|d adversarial / d W| + 1e-4), 0, 1e4)

    Args:
        reconstruction: scalar, the losses of the reconstruction.
        adversarial: scalar, the generator's loss.
        last_layer: W, weight of the decoder's output convolution.
        factor: 0.8 in the releases of taming-transformers and Diffusion Reward, 1 in the paper.

    Returns:
        scalar without gradient.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (pulled,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio = wanted.norm() / (pulled.norm() + _RATIO_EPS)
    return factor * ratio.clamp(0, _RATIO_LIMIT).detach()
