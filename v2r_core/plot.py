"""Pictures of scored videos: a film strip, and the curves under it on the same time axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from v2r_core.rewards.reward import RewardCurve
from v2r_core.rewards.uvd import Decomposition

FrameAt = Callable[[int], NDArray[np.uint8]]
"""Frame number to uint8 RGB (H, W, 3)."""

WIDTH = 11.0
LEFT, RIGHT = 0.9, 0.25
TOP, BOTTOM = 0.55, 0.55
GAP = 0.2
MAX_STRIP_HEIGHT = 1.5
STRIP_FRAMES = 10
THUMBNAIL_SIDE = 200
DPI = 130
MAX_TITLE = 90
# Okabe and Ito's colours, which remain distinct in every common form of colour blindness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, FAINT = "#222222", "#8a8a8a"
NARROWEST_LABEL = 0.07
INSET = 3.0
"""Of a label from the corner of its picture, in points."""


@dataclass(frozen=True)
class Clip:
    """One scored video of a comparison.

    Attributes:
        label: what the legend calls it.
        frames: access to its frames.
        stamps: (T,) float64 seconds, ascending.
        curve: its T samples.
    """

    label: str
    frames: FrameAt
    stamps: NDArray[np.float64]
    curve: RewardCurve


def draw_curve(
    path: str | Path,
    frames: FrameAt,
    stamps: NDArray[np.float64],
    curve: RewardCurve,
    title: str,
) -> None:
    """Draws one scored video: film strip, value, reward and progress.

    Dashed lines are changes of the subgoal, grey bands frames outside the demonstration (uncertainty above 1), and
    gaps frames that have no number.

    Args:
        path: the PNG to write.
        frames: access to the video, e.g. `video.__getitem__`; about ten frames are read.
        stamps: (T,) float64 seconds, ascending; T >= 1.
        curve: the T samples.
        title: one line.

    Raises:
        ValueError: no frames, or not as many stamps as samples.
    """
    times = _relative_times(stamps, curve)
    thumbnails = _thumbnails(frames, times)
    figure, axes = _stack([_strip_height(thumbnails), 1.7, 1.25, 1.25], title)
    _draw_strip(axes[0], thumbnails)
    limits = (float(times[0]), max(float(times[-1]), float(times[0]) + 1e-3))
    _draw_line(axes[1], times, curve.value, BLUE, "value")
    _draw_reward(axes[2], times, curve.reward)
    _draw_line(axes[3], times, curve.progress, GREEN, "progress")
    axes[3].set_ylim(-0.04, 1.04)
    axes[3].set_yticks([0, 0.5, 1])
    if not np.isfinite(curve.value).any():
        _note(axes[1], "none: a step reward scores each step by itself")
    if not np.isfinite(curve.progress).any():
        _note(axes[3], "not available: progress is calibrated on a demonstration")
    for axis in axes[1:]:
        axis.set_xlim(*limits)
        _mark_strangers(axis, times, curve.uncertainty)
        _mark_switches(axis, times, curve.subgoal_index)
    _label_stages(axes[1], times, curve)
    for axis in axes[1:-1]:
        axis.tick_params(labelbottom=False)
    axes[-1].set_xlabel("time (s)")
    _save(figure, path)


def draw_comparison(path: str | Path, clips: Sequence[Clip], title: str = "") -> None:
    """Draws several scored videos: a film strip each, and all progress curves over one axis.

    Clips of different length share the axis as fractions of their duration. Where no clip has progress, their values
    are drawn.

    Args:
        path: the PNG to write.
        clips: 1 to 6 videos; more would need colours that cannot be told apart.
        title: one line.

    Raises:
        ValueError: another number of clips, or one without frames.
    """
    if not 1 <= len(clips) <= len(LINES):
        raise ValueError(f"{len(clips)} clips: 1 to {len(LINES)} expected; draw more than one picture")
    strips = []
    for clip in clips:
        times = _relative_times(clip.stamps, clip.curve)
        strips.append((times, _thumbnails(clip.frames, times)))
    figure, axes = _stack([*(_strip_height(images) for _, images in strips), 2.6], title)
    has_progress = any(np.isfinite(clip.curve.progress).any() for clip in clips)
    last = axes[-1]
    for clip, (times, images), axis, colour in zip(clips, strips, axes[:-1], LINES, strict=False):
        _draw_strip(axis, images, colour)
        fractions = times / max(float(times[-1]), 1e-9)
        numbers = clip.curve.progress if has_progress else clip.curve.value
        _draw_line(last, fractions, numbers, colour, "progress" if has_progress else "value", _label(clip))
    last.set_xlim(0, 1)
    if has_progress:
        last.set_ylim(-0.04, 1.04)
    last.set_xlabel("time (fraction of the clip)")
    last.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _save(figure, path)


def draw_subgoals(
    path: str | Path, frames: FrameAt, stamps: NDArray[np.float64], subgoals: Decomposition, title: str
) -> None:
    """Draws how a video was split: film strip, the subgoals, and the distances in which they were found.

    Args:
        path: the PNG to write.
        frames: access to the video.
        stamps: (T,) float64 seconds, ascending.
        subgoals: what `decompose` made of all T frames, its curves among it.
        title: one line.

    Raises:
        ValueError: no frames.
    """
    if not len(stamps):
        raise ValueError("no frames to draw; give a video with at least one")
    times = np.asarray(stamps, np.float64) - stamps[0]
    strip = _thumbnails(frames, times)
    pictures = [_shrink(frames(int(index))) for index in subgoals.indices]
    # The strip's slots keep their width however many subgoals there are; what is left of the row stays white.
    padded = [pictures[row : row + STRIP_FRAMES] for row in range(0, len(pictures), STRIP_FRAMES)]
    figure, axes = _stack([_strip_height(strip), *[_strip_height(pictures)] * len(padded), 2.4], title)
    _draw_strip(axes[0], strip)
    for row, (axis, images) in enumerate(zip(axes[1:-1], padded, strict=True)):
        white = np.full_like(images[0], 255)
        corners = _draw_strip(axis, images + [white] * (STRIP_FRAMES - len(images)), GREEN)
        for number, corner in enumerate(corners[: len(images)], row * STRIP_FRAMES):
            text = f"{number + 1}: frame {subgoals.indices[number]}"
            axis.annotate(text, corner, xytext=(INSET, INSET), textcoords="offset points", **_small("left"))
    last = axes[-1]
    _style(last, "distance to the subgoal")
    for level, curve in enumerate(subgoals.curves):
        colour = LINES[level % len(LINES)]
        last.plot(times[: len(curve)], curve, color=colour, linewidth=1.6)
    for index in subgoals.indices:
        last.axvline(times[index], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
    last.set_xlim(0, max(float(times[-1]), 1e-3))
    last.set_xlabel("time (s)")
    if not subgoals.curves:
        _note(last, "too short to be split: the end is the only goal")
    _save(figure, path)


def _label(clip: Clip) -> str:
    outside = float((clip.curve.uncertainty > 1).mean())
    return clip.label if outside < 0.01 else f"{clip.label} ({outside:.0%} unlike the demonstration: no number)"


def _relative_times(stamps: NDArray[np.float64], curve: RewardCurve) -> NDArray[np.float64]:
    times = np.asarray(stamps, np.float64)
    if len(times) == 0 or times.shape != (len(curve),):
        raise ValueError(f"{times.shape} stamps for {len(curve)} samples: one each expected, and one sample at least")
    return times - times[0]


def _thumbnails(frames: FrameAt, times: NDArray[np.float64]) -> list[NDArray[np.uint8]]:
    """Small frames for the middles of the strip's slots, so that a frame stands over its own time."""
    middles = (np.arange(STRIP_FRAMES) + 0.5) / STRIP_FRAMES * times[-1]
    nearest = np.abs(times[None] - middles[:, None]).argmin(axis=1)
    return [_shrink(frames(int(index))) for index in nearest]


