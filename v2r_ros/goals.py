"""Goal files: which may be opened, and how a goal is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from v2r_core.deploy.goals import GOAL_SUFFIX, Together, file_goal_name
from v2r_core.deploy.own_goal import read_goal_pictures
from v2r_core.deploy.stream import Scorer, SizedFrames, View
from v2r_core.overlay import small_target
from v2r_core.rewards.goal import Goal, goal_name, load_goal
from v2r_core.video import Video, VideoError, open_video
from v2r_core.video.pixels import ImageError, decode_compressed
from v2r_core.video.resize import Frame
from v2r_msgs.srv import SetGoal

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
VIDEO_SUFFIXES = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif"}
KNOWN_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {GOAL_SUFFIX}

Result = SetGoal.Response


class GoalError(ValueError):
    """A goal was refused.

    Attributes:
        result: the RESULT_ constant of v2r_msgs/SetGoal.
    """

    def __init__(self, result: int, message: str) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class MadeGoal:
    """A goal that is ready to be set.

    Attributes:
        goal: the goal.
        source: where it came from.
        targets: small pictures of its subgoals in their order, of the first camera, for the overlay; empty where there
            are none, as of a saved goal.
    """

    goal: Goal
    source: str
    targets: tuple[Frame, ...] = ()


class Wanted:
    """A video whose frames are read as long as somebody wants them."""

    def __init__(self, video: SizedFrames, check: Callable[[], object]) -> None:
        """`check` is called with each frame; what it raises ends the reading."""
        self._video, self._check = video, check

    def __len__(self) -> int:
        return len(self._video)

    def __iter__(self) -> Iterator[View]:
        for view in self._video:
            self._check()
            yield view


def nothing() -> None:
    """A check that always lets the work go on."""


def is_video(uri: str) -> bool:
    """True if the name says that it is a video file."""
    return Path(uri).suffix.lower() in VIDEO_SUFFIXES


def resolve_goal(uri: str, goals_dir: Path) -> Path:
    """The file that a URI names, if it may be opened.

    Args:
        uri: a name relative to `goals_dir`, or `package://PACKAGE/PATH` below that package's share folder.
        goals_dir: the only folder that plain names reach.

    Raises:
        GoalError: empty, absolute, leaving the folder (also through a link), of an unknown type, or not there.
    """
    if not uri or "\0" in uri:
        raise GoalError(Result.RESULT_INVALID_REQUEST, "uri is empty; give a file name relative to goals_dir")
    if uri.startswith("package://"):
        package, _, name = uri.removeprefix("package://").partition("/")
        try:
            root = Path(get_package_share_directory(package))
        except (PackageNotFoundError, ValueError) as error:
            raise GoalError(Result.RESULT_NOT_FOUND, f"no package {package!r} is installed") from error
    else:
        root, name = goals_dir, uri
    file = (root / name).resolve()
    if Path(name).is_absolute() or not file.is_relative_to(root.resolve()):
        raise GoalError(
            Result.RESULT_PATH_NOT_ALLOWED, f"{uri!r} is outside {root}; put the file there or change goals_dir"
        )
    if file.suffix.lower() not in KNOWN_SUFFIXES:
        known = ", ".join(sorted(KNOWN_SUFFIXES))
        text = f"{uri!r} is neither image nor video nor saved goal; known are {known}"
        raise GoalError(Result.RESULT_INVALID_IMAGE, text)
    if not file.is_file():
        raise GoalError(Result.RESULT_NOT_FOUND, f"no file {uri!r} in {root}")
    return file


def goal_from_files(
    scorer: Scorer,
    files: Sequence[Path],
    max_bytes: int,
    max_pixels: int,
    max_frames: int,
    subgoals: bool,
    check: Callable[[], object] = nothing,
) -> Goal:
    """Makes a goal of an image or of a demonstration video of each camera, or reads a saved one (`v2r goal`).

    Args:
        scorer: embeds the frames.
        files: what `resolve_goal` returned for each camera; all images or all videos.
        max_bytes: largest image file.
        max_pixels: largest image or video frame.
        max_frames: longest video.
        subgoals: split the demonstration into subgoals; needs a video. A saved goal has them or not.
        check: called with each frame of a video; what it raises ends the work.

    Returns:
        The goal, named by `file_goal_name`; for UVD without subgoals with `, end only` behind it.

    Raises:
        GoalError: it cannot be read, is too large, or has no subgoals to find.
    """
    if files[0].suffix.lower() == GOAL_SUFFIX:
        return _saved_goal(files[0], max_bytes)
    name = goal_name(files[0].name)
    images = [file.suffix.lower() in IMAGE_SUFFIXES for file in files]
    if any(images) and not all(images):
        raise GoalError(Result.RESULT_INVALID_REQUEST, f"{name}: an image for one camera and a video for another")
    if images[0] and subgoals:
        raise GoalError(Result.RESULT_INVALID_REQUEST, f"{name} is an image; subgoals need a video")
    try:
        if images[0]:
            view = tuple(_read_image(file, max_bytes, max_pixels) for file in files)
            return scorer.goal_from_frames([view], file_goal_name(files))
        with ExitStack() as stack:
            videos = [stack.enter_context(open_video(file)) for file in files]
            for file, video in zip(files, videos, strict=True):
                _check_video(file.name, video, max_pixels, max_frames)
            return scorer.goal_from_video(
                Wanted(Together(videos), check), _video_name(scorer, files, subgoals), subgoals
            )
    except (ImageError, VideoError, OSError) as error:
        raise GoalError(Result.RESULT_INVALID_IMAGE, f"{name}: {error}") from error


def _video_name(scorer: Scorer, files: Sequence[Path], subgoals: bool) -> str:
    name = file_goal_name(files)
    # The same video with its subgoals is another goal.
    return goal_name(f"{name}, end only") if scorer.reward_name == "uvd" and not subgoals else name


def goal_targets(
    goal: Goal, file: Path, max_bytes: int, max_pixels: int, check: Callable[[], object] = nothing
) -> tuple[Frame, ...]:
    """Small pictures of a goal's subgoals out of the file that it was made from, see `MadeGoal`.

    Args:
        goal: made by `goal_from_files`.
        file: that of the first camera.
        max_bytes: as there.
        max_pixels: as there.
        check: called before each frame of a video; what it raises leaves the pictures away.

    Returns:
        One a subgoal; none for a saved goal, and where the file can no longer be read: the goal holds without them.
    """
    suffix = file.suffix.lower()
    if suffix == GOAL_SUFFIX:
        return ()
    try:
        if suffix in IMAGE_SUFFIXES:
            return (small_target(_read_image(file, max_bytes, max_pixels)),)
        with open_video(file) as video:
            pictures = []
            for number in goal.milestone_frames:
                check()
                pictures.append(small_target(video[int(number)]))
            return tuple(pictures)
    except (GoalError, ImageError, VideoError, OSError, IndexError):
        return ()


def bundle_targets(folder: Path, goal: Goal) -> tuple[Frame, ...]:
    """Small pictures of the subgoals of a bundle's own goal, see `read_goal_pictures`."""
    return tuple(map(small_target, read_goal_pictures(folder, goal)))


