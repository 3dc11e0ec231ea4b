"""report.html of a labelled set, one file that opens offline: what came out well, what did not, what stands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from v2r_core.deploy.stream import Status
from v2r_core.look.labelled_set import LabelledSet
from v2r_core.look.report_pictures import LEFT, RIGHT, WIDTH, bars_svg, curve_svg, film_strip, status_words
from v2r_core.look.report_stats import (
    BINS,
    MAX_INVALID,
    MAX_SCORE,
    MIN_EPISODES,
    EpisodeFacts,
    SetFacts,
    collect,
)
from v2r_core.page import facts, heading, make_page, table, text_filter, write_page

MOST_OUTLIERS = 12
"""Outliers that get a picture; all of them are in the table."""
TABLE = "episodes"

_RANKED_BY = {
    "final progress": "final progress",
    "order": "how steadily the value rises (its rank correlation with time), since episodes that were compared with "
    "their own ends all arrive there, or have no progress at all",
    "mean reward": "mean reward of a step, since there is neither progress nor value",
}

_STYLE = f"""
svg {{ display: block; width: 100%; height: auto; }}
.episodes {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.2rem 1.6rem;
  align-items: end; }}
.episode {{ max-width: 47.5rem; }} .episode figcaption {{
  font-size: .9rem; margin-bottom: .25rem; overflow-wrap: anywhere; }}
.episode img {{ display: block; box-sizing: border-box; width: 100%;
  padding: 0 {RIGHT / WIDTH:.2%} 0 {LEFT / WIDTH:.2%}; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem; }}
