"""How each paper makes the views that it learns from: records, and one preset per paper.

`video.draws` draws the random numbers of a view, `video.clips` cuts it out of the frames, `video.photometric` changes
its colours. The order is crop, resize, flip, jitter, grey, blur, solarize, normalise; only MoCo v1 has grey before
jitter. A flip commutes with everything behind it, so that papers that flip last come out the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Interpolation = Literal["bilinear", "bicubic"]
Crop = Literal["torchvision", "tensorflow", "whole"]
JitterKind = Literal["torchvision", "simclr"]
BlurKind = Literal["pil", "torchvision", "simclr"]
Order = Literal["jitter_first", "gray_first"]
Released = Literal["released", "published"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TORCHVISION_KERNEL = 9
"""Taps of the blur kind `torchvision`, as DINOv2 has it."""


@dataclass(frozen=True)
class View:
    """How one view of a frame is made, or of a clip: its frames then share all random choices.

    Attributes:
        size: side of the square view in pixels.
        scale: smallest and largest part of the frame's area that is cropped.
        ratio: smallest and largest width over height of the crop.
        interpolation: filter that resizes the crop; antialiased.
        crop: how the box is drawn. `torchvision`: area uniform, ratio log-uniform, 10 tries, then the largest centred
            box with an allowed ratio. `tensorflow`: sample_distorted_bounding_box as SimCLR calls it: ratio uniform,
            height uniform among those within `scale`, at least a tenth of the frame, 100 tries, then the whole frame.
            `whole`: the whole frame, squashed to a square; `scale` and `ratio` do not matter.
        flip: probability of mirroring left and right.
        jitter: strengths of brightness, contrast, saturation and hue, or None; they come in random order. Factors are
            uniform in [max(0, 1 - strength), 1 + strength]; hue turns by [-strength, strength] of a full turn.
        jitter_p: probability that a sample is jittered at all.
        jitter_kind: `torchvision`: contrast about the mean grey level, saturation towards grey. `simclr`: TensorFlow's
            operations, contrast about each channel's mean, saturation in HSV. Both limit to [0, 1] after each of them.
        gray: probability of losing all colour.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation in pixels, drawn uniformly.
        blur_kind: `pil`: Pillow's GaussianBlur, which is itself an approximation, as a true Gaussian of the same
            standard deviation, cut at 3 of them, edges repeated. `torchvision`: 9 taps, edges mirrored. `simclr`:
            size // 10 taps rounded up to an odd number, zeros beyond the edges, one standard deviation for all samples
            of a batch.
        solarize: probability of inverting all levels from 128 of 255 on.
        order: whether jitter or grey comes first.
        mean: what normalisation subtracts, on the [0, 1] scale.
        std: what normalisation divides by.

    Raises:
        ValueError: a value out of its range.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    crop: Crop = "torchvision"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] | None = None
    jitter_p: float = 0.8
    jitter_kind: JitterKind = "torchvision"
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kind: BlurKind = "pil"
    solarize: float = 0.0
    order: Order = "jitter_first"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def keeps_colors(self) -> bool:
        """Whether normalisation is all that can happen to the colours."""
        return not ((self.jitter and self.jitter_p) or self.gray or self.blur or self.solarize)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, at least 1 pixel expected")
        _check_interval("scale", self.scale, 1.0)
        _check_interval("ratio", self.ratio, float("inf"))
        _check_interval("blur_sigma", self.blur_sigma, float("inf"))
        for name in ("flip", "jitter_p", "gray", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, a probability from 0 to 1 expected")
        for name, kind in (
            ("interpolation", Interpolation),
            ("crop", Crop),
            ("jitter_kind", JitterKind),
            ("blur_kind", BlurKind),
            ("order", Order),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, one of {list(get_args(kind))} expected")
        if self.jitter is not None and not (
            len(self.jitter) == 4 and all(0 <= value < float("inf") for value in self.jitter) and self.jitter[3] <= 0.5
        ):
            raise ValueError(f"jitter is {self.jitter}, four numbers from 0 on expected, the last (hue) at most 0.5")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(abs(value) < float("inf") for value in values):
                raise ValueError(f"{name} is {values}, one finite number for each of the 3 channels expected")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}, positive numbers expected; (1, 1, 1) leaves the values as they are")
        if self.blur > 0 and self.blur_kind == "torchvision" and self.size <= TORCHVISION_KERNEL // 2:
            raise ValueError(
                f"size is {self.size}, but blur_kind 'torchvision' mirrors {TORCHVISION_KERNEL // 2} pixels at the "
                "edges; use larger views or another blur_kind"
            )


def moco_v1_views(size: int = 224) -> tuple[View, View]:
    """MoCo v1: grey before a jitter that always comes (section 3.3, and the released code)."""
    view = View(
        size,
        scale=(0.2, 1.0),
        interpolation="bilinear",
        jitter=(0.4, 0.4, 0.4, 0.4),
        jitter_p=1.0,
        gray=0.2,
        order="gray_first",
    )
    return view, view


def moco_v2_views(size: int = 224) -> tuple[View, View]:
    """MoCo v2: a weaker hue, and blur (section 3)."""
    view = View(size, scale=(0.2, 1.0), interpolation="bilinear", jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5)
    return view, view


def moco_v3_views(size: int = 224, crop_min: float = 0.08) -> tuple[View, View]:
    """MoCo v3, after BYOL: two different views (section 4).

    Args:
        size: side in pixels.
        crop_min: smallest part of the area: 0.08 for ViTs, 0.2 for ResNet-50.
    """
    first = View(size, scale=(crop_min, 1.0), interpolation="bilinear", jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=1.0)
    second = View(
        size,
        scale=(crop_min, 1.0),
        interpolation="bilinear",
        jitter=(0.4, 0.4, 0.2, 0.1),
        gray=0.2,
        blur=0.1,
        solarize=0.2,
    )
    return first, second


def simclr_views(size: int = 224, strength: float = 1.0, blur: bool = True) -> tuple[View, View]:
    """SimCLR and SimCLRv2 (appendix A): levels in [0, 1] without normalisation.

    Args:
        size: side in pixels.
        strength: of the colour jitter: 1 for ImageNet, 0.5 for CIFAR.
        blur: False for CIFAR.
    """
    view = View(
        size,
        crop="tensorflow",
        jitter=(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength),
        jitter_kind="simclr",
        gray=0.2,
        blur=0.5 if blur else 0.0,
        blur_kind="simclr",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    return view, view


def dino_views(
    global_size: int = 224,
    local_size: int = 96,
    local_count: int = 8,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
) -> tuple[View, ...]:
    """DINO's multi-crop: two global views, then the local ones (section 3.1)."""
    jitter = (0.4, 0.4, 0.2, 0.1)
    first = View(global_size, scale=global_scale, jitter=jitter, gray=0.2, blur=1.0)
    second = View(global_size, scale=global_scale, jitter=jitter, gray=0.2, blur=0.1, solarize=0.2)
    local = View(local_size, scale=local_scale, jitter=jitter, gray=0.2, blur=0.5)
    return first, second, *[local] * local_count


def dinov2_views(
    global_size: int = 224,
    local_size: int = 98,
    local_count: int = 8,
    global_scale: tuple[float, float] = (0.32, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.32),
    blur: Released = "released",
) -> tuple[View, ...]:
    """DINOv2's multi-crop: two global views, then the local ones.

    Args:
        global_size: side of the global views in pixels.
        local_size: side of the local views.
        local_count: how many of them.
        global_scale: parts of the area that global views show.
        local_scale: parts of the area that local views show.
        blur: the released code inverts its probabilities: global views are blurred with 0 and 0.9 (`released`) in place
            of 1 and 0.1 (`published`).

    Raises:
        ValueError: `blur` is neither.
    """
    if blur not in get_args(Released):
        raise ValueError(f"blur is {blur!r}, one of {list(get_args(Released))} expected")
    jitter = (0.4, 0.4, 0.2, 0.1)
    blurs = (0.0, 0.9) if blur == "released" else (1.0, 0.1)
    first = View(global_size, scale=global_scale, jitter=jitter, gray=0.2, blur=blurs[0], blur_kind="torchvision")
    second = View(
        global_size,
        scale=global_scale,
        jitter=jitter,
        gray=0.2,
        blur=blurs[1],
        blur_kind="torchvision",
        solarize=0.2,
    )
    local = View(local_size, scale=local_scale, jitter=jitter, gray=0.2, blur=0.5, blur_kind="torchvision")
    return first, second, *[local] * local_count


def mae_view(size: int = 224) -> tuple[View]:
    """MAE: crop and flip, nothing else (section 4.1)."""
    return (View(size, scale=(0.2, 1.0)),)


def ijepa_view(size: int = 224) -> tuple[View]:
    """I-JEPA: a crop, not even a flip (appendix A)."""
    return (View(size, scale=(0.3, 1.0), interpolation="bilinear", flip=0.0),)


def vjepa_view(size: int = 224) -> tuple[View]:
    """V-JEPA: one crop and flip for the whole clip (appendix on pre-training)."""
    return (View(size, scale=(0.3, 1.0), ratio=(0.75, 1.35), interpolation="bilinear"),)


def whole_view(
    size: int,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> View:
    """The whole frame as it is, squashed to a square: what VQ-GANs learn from, in [-1, 1]."""
    return View(size, crop="whole", interpolation="bilinear", flip=0.0, mean=mean, std=std)


def vip_view(size: int = 224) -> View:
    """VIP: one crop for all frames of a sample, no colours, no flip (appendix on Ego4D pre-training); in [0, 1]."""
    return View(size, (0.2, 1.0), interpolation="bilinear", flip=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _check_interval(name: str, values: tuple[float, float], largest: float) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= largest or values[1] == float("inf"):
        raise ValueError(f"{name} is {values}, two numbers above 0 in ascending order, at most {largest}, expected")