def _saved_goal(file: Path, max_bytes: int) -> Goal:
    if (size := file.stat().st_size) > max_bytes:
        raise GoalError(Result.RESULT_INVALID_IMAGE, f"{file.name} has {size} bytes; {max_bytes} are accepted")
    try:
        return replace(load_goal(file), name=file_goal_name([file]))
    except (ValueError, OSError) as error:
        raise GoalError(Result.RESULT_INVALID_IMAGE, str(error)) from error


def _read_image(file: Path, max_bytes: int, max_pixels: int) -> Frame:
    if (size := file.stat().st_size) > max_bytes:
        raise GoalError(Result.RESULT_INVALID_IMAGE, f"{file.name} has {size} bytes; {max_bytes} are accepted")
    return decode_compressed(file.read_bytes(), max_bytes, max_pixels)


def _check_video(name: str, video: Video, max_pixels: int, max_frames: int) -> None:
    if len(video) > max_frames:
        text = f"{name} has {len(video)} frames; max_goal_frames is {max_frames}"
        raise GoalError(Result.RESULT_INVALID_IMAGE, text)
    height, width, _ = video[0].shape
    if height * width > max_pixels:
        raise GoalError(Result.RESULT_INVALID_IMAGE, f"{name} is {width}x{height}; max_pixels is {max_pixels}")
