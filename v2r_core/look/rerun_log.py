"""Labelled episodes into Rerun: images, curves and status on a timeline of stamps and one of frame numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from v2r_core.deploy.stream import Status
from v2r_core.look.labelled_set import LabelledEpisode, LabelledSet
from v2r_core.overlay import draw_overlay
from v2r_core.plot import BLUE, GREEN, ORANGE, PURPLE
from v2r_core.video.resize import Frame

if TYPE_CHECKING:
    import rerun as rr

APPLICATION = "v2r"
CAMERA, OVERLAY, STATUS, EVENTS = "camera", "overlay", "status", "events"
STAMP, FRAME = "stamp", "frame"
SCALARS = {"progress": GREEN, "value": BLUE, "reward": ORANGE, "uncertainty": PURPLE}
"""Entities with a number a frame, and their colours."""
JPEG_QUALITY = 80
BETWEEN = 1.0
"""Seconds between two episodes whose own stamps do not go on from one to the next."""
EPOCH = 1e8
"""Seconds; stamps above it are times since 1970, three years after it at least."""


@dataclass(frozen=True)
class LogOptions:
    """What is logged.

    Attributes:
        max_side: longer side of the images, in pixels; larger ones are shrunk.
        overlay: also log the images with the numbers drawn on them.
    """

    max_side: int = 480
    overlay: bool = False


@dataclass
class LogCounts:
    """What was logged.

    Attributes:
        episodes, frames: as many.
        pictures: frames with an image.
        problems: why others have none: the first reason of each episode that lacks one.
    """

    episodes: int = 0
    frames: int = 0
    pictures: int = 0
    problems: list[str] | None = None


def need_rerun() -> Any:
    """The Rerun SDK.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import rerun as rr  # noqa: PLC0415 (an extra that a robot does not need)
    except ImportError as error:
        raise RuntimeError("rerun-sdk is not installed; pip install -e '.[label]'") from error
    return rr


def new_recording(labelled: LabelledSet) -> rr.RecordingStream:
    """A recording with nothing in it yet, named after the set. Say where it goes before the first episode."""
    recording: rr.RecordingStream = need_rerun().RecordingStream(APPLICATION)
    recording.send_recording_name(labelled.path.name or str(labelled.path))
    return recording


def blueprint(overlay: bool) -> Any:
    """Image on the left, plots on the right, status and events below."""
    need_rerun()
    import rerun.blueprint as rrb  # noqa: PLC0415

    pictures = [rrb.Spatial2DView(origin=f"/{CAMERA}", name="camera")]
    if overlay:
        pictures.insert(0, rrb.Spatial2DView(origin=f"/{OVERLAY}", name="overlay"))
    left = rrb.Vertical(
        rrb.Tabs(*pictures, active_tab=0) if overlay else pictures[0],
        rrb.TextLogView(origin=f"/{EVENTS}", name="events"),
        row_shares=[3, 1],
    )
    plots = [
        rrb.TimeSeriesView(contents=["/progress", "/uncertainty"], name="progress and uncertainty"),
        rrb.TimeSeriesView(origin="/value", name="value"),
        rrb.TimeSeriesView(origin="/reward", name="reward"),
        rrb.StateTimelineView(origin=f"/{STATUS}", name="status"),
    ]
    right = rrb.Vertical(*plots, row_shares=[3, 2, 2, 1])
    return rrb.Blueprint(rrb.Horizontal(left, right, column_shares=[1, 1]), rrb.TimePanel(state="collapsed"))


