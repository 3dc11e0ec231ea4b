"""Which videos there are in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from v2r_core.video.source import BAG_SUFFIXES, VIDEO_SUFFIXES
from v2r_core.video.video import IMAGE_SUFFIXES

SET_FILE = "set.json"
DATASET_FILE = Path("meta") / "info.json"
_HALF_SUFFIX = ".partial"
_BAG_FILE = "metadata.yaml"


@dataclass(frozen=True)
class VideoSource:
    """One video.

    Attributes:
        path: absolute, what `open_video` takes.
        name: relative to the root of all videos, with /.
        is_bag: it is a rosbag2.
    """

    path: Path
    name: str
    is_bag: bool


@dataclass(frozen=True)
class FoundSources:
    """What there is to label.

    Attributes:
        root: folder in which all videos are.
        sources: in natural order of their names: `2.mp4` before `10.mp4`.
        left_out: what is not gone into, and why, by its path.
    """

    root: Path
    sources: list[VideoSource]
    left_out: dict[str, str] = field(default_factory=dict)


def find_sources(paths: Sequence[Path], skip: Path, root: Path | None = None) -> FoundSources:
    """Finds the videos that are meant by paths.

    A path is a video, or a folder that is searched to its last corner. In such a folder these are videos:
        * every video file;
        * a rosbag2, which has to have a single topic with images; files of bags in a folder without metadata.yaml are
          bags of their own, since nothing says that they belong together;
        * a folder with images that has neither videos nor folders in it. Images beside videos are taken for pictures
          of them and left out.
    Hidden entries, `skip`, folders that `v2r label` wrote (labelled videos, and copies that are not complete) and
    folders without access are passed over; so are LeRobotDatasets, whose video files hold many episodes each, and names
    that are no UTF-8.

    Args:
        paths: of videos or folders.
        skip: where labels go, which may lie in a folder of videos.
        root: names are relative to it; None: the only path if that is a folder of videos, else the folder that all
            paths have in common.

    Raises:
        FileNotFoundError: nothing has that name.
        ValueError: a path is a LeRobotDataset, `skip`, no video, or not below the root; or there is no video.
    """
    found: list[tuple[Path, bool]] = []
    left_out: dict[str, str] = {}
    tops = []
    search = _Search(skip.absolute(), left_out)
    for path in (Path(os.path.normpath(each.expanduser().absolute())) for each in paths):
        kind = _kind_given(path)
        if path.resolve() == skip.resolve():
            raise ValueError(f"{path} is to be read and written; give another folder for the labels")
        tops.append(path if kind == "folder" else path.parent)
        found += search.folder(path) if kind == "folder" else [(path, kind == "bag")]
    base = root or Path(os.path.commonpath(tops))
    sources = {}
    for path, is_bag in found:
        if _is_text(path):
            sources[path] = VideoSource(path, _name(path, base), is_bag)
        else:
            left_out[_printable(path)] = "its name is no UTF-8; rename it"
    if not sources:
        raise ValueError(
            f"{', '.join(map(str, paths))}: no video in it; {', '.join(VIDEO_SUFFIXES)} files, folders of images and "
            "rosbags are videos" + "".join(f"; left out is {path}: {why}" for path, why in left_out.items())
        )
    return FoundSources(base, sorted(sources.values(), key=lambda source: natural_key(source.name)), left_out)


def natural_key(name: str) -> tuple[list[list[tuple[int, int, str]]], str]:
    """Sort key of a path with / that takes digits as numbers, folder by folder."""
    parts = [re.findall(r"[0-9]+|[^0-9]+", part) for part in name.split("/")]
    return [[(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in part] for part in parts], name


def measure(path: Path) -> tuple[int, int]:
    """Bytes, and the newest time of change in ns since 1970, of a file, or of a folder and the files in it.

    Raises:
        OSError: it has gone.
    """
    files = [path] if path.is_file() else [path, *path.iterdir()]
    # A link that leads nowhere is no reason to fail.
    stats = [(file.is_file(), file.stat() if file.exists() else file.lstat()) for file in files]
    size = sum(stat.st_size for is_file, stat in stats if is_file)
    return size, max(stat.st_mtime_ns for _, stat in stats)


def is_bag(path: Path) -> bool:
    """Whether it is a rosbag2: its folder, or one of its files."""
    return _is_bag_file(path) if path.is_file() else (path / _BAG_FILE).is_file()


def is_dataset(path: Path) -> bool:
    """Whether it is the folder of a LeRobotDataset."""
    return (path / DATASET_FILE).is_file()


def _kind_given(path: Path) -> str:
    """bag, video or folder; for a path that somebody has named."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if is_bag(path):
        return "bag"
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"{path}: no video by its name; one of {', '.join((*VIDEO_SUFFIXES, *BAG_SUFFIXES))}")
        return "video"
    if is_dataset(path):
        raise ValueError(f"{path}: a LeRobotDataset; label it by itself")
    return "video" if _is_image_folder(_entries(path)) else "folder"


def _name(path: Path, root: Path) -> str:
    if not path.is_relative_to(root) or path == root:
        raise ValueError(f"{path} is not in {root}, whose labels these are; give another folder for the labels")
    return path.relative_to(root).as_posix()


def _is_text(path: Path) -> bool:
    """False for a name that no table or list could hold: bytes that are no UTF-8, e.g. of an old file system."""
    return _printable(path) == str(path)


def _printable(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", errors="replace")


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _is_bag_file(path: Path) -> bool:
    return path.suffix.lower() in BAG_SUFFIXES


def _is_image_folder(entries: Sequence[Path]) -> bool:
    if any(entry.is_dir() or entry.suffix.lower() in (*VIDEO_SUFFIXES, *BAG_SUFFIXES) for entry in entries):
        return False
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries)


class _Search:
    """Goes through folders, through each only once: links may lead back."""

    def __init__(self, skip: Path, left_out: dict[str, str]) -> None:
        self._skip = skip.resolve()
        self._left_out = left_out
        self._seen: set[Path] = set()

    def folder(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """Videos below a folder, and whether each is a bag."""
        real = folder.resolve()
        if real in self._seen or real == self._skip:
            return
        self._seen.add(real)
        try:
            entries = _entries(folder)
        except OSError as error:
            self._left_out[_printable(folder)] = error.strerror or str(error)
            return
        if (folder / _BAG_FILE).is_file():
            yield folder, True
        elif _is_image_folder(entries):
            yield folder, False
        elif (folder / DATASET_FILE).is_file():
            self._left_out[_printable(folder)] = "a LeRobotDataset; label it by itself"
        elif not (folder / SET_FILE).is_file() and not folder.name.endswith(_HALF_SUFFIX):
            for entry in entries:
                if entry.is_dir():
                    yield from self.folder(entry)
                elif _is_bag_file(entry) or entry.suffix.lower() in VIDEO_SUFFIXES:
                    yield entry, _is_bag_file(entry)
