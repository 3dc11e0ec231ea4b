"""The random numbers behind a view: drawn as one row of uniforms a sample, then turned into boxes and colours.

Everything is keyed by numbers such as (seed, epoch, example): nothing depends on how many worker processes there are,
on who asked before, or on a global state. Each choice has its own column, so that a changed probability of one leaves
the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.augment import View

Uniforms = NDArray[np.float64]

TORCHVISION_TRIES = 10
TENSORFLOW_TRIES = 100
TENSORFLOW_MIN_COVERED = 0.1
"""min_object_covered of SimCLR's call; the object is the whole image."""

_FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(6)
_FACTORS = slice(6, 10)
_ORDER = slice(10, 14)
_COLUMNS = 14


class Key(IntEnum):
    """What a stream of random numbers is for; streams of different keys have nothing to do with each other."""

    ORDER = 0
    VIEWS = 1
    BATCH = 2
    MASKS = 3
    SPARE = 4
    PICK = 5


def random_seed(seed: int, key: Key, *numbers: int) -> int:
    """A seed of 63 bits from several numbers, all of them at least 0."""
    return int(np.random.SeedSequence((seed, key, *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def random_numbers(seed: int, key: Key, *numbers: int) -> np.random.Generator:
    """A generator that depends on these numbers, all of them at least 0, and on nothing else."""
    return np.random.default_rng((seed, key, *numbers))


@dataclass(frozen=True)
class Boxes:
    """What is cut out of N frames.

    Attributes:
        box: top, left, height, width in pixels, int64 (N, 4); inside the frame.
        flip: mirrored left and right, bool (N,).
    """

    box: NDArray[np.int64]
    flip: NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """What happens to the colours of N samples of a view. Arrays, because small tensors travel slower than these.

    Attributes:
        view: the view.
        jitter: whether a sample is jittered, bool (N,).
        factors: brightness, contrast and saturation factor, hue shift in turns, float32 (N, 4).
        order: in which order they come, a permutation of 0..3 each, int64 (N, 4).
        gray: whether a sample loses its colour, bool (N,).
        sigma: standard deviation of the blur in pixels, 0 for none, float32 (N,).
        solarize: whether a sample is solarized, bool (N,).
    """

    view: View
    jitter: NDArray[np.bool_]
    factors: NDArray[np.float32]
    order: NDArray[np.int64]
    gray: NDArray[np.bool_]
    sigma: NDArray[np.float32]
    solarize: NDArray[np.bool_]

    def rows(self, rows: NDArray[np.int64] | slice) -> Look:
        """The samples at `rows`, in that order."""
        return Look(
            self.view,
            self.jitter[rows],
            self.factors[rows],
            self.order[rows],
            self.gray[rows],
            self.sigma[rows],
            self.solarize[rows],
        )


def uniforms_needed(view: View) -> int:
    """How many uniform numbers one sample of a view takes."""
    return _COLUMNS + 4 * _tries(view)


def draw_boxes(view: View, uniforms: Uniforms, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> Boxes:
    """Draws the boxes of N samples.

    Args:
        view: the view.
        uniforms: (N, `uniforms_needed(view)`) in [0, 1).
        heights: of the frames, (N,) in pixels.
        widths: of the frames, (N,).
    """
    if view.crop == "whole":
        edges = np.zeros_like(heights)
        return Boxes(np.stack([edges, edges, heights, widths], axis=1), uniforms[:, _FLIP] < view.flip)
    tries = uniforms[:, _COLUMNS:].reshape(len(uniforms), _tries(view), 4)
    draw = _torchvision_boxes if view.crop == "torchvision" else _tensorflow_boxes
    return Boxes(draw(view, tries, heights[:, None], widths[:, None]), uniforms[:, _FLIP] < view.flip)


def draw_look(view: View, uniforms: Uniforms, batch_uniform: float) -> Look:
    """Draws the colours of N samples.

    Args:
        view: the view.
        uniforms: (N, `uniforms_needed(view)`) in [0, 1); columns that `draw_boxes` does not look at.
        batch_uniform: what SimCLR's blur draws once for a whole batch, in [0, 1).
    """
    strengths = np.array(view.jitter or (0.0, 0.0, 0.0, 0.0))
    low = np.append(np.maximum(1 - strengths[:3], 0), -strengths[3])
    high = np.append(1 + strengths[:3], strengths[3])
    smallest, largest = view.blur_sigma
    shared = view.blur_kind == "simclr"
    sigma = smallest + (largest - smallest) * (batch_uniform if shared else uniforms[:, _SIGMA])
    return Look(
        view,
        jitter=(uniforms[:, _JITTER] < view.jitter_p) & (view.jitter is not None),
        factors=(low + (high - low) * uniforms[:, _FACTORS]).astype(np.float32),
        order=np.argsort(uniforms[:, _ORDER], axis=1, kind="stable"),
        gray=uniforms[:, _GRAY] < view.gray,
        sigma=np.where(uniforms[:, _BLUR] < view.blur, sigma, 0.0).astype(np.float32),
        solarize=uniforms[:, _SOLARIZE] < view.solarize,
    )


def _tries(view: View) -> int:
    return {"torchvision": TORCHVISION_TRIES, "tensorflow": TENSORFLOW_TRIES, "whole": 0}[view.crop]


def _torchvision_boxes(
    view: View, u: Uniforms, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Boxes as RandomResizedCrop draws them: u is (N, tries, 4), heights and widths (N, 1)."""
    low, high = view.ratio
    area = heights * widths * (view.scale[0] + (view.scale[1] - view.scale[0]) * u[..., 0])
    ratio = np.exp(np.log(low) + (np.log(high) - np.log(low)) * u[..., 1])
    width = np.round(np.sqrt(area * ratio))
    height = np.round(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
    boxes = _first(fits, (heights - height + 1) * u[..., 2], (widths - width + 1) * u[..., 3], height, width)

    frame = widths / heights
    width = np.where(frame > high, np.round(heights * high), widths)
    height = np.where(frame < low, np.round(widths / low), heights)
    # A frame narrower than a pixel's worth of the ratio still gives a box of one pixel.
    width, height = np.clip(width, 1, widths), np.clip(height, 1, heights)
    centred = np.concatenate([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)
    return np.where(fits.any(axis=1, keepdims=True), boxes, centred).astype(np.int64)


def _tensorflow_boxes(
    view: View, u: Uniforms, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Boxes as sample_distorted_bounding_box draws them around a box that is the whole frame.

    The height is what is drawn uniformly, between those of the smallest and the largest allowed area, limited by the
    frame. Where rounding leaves the allowed areas, one pixel more or less is tried. The last row and the last column
    are no possible start of a smaller box: the upper limit of the draw is exclusive.
    """
    ratio = view.ratio[0] + (view.ratio[1] - view.ratio[0]) * u[..., 0]
    smallest, largest = (part * heights * widths for part in view.scale)
    limit = np.round(np.sqrt(largest / ratio))
    limit = np.where(np.round(limit * ratio) > widths, np.floor((widths + 0.5 - 1e-7) / ratio), limit)
    limit = np.minimum(limit - (np.round(limit * ratio) > widths), heights)
    start = np.minimum(np.round(np.sqrt(smallest / ratio)), limit)
    height = start + np.floor((limit - start + 1) * u[..., 1])
    for change, wrong in ((1, lambda area: area < smallest), (-1, lambda area: area > largest)):
        height = height + change * wrong(height * np.round(height * ratio))
    width = np.round(height * ratio)
    area = height * width
    fits = (area >= np.maximum(smallest, TENSORFLOW_MIN_COVERED * heights * widths)) & (area <= largest)
    fits &= (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
    boxes = _first(fits, (heights - height) * u[..., 2], (widths - width) * u[..., 3], height, width)
    whole = np.concatenate([0 * heights, 0 * widths, heights, widths], axis=1)
    return np.where(fits.any(axis=1, keepdims=True), boxes, whole).astype(np.int64)


def _first(fits: NDArray[np.bool_], *columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each sample the first try that fits, (N, 4) rounded down; any try where none does."""
    first = fits.argmax(axis=1)
    return np.floor(np.stack(columns, axis=-1)[np.arange(len(fits)), first])
