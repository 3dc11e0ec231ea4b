"""A goal out of a file: a saved goal, an image, or a demonstration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from v2r_core.deploy.cameras import PLACEHOLDER
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.executions import MARGIN, widened
from v2r_core.rewards.goal import MAX_NAME, Goal, goal_name, load_goal
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import IMAGE_SUFFIXES, Video

GOAL_SUFFIX = ".safetensors"
DIGITS = 8
"""Of a hash, hexadecimal: enough to tell a person's goals apart, and short enough to read."""
CHUNK = 1 << 20


class Together:
    """Videos of several cameras as one video of views; as long as the shortest."""

    def __init__(self, videos: Sequence[Video]) -> None:
        """`videos` are those of the cameras in their order, of the same moments."""
        self._videos = videos

    def __len__(self) -> int:
        return min(len(video) for video in self._videos)

    def __iter__(self) -> Iterator[tuple[Frame, ...]]:
        return zip(*self._videos, strict=False)


def file_goal_name(files: Sequence[Path]) -> str:
    """The name of a goal that is made of files: `demo.mp4 3fa9c1d2`.

    The digits are the first ones that `sha256sum` prints. So the name is the same wherever the file lies and whoever
    reads it, and another one for another file of that name.

    Args:
        files: one of each camera, which are hashed one after the other; the first one gives its name.

    Raises:
        OSError: one cannot be read.
    """
    return _content_name(files[0].name, (chunk for file in files for chunk in _chunks(file)))


def frames_goal_name(name: str, frames: Sequence[Frame]) -> str:
    """The name of a goal that is made of images without a file, uint8 (H, W, 3): `current_frame 3fa9c1d2`."""
    shapes = str([frame.shape for frame in frames]).encode()
    return _content_name(name, (shapes, *(np.ascontiguousarray(frame).data for frame in frames)))


def _content_name(name: str, content: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return f"{goal_name(name)[-(MAX_NAME - DIGITS - 1) :]} {digest.hexdigest()[:DIGITS]}"


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def read_goal(scorer: Scorer, path: str | Path, cameras: Sequence[str] = ("",)) -> Goal:
    """The goal that a file holds, or one file of each camera; named by `file_goal_name`.

    A folder or a bag, which is no single file, goes by the name of its video.

    Args:
        scorer: embeds frames.
        path: what `Goal.save` wrote, an image, or whatever `open_video` opens; images and videos of several cameras
            have `{camera}` where the camera's name belongs.
        cameras: names of the scorer's cameras.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither goal, image nor video, or not one for each camera.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() == GOAL_SUFFIX:
        return replace(load_goal(file), name=file_goal_name([file]))
    if len(cameras) > 1:
        return _goal_of_cameras(scorer, camera_files(path, cameras))
    if is_image(file):
        return scorer.goal_from_frames([read_goal_image(file)], file_goal_name([file]))
    with open_video(path) as demonstration:
        return scorer.goal_from_video(demonstration, _video_goal_name([file], demonstration))


def _video_goal_name(files: Sequence[Path], video: Video) -> str:
    return file_goal_name(files) if all(file.is_file() for file in files) else goal_name(video.name)


def camera_files(path: str | Path, cameras: Sequence[str]) -> list[str]:
    """The file of a goal for each camera, see `read_goal`; a saved goal is one for all.

    Raises:
        ValueError: several cameras and no `{camera}` in the name.
    """
    text = str(path)
    if len(cameras) < 2 or Path(text).suffix.lower() == GOAL_SUFFIX:
        return [text]
    if PLACEHOLDER not in text:
        raise ValueError(
            f"{text} is one file for {len(cameras)} cameras; write {PLACEHOLDER} where the camera's name belongs "
            f"({', '.join(cameras)})"
        )
    return [text.replace(PLACEHOLDER, camera) for camera in cameras]


def _goal_of_cameras(scorer: Scorer, paths: Sequence[str]) -> Goal:
    files = [Path(path).expanduser() for path in paths]
    images = [is_image(file) for file in files]
    if any(images) and not all(images):
        raise ValueError(f"{files[0].name}: an image for one camera and a video for another; give the same of each")
    if images[0]:
        view = tuple(read_goal_image(file) for file in files)
        return scorer.goal_from_frames([view], file_goal_name(files))
    with ExitStack() as stack:
        videos = [stack.enter_context(open_video(path)) for path in paths]
        return scorer.goal_from_video(Together(videos), _video_goal_name(files, videos[0]))


def with_executions(scorer: Scorer, goal: Goal, executions: Sequence[str | Path], margin: float = MARGIN) -> Goal:
    """A goal that knows from further executions what else still belongs to the task, see `rewards.executions`.

    Args:
        scorer: embeds frames, one camera.
        goal: made with it, out of a demonstration.
        executions: videos of the task done again, say with objects elsewhere.
        margin: see `widened`.

    Raises:
        ValueError: the goal has no demonstration or a very short one, or a video cannot be read.
    """
    embeddings = []
    for path in executions:
        with open_video(path) as video:
            embeddings.append(scorer.embed(video))
    made = widened(goal, embeddings, margin)
    return replace(made, name=goal_name(f"{made.name}, widened"))


def is_image(file: Path) -> bool:
    """True if the name says that it is an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()


def read_goal_image(file: Path) -> Frame:
    """A goal image, upright: uint8 RGB (H, W, 3).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such goal image")
    try:
        with Image.open(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise ValueError(f"{file}: not an image ({error}); give a PNG or JPEG") from error