def log_episodes(
    recording: rr.RecordingStream,
    labelled: LabelledSet,
    places: Sequence[int],
    options: LogOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> LogCounts:
    """Logs episodes one after the other, one frame in memory at a time.

    Args:
        recording: of `new_recording`; it has a sink already.
        labelled: the set.
        places: of the episodes, in the order in which they come on the timelines.
        options: what is logged.
        on_progress: called with (frames of the episode done, frames of it in all).

    Raises:
        ValueError, OSError: labels cannot be read. Images that cannot be are left out, and counted.
    """
    rr = need_rerun()
    for name, colour in SCALARS.items():
        style = rr.SeriesLines(colors=[_rgb(colour)], names=[name])
        recording.log(name, style, static=True)
    clock = _Clock()
    counts = LogCounts(problems=[])
    for place in places:
        episode = labelled[place]
        _log_episode(recording, episode, clock, options, counts, on_progress)
    return counts


class _Clock:
    """Puts episodes one behind the other where their own stamps start again from 0."""

    def __init__(self) -> None:
        self.frames = 0
        self._end = -np.inf

    def place(self, stamps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Stamps and frame numbers of an episode on the timelines."""
        shift = 0.0
        if len(stamps) and stamps.min() <= self._end:
            shift = self._end + BETWEEN - float(stamps.min())
        placed = stamps + shift
        if len(stamps):
            self._end = float(placed.max())
        numbers = np.arange(self.frames, self.frames + len(stamps))
        self.frames += len(stamps)
        return placed, numbers


def _log_episode(
    recording: rr.RecordingStream,
    episode: LabelledEpisode,
    clock: _Clock,
    options: LogOptions,
    counts: LogCounts,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    rr = need_rerun()
    labels = episode.labels
    stamps, numbers = clock.place(labels.stamps)
    absolute = bool(len(stamps)) and float(stamps[0]) > EPOCH

    def at(row: int) -> None:
        kind: dict[str, Any] = {"timestamp" if absolute else "duration": float(stamps[row])}
        recording.set_time(STAMP, **kind)
        recording.set_time(FRAME, sequence=int(numbers[row]))

    times = {"timestamp" if absolute else "duration": stamps}
    for name in SCALARS:
        values = getattr(labels.curve, name)
        # A gap in a line is a NaN; where there is no number at all there is no line.
        if np.isfinite(values).any():
            index = [rr.TimeColumn(STAMP, **times), rr.TimeColumn(FRAME, sequence=numbers)]
            recording.send_columns(name, index, rr.Scalars.columns(scalars=values))
    _log_events(recording, episode, at)
    with_picture = _log_pictures(recording, episode, options, at, counts, on_progress)
    counts.episodes += 1
    counts.frames += len(labels)
    counts.pictures += with_picture


def _log_events(recording: rr.RecordingStream, episode: LabelledEpisode, at: Callable[[int], None]) -> None:
    """Where the episode begins, where the subgoal changes, where the status does."""
    rr = need_rerun()
    labels = episode.labels
    if not len(labels):
        return
    at(0)
    goal = f", goal {episode.goal}" if episode.goal else ""
    recording.log(EVENTS, rr.TextLog(f"{episode.name}: {len(labels)} frames{goal}", level="INFO"))
    subgoals = labels.curve.subgoal_index
    for row in (np.flatnonzero(np.diff(subgoals)) + 1).tolist():
        at(row)
        count = int(labels.curve.subgoal_count[row])
        recording.log(EVENTS, rr.TextLog(f"subgoal {int(subgoals[row]) + 1} of {count}", level="INFO"))
    for row in [0, *(np.flatnonzero(np.diff(labels.status)) + 1).tolist()]:
        at(row)
        recording.log(STATUS, rr.StateChange(state=_status(int(labels.status[row])).replace("_", " ")))


def _log_pictures(
    recording: rr.RecordingStream,
    episode: LabelledEpisode,
    options: LogOptions,
    at: Callable[[int], None],
    counts: LogCounts,
    on_progress: Callable[[int, int], None] | None,
) -> int:
    """Logs the images; gives the number of those that could be read."""
    rr = need_rerun()
    total, logged, problem = len(episode.labels), 0, ""
    target = episode.goal_picture() if options.overlay else None
    try:
        with episode.open_frames() as frames:
            if len(frames) < total:
                problem = f"the video has {len(frames)} frames; it has changed, label it again"
            for row in range(min(total, len(frames))):
                try:
                    frame = frames[row]
                except ValueError as error:
                    problem = problem or str(error)
                    continue
                at(row)
                small = shrink(frame, options.max_side)
                recording.log(CAMERA, rr.EncodedImage(contents=_jpeg(small), media_type="image/jpeg"))
                if options.overlay:
                    drawn = shrink(_overlay(frame, episode, row, target), options.max_side)
                    recording.log(OVERLAY, rr.EncodedImage(contents=_jpeg(drawn), media_type="image/jpeg"))
                logged += 1
                if on_progress is not None:
                    on_progress(row + 1, total)
    except (ValueError, OSError) as error:
        problem = problem or str(error)
    if problem and counts.problems is not None:
        counts.problems.append(f"{episode.name}: {total - logged} of {total} frames have no picture ({problem})")
    return logged


def _overlay(frame: Frame, episode: LabelledEpisode, row: int, target: Frame | None) -> Frame:
    curve = episode.labels.curve
    return draw_overlay(
        frame,
        reward=float(curve.reward[row]),
        progress=float(curve.progress[row]),
        value=float(curve.value[row]),
        subgoal_index=int(curve.subgoal_index[row]),
        subgoal_count=int(curve.subgoal_count[row]),
        status=_status(int(episode.labels.status[row])),
        target=target,
    )


def shrink(frame: Frame, max_side: int) -> Frame:
    """A frame whose longer side is `max_side` pixels at most, its shape kept."""
    height, width = frame.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _jpeg(frame: Frame) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _status(number: int) -> str:
    return Status(number).name.lower() if number in set(Status) else f"status {number}"


def _rgb(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
