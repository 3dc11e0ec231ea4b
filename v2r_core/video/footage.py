"""Many videos as one material: finding them, indexing those that can be read, reading frames out of any of them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from v2r_core.video.frame_cache import open_cached
from v2r_core.video.resize import Frame
from v2r_core.video.source import BAG_SUFFIXES, VIDEO_SUFFIXES, is_lerobot, open_video, split_episode
from v2r_core.video.video import IMAGE_SUFFIXES, Video, VideoError

if TYPE_CHECKING:
    from v2r_core.video.lerobot import LeRobotFolder

KEPT_OPEN = 64
"""Videos that a reader keeps open, each with its index and its decoder."""

_NAMED = 5
"""Unreadable sources that an error names one by one."""


@dataclass(frozen=True)
class Source:
    """A video that can be read.

    Attributes:
        path: what `open_video` takes.
        frames: number of frames.
        height: of its frames in pixels.
        width: of its frames in pixels.
        fps: frames a second; NaN where a single frame has none.
    """

    path: str
    frames: int
    height: int
    width: int
    fps: float = float("nan")


@dataclass(frozen=True)
class CacheFolder:
    """Where decoded frames are kept.

    Attributes:
        folder: made when it is missing.
        side: longest that the shorter side of a kept frame is, in pixels.
    """

    folder: Path
    side: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"cache_side is {self.side}, at least 1 pixel expected")


def find_videos(paths: Sequence[str | Path]) -> list[str]:
    """Finds all sources of frames, in an order that depends on the names alone.

    Args:
        paths: files, which are taken as they are; bags with a topic (`run1:/camera`); episodes of LeRobotDatasets
            (`pick#3`, `pick#3/camera`); and folders. A folder is searched with all that is below it for video files,
            rosbag2 folders and files, folders of images, and LeRobotDatasets. Images beside videos are taken for
            thumbnails and left out, and so is what is hidden. Of a LeRobotDataset every episode is a source, once for
            each camera: `pick#3/camera`; of an episode without a camera all cameras are.

    Returns:
        What `open_video` takes: the given paths in their order, the content of a folder by name; each once.

    Raises:
        FileNotFoundError: a path does not exist.
        VideoError: nothing found; a LeRobotDataset that cannot be read, or has no such episode or camera; or a path
            that leads into one.
    """
    found: list[str] = []
    datasets = _Datasets()
    for given in paths:
        path = Path(given).expanduser()
        _refuse_inside_dataset(path)
        if path.is_dir():
            found.extend(_search(path, datasets))
        elif (episode := split_episode(path)) is not None:
            folder, number, camera = episode
            found.extend(_sources_of_episode(datasets[folder], number, camera))
        elif path.exists() or ":/" in str(path):
            found.append(str(path))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder; give video files or folders with videos in them")
    if not found:
        known = ", ".join((*VIDEO_SUFFIXES, *BAG_SUFFIXES))
        listed = ", ".join(str(path) for path in paths) or "no path"
        raise VideoError(f"{listed}: no video in it; give {known} files, folders of images, or folders with these")
    return list(dict.fromkeys(found))


class _Datasets(dict[Path, "LeRobotFolder"]):
    """LeRobotDatasets by their folders: the table of one is read once, and not for each of its episodes."""

    def __missing__(self, folder: Path) -> LeRobotFolder:
        from v2r_core.video.lerobot import LeRobotFolder  # noqa: PLC0415 (pydantic, which most callers do not need)

        self[folder] = dataset = LeRobotFolder.open(folder)
        return dataset


def _sources_of_episode(dataset: LeRobotFolder, number: int, camera: str | None = None) -> Iterator[str]:
    dataset.length(number)  # an episode that is not there is an error, and no video to skip
    chosen = dataset.cameras if camera is None and dataset.cameras else (dataset.choose_camera(camera),)
    return (f"{dataset.path}#{number}/{name}" for name in chosen)


def _refuse_inside_dataset(path: Path) -> None:
    """A video file of a LeRobotDataset v3 has many episodes one after the other, and none of their borders."""
    whole = path.absolute()
    inside = [folder.parent for folder in (whole, *whole.parents) if folder.name == "videos"]
    for folder in inside if path.exists() else ():
        # Only v3 has this folder: in older versions each episode is a file of its own.
        if is_lerobot(folder) and (folder / "meta" / "episodes").is_dir():
            raise VideoError(
                f"{path}: a part of the LeRobotDataset {folder}, whose video files hold many episodes each; "
                f"give {folder} for all of its episodes, or {folder}#0 for one"
            )


def _search(folder: Path, datasets: _Datasets) -> Iterator[str]:
    if is_lerobot(folder):
        dataset = datasets[folder]
        for number in range(dataset.episodes):
            yield from _sources_of_episode(dataset, number)
        return
    entries = sorted((entry for entry in folder.iterdir() if entry.name[0] != "."), key=lambda entry: entry.name)
    if any(entry.name == "metadata.yaml" for entry in entries):
        yield str(folder)
        return
    videos = [entry for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES + BAG_SUFFIXES and entry.is_file()]
    yield from map(str, videos)
    if not videos and any(entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file() for entry in entries):
        yield str(folder)
    for entry in entries:
        if entry.is_dir():
            yield from _search(entry, datasets)


def index_sources(
    paths: Sequence[str | Path], needed: int, cache: CacheFolder | None = None
) -> tuple[list[Source], list[tuple[str, str]]]:
    """Opens each source once and sorts out those that training can not use.

    Args:
        paths: what `open_video` takes.
        needed: frames that a source must have.
        cache: where their frames are kept, decoded now if they are not there yet.

    Returns:
        The usable sources, and path and reason of the others.

    Raises:
        VideoError: none is usable.
    """
    usable: list[Source] = []
    skipped: list[tuple[str, str]] = []
    open_source = _Opener(cache)
    for path in map(str, paths):
        try:
            with open_source(path) as video:
                height, width, _ = video[0].shape
                source = Source(path, len(video), height, width, video.fps)
        except (VideoError, OSError) as error:
            skipped.append((path, str(error)))
            continue
        if source.frames < needed:
            reason = f"{source.frames} frames, a clip needs {needed}; lower the frames or the stride of a clip"
            skipped.append((path, reason))
        else:
            usable.append(source)
    if not usable:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:_NAMED]) or "no path given"
        more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        raise VideoError(f"none of {len(skipped)} videos can be used: {reasons}{more}")
    return usable, skipped


class Reader:
    """Frames of many videos; a few of these stay open. Belongs to one process.

    Args:
        sources: the videos.
        cache: where their frames are kept, None to decode them every time.
    """

    def __init__(self, sources: Sequence[Source], cache: CacheFolder | None = None) -> None:
        self.sources = sources
        self._open_source = _Opener(cache)
        self._open: OrderedDict[int, Video] = OrderedDict()
        self._process = os.getpid()

    def __del__(self) -> None:
        # Left to the garbage collector, a decoder with its threads might stay until it meets a fork. What a forked
        # process has inherited it must not close: it would wait for threads that were not forked.
        if self._process == os.getpid():
            for video in self._open.values():
                video.close()

    def frame(self, source: int, index: int) -> Frame:
        """Frame `index` of source number `source`, uint8 RGB (H, W, 3), often read-only.

        Raises:
            VideoError: it cannot be read.
            OSError: the file cannot be opened any more.
        """
        if source in self._open:
            self._open.move_to_end(source)
        else:
            self._open[source] = self._open_source(self.sources[source].path)
            if len(self._open) > KEPT_OPEN:
                self._open.popitem(last=False)[1].close()
        return self._open[source][index]


class _Opener:
    """Opens sources, decoded before or leanly."""

    def __init__(self, cache: CacheFolder | None) -> None:
        self._cache = cache
        self._datasets = _Datasets()

    def __call__(self, path: str) -> Video:
        if self._cache is not None:
            return open_cached(path, self._cache.folder, self._cache.side)
        if (episode := split_episode(Path(path).expanduser())) is not None:
            folder, number, camera = episode
            return self._datasets[folder].video(number, camera, lean=True)
        return open_video(path, lean=True)
