"""Pictures of the report: film strips as JPEG, curves and histograms as SVG, which needs no file and stays sharp."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from v2r_core.deploy.stream import Status
from v2r_core.label.table import Labels
from v2r_core.look.labelled_set import LabelledEpisode
from v2r_core.look.report_stats import VALID
from v2r_core.page import data_uri
from v2r_core.plot import BLUE, FAINT, GREEN, INK, VERMILION
from v2r_core.video.resize import Frame

STRIP_FRAMES, THUMBNAIL = 10, 72
JPEG_QUALITY = 75
MISSING = 214
"""Grey of a frame that cannot be read."""
WIDTH, LEFT, RIGHT = 640, 56, 4
PANELS = (84, 56)
PANEL_GAP, AXIS = 12, 20
MOST_POINTS = 300
BARS_HEIGHT = 130

_LINE = 'fill="none" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round"'
_TEXT = f'font-size="12" fill="{INK}"'


def film_strip(episode: LabelledEpisode) -> str:
    """Ten frames from the first to the last side by side: a JPEG as a data URI. Grey where one cannot be read.

    Raises:
        FileNotFoundError, VideoError: none can be read.
    """
    with episode.open_frames() as frames:
        wanted = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
        pictures: dict[int, Frame | None] = {}
        problem: ValueError | None = None
        for number in np.unique(wanted).tolist():
            try:
                pictures[number] = _thumbnail(frames[number])
            except ValueError as error:
                pictures[number], problem = None, error
    readable = [each for each in pictures.values() if each is not None]
    if not readable:
        raise problem or ValueError(f"{episode.name}: no frame")
    grey = np.full_like(readable[0], MISSING)
    # Frames of another size keep their shape inside the slot of the first one.
    slots = [_fitted(pictures[int(number)], grey) for number in wanted]
    buffer = io.BytesIO()
    Image.fromarray(np.hstack(slots)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return data_uri(buffer.getvalue(), "image/jpeg")


def _thumbnail(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    return np.asarray(Image.fromarray(frame).resize((max(1, round(THUMBNAIL * width / height)), THUMBNAIL)))


def _fitted(picture: Frame | None, grey: Frame) -> Frame:
    if picture is None:
        return grey
    slot = grey.copy()
    width = min(picture.shape[1], slot.shape[1])
    slot[:, :width] = picture[:, :width]
    return slot


def curve_svg(labels: Labels, label: str) -> str:
    """Progress (the value where there is none) over the reward, by frame; grey where numbers cannot be trusted.

    Args:
        labels: of the episode.
        label: what a screen reader says, escaped here.
    """
    curve, count = labels.curve, len(labels)
    has_progress = bool(np.isfinite(curve.progress).any())
    height = sum(PANELS) + PANEL_GAP + AXIS
    top, bottom = 4, 4 + PANELS[0] + PANEL_GAP
    parts = _bands(~np.isin(labels.status, VALID), ((top, PANELS[0]), (bottom, PANELS[1])))
    if has_progress:
        parts += _panel(curve.progress, (0.0, 1.0), top, PANELS[0], GREEN, "progress")
    elif np.isfinite(curve.value).any():
        parts += _panel(curve.value, _range(curve.value), top, PANELS[0], BLUE, "value")
    else:
        parts += [*_frame((0.0, 1.0), top, PANELS[0], "value"), _centred("no progress and no value", top + 46)]
    parts += _reward_panel(curve.reward, bottom, PANELS[1])
    last, seconds = max(count - 1, 0), float(np.ptp(labels.stamps)) if count else 0.0
    parts.append(f'<text x="{LEFT}" y="{height}" {_TEXT}>frame 0</text>')
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{height}" text-anchor="end" {_TEXT}>frame {last}, {seconds:.1f} s</text>'
    )
    return _svg(parts, height + 4, label)


def bars_svg(counts: Sequence[int], low: float, high: float, label: str, axis: str) -> str:
    """A histogram.

    Args:
        counts: of equal bins.
        low: where the first one begins.
        high: where the last one ends.
        label: what a screen reader says, escaped here.
        axis: name of the axis, escaped here.
    """
    most = max(max(counts, default=0), 1)
    slot = (WIDTH - LEFT - RIGHT) / max(len(counts), 1)
    base = 6 + BARS_HEIGHT
    parts = [f'<text x="{LEFT - 5}" y="14" text-anchor="end" {_TEXT}>{most}</text>']
    for place, count in enumerate(counts):
        tall = BARS_HEIGHT * count / most
        x = LEFT + place * slot + 1
        begin = low + (high - low) * place / len(counts)
        end = low + (high - low) * (place + 1) / len(counts)
        parts.append(
            f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{slot - 2:.1f}" height="{tall:.1f}" fill="{GREEN}">'
            f"<title>{begin:.3g} to {end:.3g}: {count}</title></rect>"
        )
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="{FAINT}"/>')
    for place, number in enumerate(np.linspace(low, high, 5)):
        anchor = ("start", "middle", "middle", "middle", "end")[place]
        x = LEFT + (WIDTH - LEFT - RIGHT) * place / 4
        parts.append(f'<text x="{x:.1f}" y="{base + 15}" text-anchor="{anchor}" {_TEXT}>{number:.3g}</text>')
    parts.append(_centred(axis, base + 30))
    return _svg(parts, base + 36, label)


def _svg(parts: list[str], height: float, label: str) -> str:
    said = escape(label, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{said}" font-family="sans-serif">'
        f"{''.join(parts)}</svg>"
    )


def _centred(text: str, y: float) -> str:
    return f'<text x="{(LEFT + WIDTH) / 2}" y="{y}" text-anchor="middle" {_TEXT}>{escape(text)}</text>'


def _across(places: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Frame numbers to x."""
    across: NDArray[np.float64] = LEFT + places / max(count - 1, 1) * (WIDTH - LEFT - RIGHT)
    return across


