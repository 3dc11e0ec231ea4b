"""Colours of many samples at once, each with parameters of its own: on a GPU after the transfer, else in the worker.

Images are float (N, ..., 3, H, W) in [0, 1] with the samples in front; parameters are one number a sample. torchvision
has the same operations with one parameter for a whole batch; the tests hold ours to them.

Measured on one core, ms a sample of 224 x 224, ours in groups of four / torchvision v2 on uint8 one by one: hue 0.48 /
1.41, blur of 13 taps 0.39 / 1.79, saturation 0.05 / 0.11, contrast 0.12 / 0.11, brightness 0.02 / 0.07. So both devices
run the same code; a CPU takes few samples at a time, which stay in its cache (64 at once: hue 0.75, brightness 0.25).
A grouped convolution blurs four samples in 0.30 ms each, but one alone in 3.6; sums of shifted images are near the
better of the two for any number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from v2r_core.video.augment import TORCHVISION_KERNEL, JitterKind, View
from v2r_core.video.draws import Look

Padding = Literal["zeros", "reflect", "replicate"]

SOLARIZE_FROM = 128 / 255
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)

GROUP_PIXELS = 1 << 18
"""Pixels that a CPU works on at a time."""


def to_gray(x: Tensor) -> Tensor:
    """Grey level (..., 1, H, W), weighted as TensorFlow and torchvision do."""
    red, green, blue = x.split(1, dim=-3)
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiplies: SimCLRv2 and torchvision."""
    return (x * _spread(factor, x)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey level of each image: torchvision."""
    return _blend(x, to_gray(x).mean(dim=(-3, -2, -1), keepdim=True), factor)


def contrast_by_channel(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of each channel: TensorFlow."""
    return _blend(x, x.mean(dim=(-2, -1), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's grey level: torchvision."""
    return _blend(x, to_gray(x), factor)


def saturation_hsv(x: Tensor, factor: Tensor) -> Tensor:
    """Multiplies S of HSV, limited to 1: TensorFlow.

    H and V stay, so every channel keeps its share of the way from V down: V - (V - x) * S' / S, without a way to HSV
    and back.
    """
    high = x.amax(dim=-3, keepdim=True)
    chroma = high - x.amin(dim=-3, keepdim=True)
    most = high / chroma.clamp_(min=torch.finfo(x.dtype).tiny)
    return (high - (high - x) * torch.minimum(most, _spread(factor, x))).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns H of HSV by `shift` of a full turn.

    With chroma C = V - min(R, G, B) and the hue in sixths of a turn, channel n of (5, 3, 1) is
    V - C * clamp(min(k, 4 - k), 0, 1) at k = (n + hue) mod 6, so that saturation is never needed.
    """
    red, green, blue = x.unbind(dim=-3)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1, chroma)
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths += 6 * _spread(shift, sixths)
    out = torch.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = (sixths + offset).remainder_(6)
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(high, share.mul_(chroma), out=out.select(-3, channel))
    return out.clamp_(0, 1)


JITTER: dict[JitterKind, tuple[Callable[[Tensor, Tensor], Tensor], ...]] = {
    "torchvision": (brightness, contrast, saturation, hue),
    "simclr": (brightness, contrast_by_channel, saturation_hsv, hue),
}


def solarize(x: Tensor) -> Tensor:
    """Inverts levels from 128 of 255 on."""
    return torch.where(x >= SOLARIZE_FROM, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int, padding: Padding) -> Tensor:
    """Blurs each sample with its own Gaussian of 2 * radius + 1 taps, along rows and along columns.

    Args:
        x: (N, ..., H, W).
        sigma: standard deviations in pixels, (N,), above 0.
        radius: taps on each side; below both sides of the image for `reflect`.
        padding: what lies beyond the edges.
    """
    offsets = torch.arange(radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.to(x)[:, None]).square())
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    height, width = x.shape[-2:]
    mode = "constant" if padding == "zeros" else padding
    padded = functional.pad(x.reshape(len(x), -1, height, width), (radius,) * 4, mode=mode)
    blurred = _weighted_sum(_weighted_sum(padded, weights, -2), weights, -1)
    return blurred.reshape(x.shape)


def change_colors(x: Tensor, look: Look) -> Tensor:
    """All that happens to the colours of a view, normalisation aside.

    Args:
        x: float32 (N, T, 3, H, W) in [0, 1], overwritten.
        look: what happens to each sample.

    Returns:
        float32 (N, T, 3, H, W) in [0, 1].
    """
    stages = (_lose_color, _jitter) if look.view.order == "gray_first" else (_jitter, _lose_color)
    for stage in (*stages, _blur, _solarize):
        x = stage(x, look)
    return x


def render(pixels: Tensor, look: Look) -> Tensor:
    """Makes the view that a network sees, on the device where the pixels are.

    Args:
        pixels: uint8 (N, T, H, W, 3).
        look: what happens to the colours of each sample.

    Returns:
        float32 (N, 3, T, H, W), normalised.
    """
    count, frames, height, width, _ = pixels.shape
    out = torch.empty(count, 3, frames, height, width, device=pixels.device)
    mean, std = (torch.tensor(x, device=pixels.device)[:, None, None] for x in (look.view.mean, look.view.std))
    planes = pixels.permute(0, 1, 4, 2, 3)
    group = count if pixels.is_cuda else max(1, GROUP_PIXELS // (frames * height * width))
    for start in range(0, count, group):
        rows = slice(start, start + group)
        target = out[rows].transpose(1, 2)
        if look.view.keeps_colors:
            target.copy_(planes[rows]).mul_(1 / (255 * std)).sub_(mean / std)
        else:
            x = planes[rows].to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            torch.sub(change_colors(x, look.rows(rows)), mean, out=target).div_(std)
    return out


def _jitter(x: Tensor, look: Look) -> Tensor:
    if look.view.jitter is None:
        return x
    # Samples that have the same operation at the same place in their order go through it together.
    for place in range(4):
        for number, change in enumerate(JITTER[look.view.jitter_kind]):
            if look.view.jitter[number] > 0:
                chosen = look.jitter & (look.order[:, place] == number)
                x = _some(x, chosen, change, look.factors[:, number])
    return x


def _lose_color(x: Tensor, look: Look) -> Tensor:
    return _some(x, look.gray, lambda part, _: to_gray(part).repeat_interleave(3, dim=-3))


def _blur(x: Tensor, look: Look) -> Tensor:
    radius, padding = _blur_plan(look.view)
    return _some(x, look.sigma > 0, lambda part, sigma: gaussian_blur(part, sigma, radius, padding), look.sigma)


def _solarize(x: Tensor, look: Look) -> Tensor:
    return _some(x, look.solarize, lambda part, _: solarize(part))


def _some(
    x: Tensor,
    chosen: NDArray[np.bool_],
    change: Callable[[Tensor, Tensor], Tensor],
    values: NDArray[np.float32] | None = None,
) -> Tensor:
    """Applies `change` to the chosen samples and their values; in place, unless all are chosen."""
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        return x
    index = torch.from_numpy(rows).to(x.device, non_blocking=True)
    parameters = index if values is None else torch.from_numpy(values[rows]).to(x.device, non_blocking=True)
    if len(rows) == len(x):
        return change(x, parameters)
    x[index] = change(x[index], parameters)
    return x


def _blur_plan(view: View) -> tuple[int, Padding]:
    """Taps on each side, and what lies beyond the edges."""
    if view.blur_kind == "simclr":
        return view.size // 10 // 2, "zeros"
    if view.blur_kind == "torchvision":
        return TORCHVISION_KERNEL // 2, "reflect"
    return math.ceil(3 * view.blur_sigma[1]), "replicate"


def _weighted_sum(x: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Correlates dimension `dim` of x (N, C, H, W) with symmetric taps, given from the middle on as (N, radius + 1)."""
    radius = weights.shape[1] - 1
    size = x.shape[dim] - 2 * radius
    taps = weights[:, :, None, None, None].unbind(1)
    out = x.narrow(dim, radius, size) * taps[0]
    for offset in range(1, radius + 1):
        out.addcmul_(x.narrow(dim, radius - offset, size), taps[offset])
        out.addcmul_(x.narrow(dim, radius + offset, size), taps[offset])
    return out


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    # factor * x + (1 - factor) * other
    return torch.lerp(other, x, _spread(factor, x)).clamp_(0, 1)
