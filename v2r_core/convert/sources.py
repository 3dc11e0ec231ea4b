"""What kind a recording is of, and what is in a folder of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from v2r_core.convert.camera_videos import CameraVideos, group_videos
from v2r_core.convert.parts import ConvertError, Source, Wishes
from v2r_core.label.set_writer import LABELS, SetRecord, read_manifest, read_record
from v2r_core.label.table import Labels, TableError, read_labels
from v2r_core.label.video_sources import FoundSources, find_sources, is_bag, is_dataset, measure, natural_key

Kind = Literal["lerobot", "videos", "bag"]
_OWN_FILES = (".mp4", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Item:
    """One bag, one video, or one episode of a dataset.

    Attributes:
        name: for people.
        open: opens it with wishes and a rate; None: its own rate.
        looks: what tells it from an earlier state of it: names, sizes and times of its files.
    """

    name: str
    open: Callable[[Wishes, int | None], Source]
    looks: Callable[[], object]


def find_items(path: Path, wishes: Wishes) -> tuple[Kind, list[Item]]:
    """What there is to convert, in natural order of the names: `2.mp4` before `10.mp4`.

    Args:
        path: see `ConvertTask.source`.
        wishes: which must fit the kind.

    Raises:
        FileNotFoundError: nothing there.
        ConvertError: nothing to convert, both bags and videos, or a wish that makes no sense for it.
        VideoError: a dataset that cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    kind, items = _find(path, wishes)
    of_bags = ("states", "actions", "features", "reward_topic", "task_topic", "episode_topic", "gap", "max_age")
    if kind != "bag" and (wrong := [name for name in of_bags if getattr(wishes, name) not in ((), None)]):
        raise ConvertError(f"{path}: {', '.join(wrong)} are wishes for bags, and this is {kind}; leave them away")
    if kind != "videos" and wishes.cameras is not None:
        raise ConvertError(f"{path}: cameras={wishes.cameras} is for videos, and this is {kind}; leave it away")
    return kind, items


def overlaps(source: Path, out: Path, to: Kind, force: bool) -> None:
    """Refuses to write where something is that must stay.

    Args:
        source: stays as it is.
        out: what is to be written.
        to: its kind.
        force: whether it may be replaced.

    Raises:
        ConvertError: one is in the other.
        FileExistsError: it is there and may not be replaced, or is not what `v2r convert` would write.
    """
    ours, theirs = out.resolve(), source.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise ConvertError(f"{out} and {source} overlap, and the source has to stay as it is; give another name")
    if not out.exists():
        return
    if not force:
        raise FileExistsError(f"{out} exists; give another name, or --force to replace it")
    if to == "videos":
        files = [file for file in out.rglob("*") if not file.is_dir()] if out.is_dir() else [out]
        same = out.is_dir() and all(file.suffix in _OWN_FILES or file.name == ".lock" for file in files)
    else:
        same = is_dataset(out) if to == "lerobot" else out.is_dir() and is_bag(out)
    if not same:
        raise FileExistsError(f"{out} exists and is no {to}, so it is not replaced; give another name")


def _find(path: Path, wishes: Wishes) -> tuple[Kind, list[Item]]:
    if is_dataset(path):
        return "lerobot", _dataset(path)
    record = read_record(path) if path.is_dir() else None
    if record is not None:
        return _labelled(path, record, wishes)
    if is_bag(path):
        return "bag", [_bag(path, path.name)]
    try:
        found = find_sources([path], Path("/dev/null"))
    except ValueError as error:
        raise ConvertError(f"{path}: neither a rosbag2, nor a LeRobotDataset, nor videos ({error})") from error
    bags = [each for each in found.sources if each.is_bag]
    if bags and len(bags) < len(found.sources):
        videos = next(each for each in found.sources if not each.is_bag)
        raise ConvertError(
            f"{path}: has both bags ({bags[0].name}) and videos ({videos.name}); convert each kind by itself"
        )
    if bags:
        return "bag", [_bag(each.path, each.name) for each in bags]
    if wishes.cameras is not None:
        return "videos", _episodes(found, wishes, {})
    return "videos", [_video(each.path, each.name, None) for each in found.sources]