def _range(numbers: NDArray[np.float64]) -> tuple[float, float]:
    known = numbers[np.isfinite(numbers)]
    low, high = float(known.min()), float(known.max())
    room = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _frame(limits: tuple[float, float], top: float, height: float, name: str) -> list[str]:
    """Axis, limits and name of a panel."""
    middle = top + height / 2
    return [
        f'<path d="M{LEFT} {top}V{top + height}H{WIDTH - RIGHT}" fill="none" stroke="{FAINT}"/>',
        f'<text x="{LEFT - 5}" y="{top + 9}" text-anchor="end" {_TEXT}>{limits[1]:.2g}</text>',
        f'<text x="{LEFT - 5}" y="{top + height}" text-anchor="end" {_TEXT}>{limits[0]:.2g}</text>',
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle" {_TEXT}>{name}</text>',
    ]


def _panel(
    numbers: NDArray[np.float64], limits: tuple[float, float], top: float, height: float, colour: str, name: str
) -> list[str]:
    """A line with gaps where there is no number."""
    low, high = limits
    # Of a long episode only some frames are drawn; those on either side of a gap stay close enough to show it.
    chosen = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_POINTS)).round().astype(int))
    xs = _across(chosen.astype(np.float64), len(numbers))
    ys = top + height * (1 - (np.clip(numbers[chosen], low, high) - low) / (high - low))
    words, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            words.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    # A number between two gaps has no line; round caps make a dot of one of no length.
    words = [w + "h0" for w in words]
    return [*_frame(limits, top, height, name), f'<path d="{"".join(words)}" stroke="{colour}" {_LINE}/>']


def _reward_panel(rewards: NDArray[np.float64], top: float, height: float) -> list[str]:
    """Bars from zero, vermilion below it; each is the mean of the frames that it spans."""
    known = rewards[np.isfinite(rewards)]
    if not len(known):
        return [*_frame((-1.0, 1.0), top, height, "reward"), _centred("no reward", top + 32)]
    groups = np.array_split(rewards, min(len(rewards), MOST_POINTS))
    means = np.array([each[np.isfinite(each)].mean() if np.isfinite(each).any() else np.nan for each in groups])
    most = float(np.nanmax(np.abs(means))) or 1.0
    low, high = (-most if np.nanmin(means) < 0 else 0.0), (most if np.nanmax(means) > 0 else 0.0)
    zero = top + height * high / (high - low or 1.0)
    wide = (WIDTH - LEFT - RIGHT) / len(means)
    bars: dict[str, list[str]] = {BLUE: [], VERMILION: []}
    for place, mean in enumerate(means):
        if math.isfinite(mean) and mean:
            end = zero - height * mean / (high - low)
            bars[BLUE if mean > 0 else VERMILION].append(
                f"M{LEFT + place * wide:.1f} {zero:.1f}V{end:.1f}h{wide:.2f}V{zero:.1f}z"
            )
    drawn = [
        f'<path d="{"".join(words)}" fill="{colour}" shape-rendering="crispEdges"/>'
        for colour, words in bars.items()
        if words
    ]
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="{FAINT}"/>'
    return [*_frame((low, high), top, height, "reward"), line, *drawn]


def _bands(bad: NDArray[np.bool_], panels: Sequence[tuple[float, float]]) -> list[str]:
    """Grey behind the frames that cannot be trusted, no finer than a pixel, since a status may flicker for hours."""
    if len(bad) > WIDTH:
        bad = np.array([part.any() for part in np.array_split(bad, WIDTH)])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(int)))
    bands = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        left, right = _across(np.array([begin - 0.5, end - 0.5]), len(bad)).clip(LEFT, WIDTH - RIGHT)
        for top, height in panels:
            bands.append(
                f'<rect x="{left:.1f}" y="{top}" width="{max(right - left, 1):.1f}" height="{height}" fill="#d5d5d5"/>'
            )
    return bands


def status_words(counts: Sequence[int]) -> str:
    """Frames by status, those that are there: "39 ok, 1 warming up"."""
    names = {int(status): status.name.lower().replace("_", " ") for status in Status}
    return ", ".join(f"{count} {names.get(each, f'status {each}')}" for each, count in enumerate(counts) if count)