def _shrink(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fewer pixels for the PNG; whole blocks are averaged, so nothing flickers."""
    factor = max(1, min(frame.shape[:2]) // THUMBNAIL_SIDE)
    height, width = (side // factor * factor for side in frame.shape[:2])
    blocks = frame[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).astype(np.uint8)


def _strip_height(images: list[NDArray[np.uint8]]) -> float:
    slot = (WIDTH - LEFT - RIGHT) / STRIP_FRAMES
    return min(MAX_STRIP_HEIGHT, slot * images[0].shape[0] / images[0].shape[1])


def _stack(heights: list[float], title: str) -> tuple[Figure, list[Axes]]:
    """A figure with axes of the given heights (inches), one below the other, none of which can overlap."""
    total = TOP + BOTTOM + sum(heights) + GAP * (len(heights) - 1)
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = []
    top = total - TOP
    for height in heights:
        box = (LEFT / WIDTH, (top - height) / total, (WIDTH - LEFT - RIGHT) / WIDTH, height / total)
        axes.append(figure.add_axes(box))
        top -= height + GAP
    shown = title if len(title) <= MAX_TITLE else title[: MAX_TITLE - 1] + "…"
    figure.text(LEFT / WIDTH, 1 - 0.3 / total, shown, fontsize=12, color=INK, va="center", fontweight="bold")
    for axis in axes:
        axis.tick_params(labelsize=9, colors=INK, length=3)
        axis.set_axisbelow(True)
        for side, spine in axis.spines.items():
            spine.set_visible(side in {"left", "bottom"})
            spine.set_color(FAINT)
    return figure, axes


def _draw_strip(axis: Axes, images: list[NDArray[np.uint8]], colour: str | None = None) -> list[tuple[float, float]]:
    """Images side by side, a unit of the axis each; their lower left corners are given back."""
    box = axis.get_window_extent()
    corners = []
    slot = box.height / (box.width / len(images))
    for i, image in enumerate(images):
        aspect = image.shape[0] / image.shape[1]
        # Portrait frames are narrower than their slot: keep their shape and centre them.
        half = min(1.0, slot / aspect) * 0.485
        tall = min(1.0, aspect / slot)
        extent = (i + 0.5 - half, i + 0.5 + half, 0.5 - tall / 2, 0.5 + tall / 2)
        axis.imshow(image, extent=extent, aspect="auto", interpolation="antialiased")
        corners.append((extent[0], extent[2]))
    axis.set_xlim(0, len(images))
    axis.set_ylim(0, 1)
    axis.set_xticks([])
    axis.set_yticks([])
    for side, spine in axis.spines.items():
        spine.set_visible(colour is not None and side == "left")
        if colour is not None:
            spine.set_color(colour)
            spine.set_linewidth(6)
    return corners


def _style(axis: Axes, label: str) -> None:
    axis.set_ylabel(label, fontsize=10, color=INK)
    axis.yaxis.set_label_coords(-0.055, 0.5)
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.locator_params(axis="y", nbins=5)


def _draw_line(
    axis: Axes,
    times: NDArray[np.float64],
    numbers: NDArray[np.float64],
    colour: str,
    name: str,
    label: str | None = None,
) -> None:
    """A line with gaps; a number between two gaps, which no line can show, is a dot."""
    _style(axis, name)
    axis.plot(times, numbers, color=colour, linewidth=1.6, label=label, solid_capstyle="round")
    finite = np.concatenate([[False], np.isfinite(numbers), [False]])
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    axis.plot(times[alone], numbers[alone], ".", color=colour, markersize=4)


def _draw_reward(axis: Axes, times: NDArray[np.float64], rewards: NDArray[np.float64]) -> None:
    _style(axis, "reward")
    axis.axhline(0, color=FAINT, linewidth=0.8)
    # Each bar spans the step that it rewards. Clipped, not `where`: that would drop bars that stand alone.
    for part, colour in ((np.maximum(rewards, 0), BLUE), (np.minimum(rewards, 0), VERMILION)):
        axis.fill_between(times, part, 0, step="pre", color=colour, alpha=0.75, linewidth=0)


def _mark_strangers(axis: Axes, times: NDArray[np.float64], uncertainty: NDArray[np.float64]) -> None:
    strange = uncertainty > 1
    if not strange.any():
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[False], strange, [False]]).astype(int)))
    middles = np.concatenate([times[:1], (times[:-1] + times[1:]) / 2, times[-1:]])
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        axis.axvspan(middles[begin], middles[end], color="#bbbbbb", alpha=0.4, linewidth=0, zorder=0)


def _mark_switches(axis: Axes, times: NDArray[np.float64], subgoals: NDArray[np.int64]) -> None:
    for i in np.flatnonzero(np.diff(subgoals)) + 1:
        axis.axvline(times[i], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)


def _label_stages(axis: Axes, times: NDArray[np.float64], curve: RewardCurve) -> None:
    """Names the stages above the axis, as far as there is room for a name."""
    count = int(curve.subgoal_count[-1])
    changes = np.flatnonzero(np.diff(curve.subgoal_index)) + 1
    starts = times[np.concatenate([[0], changes])]
    ends = np.concatenate([starts[1:], times[-1:]])
    room = (ends - starts) / max(float(times[-1]), 1e-9)
    if count > 1:
        for start, end, share, first in zip(starts, ends, room, np.concatenate([[0], changes]), strict=True):
            if share >= NARROWEST_LABEL:
                text = (
                    f"subgoal {curve.subgoal_index[first] + 1}/{count}"
                    if share > 2 * NARROWEST_LABEL
                    else (f"{curve.subgoal_index[first] + 1}/{count}")
                )
                axis.text((start + end) / 2, 1.0, text, transform=axis.get_xaxis_transform(), **_small("center"))
    if (curve.uncertainty > 1).any():
        axis.text(0.995, 0.03, "grey: unlike the demonstration", transform=axis.transAxes, **_small("right"))


def _small(side: str) -> dict[str, Any]:
    background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    return {"ha": side, "va": "bottom", "fontsize": 8, "color": INK, "bbox": background}


def _note(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=9, color=FAINT)


def _save(figure: Figure, path: str | Path) -> None:
    # No metadata: the same numbers give the same file.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
