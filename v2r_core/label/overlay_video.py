"""A labelled video as a video: every frame with its reward, progress and value and the subgoal it works towards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from v2r_core.deploy.goals import GOAL_SUFFIX, is_image, read_goal_image
from v2r_core.overlay import draw_overlay
from v2r_core.rewards.goal import Goal
from v2r_core.rewards.reward import RewardCurve
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video
from v2r_core.video.writing import write_video


def write_overlay(
    path: Path,
    frames: Iterable[Frame],
    curve: RewardCurve,
    status: Sequence[str],
    targets: Sequence[Frame],
    fps: float,
) -> None:
    """Writes an H.264 video.

    Args:
        path: the mp4 to write.
        frames: uint8 RGB (H, W, 3), one a sample.
        curve: the T samples.
        status: (T,) names; anything but "ok" and "warming_up" is shown in red.
        targets: pictures of the subgoals in order, for the corner; empty: no picture.
        fps: frames per second; see `write_video`.
    """

    def pictures() -> Iterator[Frame]:
        for i, frame in enumerate(frames):
            stage, count = int(curve.subgoal_index[i]), int(curve.subgoal_count[i])
            # A reward without subgoals pursues the last one of a goal that has some.
            pursued = targets[-max(1, count) :]
            yield draw_overlay(
                frame,
                reward=float(curve.reward[i]),
                progress=float(curve.progress[i]),
                value=float(curve.value[i]),
                subgoal_index=stage,
                subgoal_count=count,
                status=status[i],
                target=pursued[min(stage, len(pursued) - 1)] if pursued else None,
            )

    write_video(path, pictures(), fps)


def goal_pictures(source: str, goal: Goal) -> list[Frame]:
    """A picture of each subgoal of a goal that was read from a file: see `read_goal`; none for a saved goal."""
    file = Path(source).expanduser()
    if file.suffix.lower() == GOAL_SUFFIX:
        return []
    if is_image(file):
        return [read_goal_image(file)]
    with open_video(source) as demonstration:
        return subgoal_pictures(demonstration, goal)


def subgoal_pictures(video: Video, goal: Goal) -> list[Frame]:
    """Those frames of a video that are the subgoals of the goal that was made out of it."""
    return [video[int(index)] for index in goal.milestone_frames]
