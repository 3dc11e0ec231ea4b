"""One way to open a video, wherever it is kept: a file, a folder of images, a bag, a LeRobotDataset."""

from __future__ import annotations

import re
from pathlib import Path

from v2r_core.video.video import Video, VideoError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif")
BAG_SUFFIXES = (".mcap", ".db3")
DEFAULT_FOLDER_FPS = 10.0


def open_video(path: str | Path, *, fps: float = DEFAULT_FOLDER_FPS, lean: bool = False) -> Video:
    """Opens any source of frames.

    Args:
        path: one of
            * a video file (mp4, webm, mkv, avi, mov, gif);
            * a folder of images (png, jpg, jpeg, bmp, webp) in natural order: `2.png` before `10.png`;
            * a rosbag2 folder, or one of its files (mcap, db3), with `:/topic` behind it if it has several image
              topics, e.g. `recordings/run1:/camera/image_raw`;
            * an episode of a LeRobotDataset v3: its folder, `#` and the number, and `/camera` behind that if it has
              several, e.g. `datasets/pick#3/observation.images.top`.
        fps: frame rate that a folder of images is given, in frames/s; the other sources know theirs.
        lean: decode a video file in one thread and keep no frame: for many open videos, or many processes.

    Raises:
        FileNotFoundError: nothing there.
        VideoError: not a source of frames, or a damaged one.
    """
    whole = Path(path).expanduser()
    if (episode := split_episode(whole)) is not None:
        from v2r_core.video.lerobot import LeRobotFolder  # noqa: PLC0415 (pydantic, which most callers do not need)

        folder, number, camera = episode
        return LeRobotFolder.open(folder).video(number, camera, lean=lean)
    file, topic = split_topic(whole)
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file or folder")
    suffix = file.suffix.lower()
    is_bag = suffix in BAG_SUFFIXES if file.is_file() else is_bag_folder(file)
    if topic is not None and not is_bag:
        raise VideoError(f"{file}: topic {topic!r} given, but this is no rosbag2; leave the topic away")
    # The readers are imported when one is needed: PyAV and rosbags take longer to load than most callers to run.
    if is_bag:
        from v2r_core.video.bag import BagVideo  # noqa: PLC0415

        return BagVideo(file, topic)
    if file.is_file() and suffix not in VIDEO_SUFFIXES:
        known = ", ".join((*VIDEO_SUFFIXES, *BAG_SUFFIXES))
        raise VideoError(f"{file}: extension {suffix!r} is not known; give one of {known}, or a folder of images")
    from v2r_core.video.files import ImageFolder, VideoFile  # noqa: PLC0415

    if not file.is_file():
        return ImageFolder(file, fps)
    return VideoFile(file, threads=1, kept_bytes=0) if lean else VideoFile(file)


def split_topic(path: Path) -> tuple[Path, str | None]:
    """Takes `:/topic` off, but not off a path that exists: a file name may have colons itself."""
    head, colon, topic = str(path).rpartition(":")
    if not colon or not topic.startswith("/") or path.exists():
        return path, None
    return Path(head), topic


def split_episode(path: Path) -> tuple[Path, int, str | None] | None:
    """Folder, episode and camera if an episode of a LeRobotDataset is meant.

    Raises:
        VideoError: a LeRobotDataset is meant, but no episode of it, or an episode of what is none.
    """
    if path.exists():
        if is_lerobot(path):
            raise VideoError(
                f"{path}: is a LeRobotDataset; say which episode, and camera if there are several: {path}#0"
            )
        return None
    head, mark, rest = str(path).rpartition("#")
    folder = Path(head)
    if not mark or not folder.is_dir():
        return None
    choice = re.fullmatch(r"([0-9]+)(?:/([^/]+))?", rest)
    if not is_lerobot(folder):
        if choice is None:
            return None
        raise VideoError(f"{folder}: episode {rest!r} given, but this is no LeRobotDataset; leave `#{rest}` away")
    if choice is None:
        raise VideoError(f"{folder}: {rest!r} names no episode of this LeRobotDataset; write {folder}#0, or #0/camera")
    return folder, int(choice[1]), choice[2]


def is_lerobot(folder: Path) -> bool:
    """Whether it is the folder of a LeRobotDataset, of whatever version."""
    return (folder / "meta" / "info.json").is_file()


def is_bag_folder(folder: Path) -> bool:
    """Whether a folder is a rosbag2, or has files of one."""
    return (folder / "metadata.yaml").is_file() or any(file.suffix in BAG_SUFFIXES for file in folder.iterdir())