.plots figcaption {{ font-size: .9rem; font-weight: 600; }}
tr[hidden] {{ display: none; }} #{TABLE} thead th:nth-last-child(-n+3) {{ text-align: left; }}
td.text {{ text-align: left; min-width: 9rem; }}
th[scope=row] {{ min-width: 9rem; max-width: 22rem; overflow-wrap: anywhere; font-weight: 400; }}
"""


@dataclass(frozen=True)
class ReportOptions:
    """What is shown.

    Attributes:
        shown: episodes with pictures on either side: so many of the best, so many of the worst.
    """

    shown: int = 4


def write_report(
    path: Path,
    labelled: LabelledSet,
    options: ReportOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SetFacts:
    """Writes the page, by rename, and gives what is in it.

    Args:
        path: the .html to write; its folder is made.
        labelled: the set; all labels are read once, and the frames of the few episodes that are shown.
        options: what is shown.
        on_progress: called with (episodes read, episodes in all).

    Raises:
        ValueError: no episode has labels.
        OSError: the page cannot be written.
    """
    found = collect(labelled, on_progress)
    if not found.episodes:
        reason = next(iter(found.failed.values()), "it is empty")
        raise ValueError(f"{labelled.path}: no episode with labels ({reason})")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, make_report(labelled, found, options or ReportOptions()))
    return found


def make_report(labelled: LabelledSet, found: SetFacts, options: ReportOptions) -> str:
    """The whole page."""
    ranked = found.ranked()
    # Of a small set either half is shown.
    best = ranked[: min(options.shown, (len(ranked) + 1) // 2)]
    worst = ranked[len(best) :][::-1][: options.shown]
    strange = [each for each in found.episodes if each.place in found.outliers]
    pictured = {each.place for each in (*best, *worst, *strange[:MOST_OUTLIERS])}
    by = escape(_RANKED_BY[found.rank_by])
    drawn: set[int] = set()

    def figures(episodes: Sequence[EpisodeFacts]) -> Iterable[str]:
        # An episode may be among the worst and an outlier; its pictures are there once.
        yield f'<div class="episodes">{"".join(_episode(labelled, found, each, drawn) for each in episodes)}</div>'

    parts = [
        *_summary(labelled, found),
        *_distributions(found),
        f"<h2>Worst episodes</h2><p>By {by}. Grey: frames whose numbers cannot be trusted.</p>",
        *(figures(worst) if worst else ["<p>None besides the best ones.</p>"]),
        f"<h2>Best episodes</h2><p>By {by}.</p>",
        *figures(best),
        *_outliers(found, strange, figures),
        *_faults(found),
        *_all(found, pictured),
    ]
    return make_page(f"Labels of {labelled.path.name or labelled.path}", parts, _STYLE)


def _summary(labelled: LabelledSet, found: SetFacts) -> Iterable[str]:
    frames = sum(each.frames for each in found.episodes)
    hours = sum(each.seconds for each in found.episodes) / 3600
    own = sum(each.own_end for each in found.episodes)
    goals = len({each.goal for each in found.episodes})
    pairs = {
        "set": str(labelled.path),
        "episodes": str(len(found.episodes)) + (f", and {len(found.failed)} without labels" if found.failed else ""),
        "frames": str(frames),
        "hours": f"{hours:.3g}",
        "goals": f"{own} episodes were compared with their own ends, so that their progress says little"
        if own
        else str(goals),
        "outliers": str(len(found.outliers)),
    }
    yield "<h2>Summary</h2>" + facts(pairs | dict(labelled.about))


def _distributions(found: SetFacts) -> Iterable[str]:
    finals = np.array([each.final_progress for each in found.episodes])
    finals = finals[np.isfinite(finals)]
    yield "<h2>Progress</h2>"
    if not found.progress.sum():
        yield "<p>No frame has progress: it is calibrated on a demonstration, and step rewards have none.</p>"
        return
    counts = np.histogram(finals, BINS, (0, 1))[0].tolist()
    reached = int((finals >= 0.9).sum())
    titles = (
        (f"At the end of each episode: {reached} of {len(finals)} reach 0.9", counts, "final progress"),
        (f"Over all {int(found.progress.sum())} frames that have it", found.progress.tolist(), "progress"),
    )
    figures = [
        f"<figure><figcaption>{escape(title)}</figcaption>{bars_svg(numbers, 0, 1, title, axis)}</figure>"
        for title, numbers, axis in titles
    ]
    yield f'<div class="plots">{"".join(figures)}</div>'


def _episode(labelled: LabelledSet, found: SetFacts, each: EpisodeFacts, drawn: set[int]) -> str:
    numbers = ", ".join(
        f"{name} {number:.2f}"
        for name, number in (
            ("final progress", each.final_progress),
            ("order", each.order),
            ("uncertainty", each.uncertainty),
        )
        if math.isfinite(number)
    )
    caption = f"<strong>{escape(each.name)}</strong>: {escape(numbers or 'no numbers')}"
    if reasons := found.outliers.get(each.place):
        caption += f"<br>Outlier: {escape('; '.join(reasons))}"
    if each.place in drawn:
        return f'<p class="episode">{caption} (<a href="#episode-{each.place}">drawn above</a>)</p>'
    drawn.add(each.place)
    episode = labelled[each.place]
    name = escape(each.name, quote=True)
    try:
        strip = f'<img alt="{name}: ten frames from start to end" src="{film_strip(episode)}">'
    except (ValueError, OSError) as error:
        strip = f"<p><small>no pictures: {escape(str(error))}</small></p>"
    curves = curve_svg(episode.labels, f"{each.name}: curves. {numbers}")
    return (
        f'<figure class="episode" id="episode-{each.place}"><figcaption>{caption}</figcaption>{strip}{curves}</figure>'
    )


def _outliers(
    found: SetFacts, strange: Sequence[EpisodeFacts], figures: Callable[[Sequence[EpisodeFacts]], Iterable[str]]
) -> Iterable[str]:
    yield "<h2>Outliers</h2>"
    few = "" if len(found.episodes) >= MIN_EPISODES else f" (too few here: {MIN_EPISODES} episodes are needed)"
    yield (
        f"<p>An episode is one if more than {MAX_INVALID:.0%} of its frames cannot be trusted; or if its median "
        f"uncertainty, or the distance of its {found.score} curve from the median curve of the set (both stretched to "
        f"one length, root mean square), lies above the median episode&#8217;s by a modified z-score of more than "
        f"{MAX_SCORE}{few}.</p>"
    )
    if not strange:
        yield "<p>None.</p>"
        return
    yield from figures(strange[:MOST_OUTLIERS])
    if len(strange) > MOST_OUTLIERS:
        yield f"<p>{len(strange) - MOST_OUTLIERS} more are in the table below.</p>"


def _faults(found: SetFacts) -> Iterable[str]:
    total = max(sum(each.frames for each in found.episodes), 1)
    lines = []
    for status in Status:
        count = sum(each.status[status] for each in found.episodes)
        touched = sum(each.status[status] > 0 for each in found.episodes)
        if count:
            name = status.name.lower().replace("_", " ")
            lines.append(
                f'<tr><th scope="row">{name}</th><td>{count}</td><td>{count / total:.2%}</td><td>{touched}</td></tr>'
            )
    head = "".join(heading(name, sorts=False) for name in ("status", "frames", "share", "episodes"))
    yield "<h2>Dropped and invalid frames</h2>"
    yield table("Frames by status", head, lines)
    gaps, missing, backwards = (
        sum(getattr(each, name) for each in found.episodes) for name in ("gaps", "missing", "backwards")
    )
    yield (
        f"<p>Gaps in the stamps (more than 1.5 usual steps of the episode): {gaps}, with room for about {missing} "
        f"frames. Stamps that do not advance: {backwards}.</p>"
    )
    if found.failed:
        head = "".join(heading(name, sorts=False) for name in ("episode", "why"))
        lines = [
            f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(why)}</td></tr>'
            for name, why in sorted(found.failed.items())
        ]
        yield table("Episodes without labels", head, lines)


def _all(found: SetFacts, pictured: set[int]) -> Iterable[str]:
    yield "<h2>All episodes</h2><p>A column&#8217;s button sorts by it; names with a link have pictures above.</p>"
    yield text_filter("Only rows with", TABLE)
    columns = ("episode", "frames", "seconds", "final progress", "max progress", "mean reward", "order", "bumps")
    names = (*columns, "uncertainty", "invalid", "missing", "goal", "status", "outlier")
    lines = []
    for each in found.episodes:
        name = escape(each.name)
        link = f'<a href="#episode-{each.place}">{name}</a>' if each.place in pictured else name
        reasons = "; ".join(found.outliers.get(each.place, []))
        cells = [
            f'<th scope="row" data-value="{escape(each.name, quote=True)}">{link}</th>',
            *(_cell(n, form) for n, form in _numbers(each)),
            _text(each.goal),
            _text(status_words(each.status)),
            _text(reasons),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    yield table(f"{len(lines)} episodes", "".join(map(heading, names)), lines, sortable=True, identifier=TABLE)
    yield """<p>Order is Spearman&#8217;s correlation of value and time, 1 if the value rises from frame to frame; bumps
is the share of steps away from the goal; uncertainty is the median, above 1 is unlike the demonstration; invalid is
the share of frames whose status is neither ok nor warming up; missing are the frames that gaps in the stamps have room
for.</p>"""


def _numbers(each: EpisodeFacts) -> Iterable[tuple[float, str]]:
    yield each.frames, "d"
    yield each.seconds, ".1f"
    yield each.final_progress, ".3f"
    yield each.max_progress, ".3f"
    yield each.mean_reward, ".4g"
    yield each.order, ".3f"
    yield each.bumps, ".1%"
    yield each.uncertainty, ".2f"
    yield each.invalid, ".1%"
    yield each.missing, "d"


def _cell(number: float, form: str) -> str:
    if not math.isfinite(number):
        return "<td><small>none</small></td>"
    return f'<td data-value="{number:.9g}">{number:{form}}</td>'


def _text(words: str) -> str:
    value = f' data-value="{escape(words, quote=True)}"' if words else ""
    return f'<td class="text"{value}>{escape(words)}</td>'
