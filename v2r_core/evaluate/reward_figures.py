"""Pictures of the report, as data URIs: film strips, and the curves that belong to them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from v2r_core.evaluate.episodes import Episode
from v2r_core.evaluate.metrics import frame_scores
from v2r_core.evaluate.reward_plan import Plan
from v2r_core.evaluate.reward_suite import ModelRun
from v2r_core.plot import FAINT, INK, LINES

STRIP_FRAMES, THUMBNAIL = 8, 72
JPEG_QUALITY = 80
WIDTH, HEIGHT, DPI = 4.2, 2.3, 100


@dataclass(frozen=True)
class Shown:
    """The episodes of one task that are drawn: one of each behaviour, which start alike where there are seeds.

    Attributes:
        task: name, or "all".
        places: in the plan's episodes.
        names: what to call each.
    """

    task: str
    places: list[int]
    names: list[str]


def choose_shown(plan: Plan, most: int = len(LINES)) -> list[Shown]:
    """Chooses for each task the seed with the most behaviours, and one episode of each of these.

    Args:
        plan: what was scored.
        most: curves that can be told apart.
    """
    shown = []
    tasks = dict.fromkeys(episode.labels.task for episode in plan.episodes)
    for task in sorted(tasks, key=lambda name: name or ""):
        own = [index for index, episode in enumerate(plan.episodes) if episode.labels.task == task]
        labels = {index: plan.episodes[index].labels for index in own}
        if all(each.behaviour is None for each in labels.values()):
            chosen = own[:most]
            shown.append(Shown(task or "all", chosen, [labels[index].file for index in chosen]))
            continue
        seeds: dict[int | None, dict[str, int]] = {}
        for index in own:
            seeds.setdefault(labels[index].seed, {}).setdefault(labels[index].behaviour or "unknown", index)
        best = max(seeds.values(), key=len)
        ordered = sorted(best.items(), key=lambda item: -(labels[item[1]].quality or 0))[:most]
        shown.append(Shown(task or "all", [index for _, index in ordered], [name for name, _ in ordered]))
    return shown


def film_strip(episode: Episode) -> str:
    """Eight evenly spaced thumbnails side by side: a JPEG as a data URI."""
    with episode.open() as video:
        wanted = np.linspace(0, len(video) - 1, STRIP_FRAMES).round().astype(int)
        frames = {int(index): video[int(index)] for index in np.unique(wanted)}
    height, width = next(iter(frames.values())).shape[:2]
    size = (max(1, round(THUMBNAIL * width / height)), THUMBNAIL)
    small = {index: np.asarray(Image.fromarray(frame).resize(size)) for index, frame in frames.items()}
    buffer = io.BytesIO()
    strip = np.hstack([small[int(index)] for index in wanted])
    Image.fromarray(strip).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _data_uri(buffer, "image/jpeg")


def curve_plot(run: ModelRun, shown: Shown) -> str:
    """The values (or step rewards) of some episodes over time: a PNG as a data URI."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.15, 0.19, 0.83, 0.78))
    for place, colour in zip(shown.places, LINES, strict=False):
        scores = frame_scores(run.curves[place], run.model.kind)
        marker = "." if np.isfinite(scores).sum() < 3 else ""
        axis.plot(np.arange(len(scores)), scores, color=colour, linewidth=1.5, marker=marker)
    axis.set_xlabel("frame", fontsize=9, color=INK)
    axis.set_ylabel("value" if run.model.kind == "value" else "step reward", fontsize=9, color=INK)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.tick_params(labelsize=8, colors=INK)
    for side, spine in axis.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(FAINT)
    return _as_png(figure)


def bar_plot(names: Sequence[str], numbers: Sequence[tuple[float, float, float]], rewards: int, title: str) -> str:
    """One bar a model with its interval: a PNG as a data URI.

    Args:
        names: of the models.
        numbers: value, low and high of each; NaN where there is none.
        rewards: how many of the first are rewards; the others are controls, and paler.
        title: of the axis.
    """
    figure = Figure(figsize=(WIDTH, 0.55 + 0.3 * len(names)), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for place, (value, low, high) in enumerate(numbers):
        if np.isfinite(value):
            axis.barh(place, value, color=LINES[0] if place < rewards else "#9db7cc", height=0.7)
            if np.isfinite(low):
                axis.plot([low, high], [place, place], color=INK, linewidth=1.4)
        else:
            axis.text(0.01, place, "no number", va="center", fontsize=8, color=INK)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.axvline(0, color=FAINT, linewidth=0.8)
    axis.set_xlabel(title, fontsize=9, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    for side, spine in axis.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(FAINT)
    figure.tight_layout(pad=0.4)
    return _as_png(figure)


def _as_png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return _data_uri(buffer, "image/png")


def _data_uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
