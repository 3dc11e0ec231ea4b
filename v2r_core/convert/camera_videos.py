"""Which videos of a folder are the cameras of one episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from v2r_core.convert.parts import IMAGES, CameraNames, ConvertError, Wishes
from v2r_core.label.video_sources import FoundSources, natural_key
from v2r_core.video.source import VIDEO_SUFFIXES


@dataclass(frozen=True)
class CameraVideos:
    """One episode.

    Attributes:
        name: of the episode, the same for all its cameras.
        videos: paths by camera.
        names: names of the videos in their folder, by camera.
    """

    name: str
    videos: Mapping[str, Path]
    names: Mapping[str, str]

    def complete(self, cameras: Sequence[str]) -> dict[str, Path]:
        """The video of each camera, in their order.

        Raises:
            ConvertError: one is missing.
        """
        if missing := [camera for camera in cameras if camera not in self.videos]:
            there = ", ".join(self.videos) or "others"
            raise ConvertError(
                f"{self.name}: no video of {', '.join(missing)}, only of {there}; name the cameras that all episodes "
                "have"
            )
        return {camera: self.videos[camera] for camera in cameras}


def group_videos(found: FoundSources, wishes: Wishes) -> tuple[list[str], list[CameraVideos]]:
    """Groups the videos of a folder by episode.

    Args:
        found: the videos.
        wishes: `cameras`, where the name of the camera is: "folders": CAMERA/EPISODE.mp4, as `v2r convert` writes them;
            "files": EPISODE/CAMERA.mp4. An episode may lie in folders of folders in both. `images`: cameras to take,
            the first one with the clock; none: all, in natural order.

    Returns:
        The cameras, and the episodes in natural order; an episode may lack a camera.

    Raises:
        ConvertError: a video lies where no name of a camera is, two are of one camera, or no such camera.
    """
    assert wishes.cameras is not None
    videos: dict[str, dict[str, tuple[Path, str]]] = {}
    for source in found.sources:
        camera, episode = _split(source.name, wishes.cameras)
        there = videos.setdefault(episode, {})
        if camera in there:
            raise ConvertError(
                f"{found.root}: {there[camera][1]} and {source.name} are of the same camera and episode; remove one"
            )
        there[camera] = source.path, source.name
    known = sorted({camera for there in videos.values() for camera in there}, key=natural_key)
    cameras = [name.removeprefix(IMAGES) for name in wishes.images] or known
    if missing := [camera for camera in cameras if camera not in known]:
        raise ConvertError(f"{found.root}: no camera {missing[0]!r}; its cameras are {', '.join(known)}")
    episodes = []
    for name in sorted(videos, key=natural_key):
        taken = {camera: video for camera, video in videos[name].items() if camera in cameras}
        paths = {camera: path for camera, (path, _) in taken.items()}
        episodes.append(CameraVideos(name, paths, {camera: each for camera, (_, each) in taken.items()}))
    return cameras, episodes


def _split(name: str, cameras: CameraNames) -> tuple[str, str]:
    """Camera and episode of a video."""
    path = PurePosixPath(name)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        path = path.with_suffix("")
    if len(path.parts) < 2:
        where = "CAMERA/EPISODE.mp4" if cameras == "folders" else "EPISODE/CAMERA.mp4"
        raise ConvertError(f"{name}: {where} expected; put it into a folder, or convert it without --cameras")
    if cameras == "files":
        return path.name, path.parent.as_posix()
    return path.parts[0], PurePosixPath(*path.parts[1:]).as_posix()