def _labelled(path: Path, record: SetRecord, wishes: Wishes) -> tuple[Kind, list[Item]]:
    """What `v2r label` has finished in a folder."""
    done = [name for name, line in read_manifest(path).items() if line.state == "done"]
    names = sorted(done, key=natural_key)
    if record.kind == "bags":
        return "bag", [_bag(path / name, name) for name in names]
    root, tables = Path(record.root), {name: path / LABELS / f"{name}.parquet" for name in names}
    if wishes.cameras is not None:
        return "videos", _episodes(find_sources([root], path), wishes, tables)
    return "videos", [_video(root / name, name, tables[name]) for name in names]


def _bag(path: Path, name: str) -> Item:
    def open_it(wishes: Wishes, fps: int | None) -> Source:
        from v2r_core.convert.bag_source import BagSource  # noqa: PLC0415 (rosbags, which the others do not need)

        return BagSource(path, wishes, fps)

    return Item(name, open_it, lambda: _looks(path))


def _video(path: Path, name: str, table: Path | None) -> Item:
    def open_it(wishes: Wishes, fps: int | None) -> Source:
        from v2r_core.convert.video_source import VideoSource  # noqa: PLC0415 (PyAV)

        return VideoSource(path, name, _labels(table), wishes, fps)

    return Item(name, open_it, lambda: _looks(path, table))


def _episodes(found: FoundSources, wishes: Wishes, tables: Mapping[str, Path]) -> list[Item]:
    """Videos of several cameras; labels are those of the first camera that has any."""
    cameras, episodes = group_videos(found, wishes)
    labelled = next((camera for camera in cameras if any(each.names.get(camera) in tables for each in episodes)), None)

    def item(episode: CameraVideos) -> Item:
        table = tables.get(episode.names.get(labelled, "")) if labelled is not None else None

        def open_it(wishes: Wishes, fps: int | None) -> Source:
            from v2r_core.convert.video_source import CamerasSource  # noqa: PLC0415 (PyAV)

            videos = episode.complete(cameras)
            if labelled is not None and table is None:
                raise ConvertError(f"{episode.name}: its video of {labelled} has no labels; label it again")
            return CamerasSource(episode.name, videos, labelled, _labels(table), wishes, fps)

        return Item(episode.name, open_it, lambda: (cameras, _looks(*episode.videos.values(), table)))

    return [item(episode) for episode in episodes]


def _labels(table: Path | None) -> Labels | None:
    try:
        return None if table is None else read_labels(table)
    except (TableError, FileNotFoundError) as error:
        raise ConvertError(str(error)) from error


def _dataset(path: Path) -> list[Item]:
    from v2r_core.convert.video_source import DatasetEpisode, open_dataset  # noqa: PLC0415 (PyAV)

    dataset = open_dataset(path)
    folder = dataset.folder
    meta = _looks(*sorted(file for file in (path / "meta").rglob("*") if file.is_file()))

    def episode(number: int) -> Item:
        files = [folder.data_file(number)]
        videos = [camera for camera in folder.cameras if folder.features[camera].dtype == "video"]
        files += [folder.video_file(number, camera) for camera in videos]
        return Item(
            f"{path.name}#{number}",
            lambda wishes, fps: DatasetEpisode(dataset, number, wishes, fps),
            lambda: (number, meta, _looks(*files)),
        )

    return [episode(number) for number in range(folder.episodes)]


def _looks(*paths: Path | None) -> list[object]:
    """Names, sizes and times of files and folders of files; one that has gone has only its name."""
    found: list[object] = []
    for path in paths:
        if path is None:
            continue
        found.append(str(path.resolve()))
        with suppress(OSError):
            found.append(measure(path))
    return found
