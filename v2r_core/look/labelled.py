"""One way to open what is labelled: a rosbag2, a folder of videos, a LeRobotDataset, the table of one video."""

from __future__ import annotations

from pathlib import Path

from v2r_core.label.lerobot_copy import RECORD
from v2r_core.label.set_writer import LABELS, read_manifest, read_record
from v2r_core.label.table import read_labels
from v2r_core.label.video_sources import SET_FILE
from v2r_core.look.labelled_set import LabelledEpisode, LabelledSet, NotLabelledError
from v2r_core.video.source import BAG_SUFFIXES, VIDEO_SUFFIXES, open_video

TABLE_SUFFIX = ".parquet"


def open_labelled(path: str | Path) -> LabelledSet:
    """Opens what `v2r label` wrote, or a bag that a live reward node was recorded into.

    Args:
        path: one of
            * a rosbag2 with rewards: its folder or one of its files; `bag:/topic` chooses one of several reward topics,
              or the image topic;
            * the folder of labels of a folder of videos;
            * a labelled LeRobotDataset;
            * the .parquet file of one video.

    Raises:
        FileNotFoundError: nothing there.
        NotLabelledError: no labels there.
        ValueError: damaged labels; the message says which file and why.
    """
    file, topic = _split_topic(Path(path).expanduser())
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file or folder")
    if file.is_file() and file.suffix == TABLE_SUFFIX:
        return _one_table(file)
    if (file / SET_FILE).is_file():
        return _video_set(file)
    if (file / RECORD).is_file():
        from v2r_core.look.labelled_lerobot import lerobot_set  # noqa: PLC0415 (pyarrow)

        return lerobot_set(file)
    if _is_bag(file):
        from v2r_core.look.labelled_bag import bag_set  # noqa: PLC0415 (rosbags takes longer to load than to run)

        return bag_set(file, topic)
    what = "a video" if file.suffix.lower() in VIDEO_SUFFIXES else "nothing labelled"
    raise NotLabelledError(f"{file} is {what}; label it first: v2r label {file} --out LABELLED")


def _split_topic(path: Path) -> tuple[Path, str | None]:
    head, colon, topic = str(path).rpartition(":/")
    return (path, None) if not colon or path.exists() else (Path(head), f"/{topic}")


def _is_bag(file: Path) -> bool:
    if file.is_file():
        return file.suffix in BAG_SUFFIXES
    return (file / "metadata.yaml").is_file() or any(each.suffix in BAG_SUFFIXES for each in file.iterdir())


def _one_table(file: Path) -> LabelledSet:
    labels = read_labels(file)
    origin = labels.origin
    episode = LabelledEpisode(origin.name, labels, lambda: open_video(origin.source))
    about = _about(origin.model, origin.model_sha256, origin.reward, origin.kind)
    return LabelledSet(file, "videos", (origin.name,), about, lambda _: episode)


def _video_set(folder: Path) -> LabelledSet:
    try:
        head = read_record(folder)
    except ValueError as error:
        raise NotLabelledError(str(error)) from error
    assert head is not None  # its file was seen
    newest = read_manifest(folder)
    if head.kind == "bags":
        bags = ", ".join(sorted(name for name, line in newest.items() if line.state == "done")) or "none"
        raise NotLabelledError(f"{folder} holds labelled rosbags, give one of them; there are: {bags}")
    tables = {name: folder / LABELS / f"{name}{TABLE_SUFFIX}" for name, line in newest.items() if line.state == "done"}
    failed = {name: line.error or "no reason given" for name, line in newest.items() if line.state == "failed"}
    failed |= {name: f"{table} is gone; label again" for name, table in tables.items() if not table.is_file()}
    names = tuple(sorted(tables.keys() - failed.keys()))

    def read(place: int) -> LabelledEpisode:
        name = names[place]
        return LabelledEpisode(name, read_labels(tables[name]), lambda: open_video(Path(head.root) / name))

    about = _about(head.model, head.model_sha256, head.reward, head.reward_kind) | {"videos": head.root}
    return LabelledSet(folder, "videos", names, about, read, failed)


def _about(model: str, sha256: str, reward: str, kind: str) -> dict[str, str]:
    return {"model": model, "sha256 of the model": sha256, "reward": f"{reward} ({kind.replace('_', ' ')})"}
