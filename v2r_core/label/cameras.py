"""The cameras of a recording: their names, and which of their images belong together, as a live node finds out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from v2r_core.deploy.cameras import UnpairedError, check_pair
from v2r_core.deploy.stream import Scorer
from v2r_core.label.messages import Header, read_header
from v2r_core.video.bag import image_frame
from v2r_core.video.pixels import ImageError
from v2r_core.video.resize import Frame
from v2r_core.video.video import VideoError

MOST_CAMERAS = 16
"""As many as v2r_msgs/Reward has components."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Camera:
    """A camera.

    Attributes:
        name: what a live node would call it; empty where there is only one.
        topic: of its images; None: the only one with images.
    """

    name: str
    topic: str | None


@dataclass(frozen=True)
class View:
    """What there is to see at one moment.

    Attributes:
        frames: prepared for the encoder, one of each camera, uint8 (C, S, S, 3); None if they cannot be used.
        problem: why they cannot; None if they can.
        size: height and width of the first camera's image before it was prepared; (0, 0) if it is none.
    """

    frames: Frame | None
    problem: Exception | None
    size: tuple[int, int]


def name_cameras(topics: Sequence[str]) -> tuple[Camera, ...]:
    """The cameras that topics are of, in their order; the first one sets the pace.

    A live node listens to NAME/image of its camera NAME. So a topic's name without its last part is the camera's, if
    that part begins with "image"; else, and where two cameras would have one name, it is the whole topic. TOPIC=NAME
    gives another name, for a live node whose topics are renamed.

    Args:
        topics: of images, each perhaps with a name behind it; none: the only one that there is.

    Raises:
        ValueError: two are the same, or a name cannot be a camera's.
    """
    pairs = [(name, topic) for topic, _, name in (given.partition("=") for given in topics)]
    each = [topic for _, topic in pairs]
    if twice := sorted({topic for topic in each if each.count(topic) > 1}):
        raise ValueError(f"--image-topic: {', '.join(twice)} twice; give each camera's topic once")
    if len(pairs) < 2:
        return (Camera("", each[0] if each else None),)
    if len(pairs) > MOST_CAMERAS:
        raise ValueError(f"--image-topic: {len(pairs)} topics; {MOST_CAMERAS} at most")
    names = [name or _short(topic) for name, topic in pairs]
    if len(set(names)) < len(names):
        names = [name or topic.strip("/") for name, topic in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"--image-topic: two cameras are called {max(names, key=names.count)}; give them other names")
    for name, topic in zip(names, each, strict=True):
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"--image-topic {topic}: {name!r} cannot be the name of a camera, which has letters, digits, _ and / "
                f"and {_LONGEST_NAME} characters at most; give it one as in {topic}=left"
            )
    return tuple(Camera(name, topic) for name, topic in zip(names, each, strict=True))


def _short(topic: str) -> str:
    path = topic.strip("/").removesuffix("/compressed")
    camera, _, last = path.rpartition("/")
    return camera if camera and last.startswith("image") else path


@dataclass
class _Other:
    """A camera that does not set the pace.

    Attributes:
        name: its name.
        heard: images so far.
        paired: images of the first camera that there was one of this camera for.
        nearest: seconds between the two that came nearest to being a pair.
        stamp_ns: of the newest image; None before the first.
    """

    name: str
    heard: int = 0
    paired: int = 0
    nearest: float = float("inf")
    stamp_ns: int | None = None
    _message: tuple[str, bytes] = ("", b"")
    _frame: Frame | ImageError | None = field(default=None, repr=False)

    def hear(self, msgtype: str, data: bytes) -> None:
        """Keeps the newest image as it came: it may never be asked for."""
        try:
            self.stamp_ns = read_header(data).stamp_ns
        except ValueError:  # a live node never hears of it
            return
        self.heard += 1
        self._message, self._frame = (msgtype, data), None

    def frame(self, scorer: Scorer) -> Frame:
        """The newest image, prepared; raises ImageError. A slower camera's is decoded once."""
        if self._frame is None:
            try:
                self._frame = scorer.prepare(decode(*self._message))
            except ImageError as error:
                self._frame = error
        if isinstance(self._frame, ImageError):
            raise self._frame
        return self._frame


class Viewer:
    """Puts an image of the first camera together with the newest one of every other.

    Told of every image in the order of recording. In memory is one image of each camera.
    """

    def __init__(self, scorer: Scorer, cameras: Sequence[Camera], max_skew: float) -> None:
        """Has seen nothing yet.

        Args:
            scorer: prepares frames.
            cameras: the one that sets the pace first.
            max_skew: see `check_pair`.
        """
        self._scorer, self._first, self._max_skew = scorer, cameras[0].name, max_skew
        self._others = [_Other(camera.name) for camera in cameras[1:]]
        self._views = 0

    def hear(self, camera: int, msgtype: str, data: bytes) -> None:
        """There was an image of a camera other than the first.

        Args:
            camera: its number, from 1.
            msgtype: its type.
            data: the serialised message.
        """
        self._others[camera - 1].hear(msgtype, data)

    def view(self, header: Header, msgtype: str, data: bytes) -> View:
        """What there is to see at an image of the first camera.

        Args:
            header: its header.
            msgtype: its type.
            data: the serialised message.
        """
        self._views += 1
        frames, size = [], (0, 0)
        problem: Exception | None = None
        try:
            pixels = decode(msgtype, data)
            size = (pixels.shape[0], pixels.shape[1])
            frames.append(self._scorer.prepare(pixels))
        except ImageError as error:
            problem = error
        for other in self._others:
            try:
                self._check(other, header.stamp_ns)
                if problem is None:
                    frames.append(other.frame(self._scorer))
            except (ImageError, UnpairedError) as error:
                problem = problem or error
        return View(None if problem else np.stack(frames), problem, size)

    def check_all_paired(self) -> None:
        """To be called at the end.

        Raises:
            VideoError: there are images, but none for which a camera had one of about the same time.
        """
        for other in self._others:
            if self._views and not other.paired:
                near = f"the nearest came {other.nearest:.3f} s apart" if other.heard else "there is no message"
                raise VideoError(
                    f"camera {other.name!r}: none of its {other.heard} images lies within {self._max_skew:g} s of one "
                    f"of {self._first!r} ({near}); leave the camera away, synchronise the clocks and record again, or "
                    "raise --max-camera-skew"
                )

    def _check(self, other: _Other, first_ns: int) -> None:
        if other.stamp_ns is not None:
            other.nearest = min(other.nearest, abs(other.stamp_ns - first_ns) * 1e-9)
        check_pair(other.name, other.stamp_ns, self._first, first_ns, self._max_skew)
        other.paired += 1


def decode(msgtype: str, data: bytes) -> Frame:
    """The pixels, uint8 RGB (H, W, 3), of a serialised image message; raises ImageError, also where it is damaged."""
    try:
        return image_frame(data, msgtype)
    except ImageError:
        raise
    except Exception as error:  # a damaged message makes the deserialiser raise errors of many types
        raise ImageError(f"no {msgtype}: {error}") from error
