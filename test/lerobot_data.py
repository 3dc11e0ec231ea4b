"""Small LeRobotDatasets v3 for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clip_writer import numbered
from PIL import Image
from synthetic_video import moving_square

from v2r_core.label.lerobot_tables import FileLimits
from v2r_core.label.lerobot_writer import LeRobotWriter
from v2r_core.video.lerobot_schema import Feature

TOP = "observation.images.top"
WRIST = "observation.images.wrist"
SHAPE = (48, 64, 3)
FPS = 10
LENGTHS = (12, 1, 9, 15)
FEATURES = {
    "observation.state": Feature(dtype="float32", shape=(2,), names=["x", "y"]),
    "action": Feature(dtype="float32", shape=(1,)),
    "grid": Feature(dtype="float64", shape=(2, 3)),
    "note": Feature(dtype="string", shape=(1,)),
    "next.done": Feature(dtype="bool", shape=(1,)),
}
Frames = Callable[[int, int], list[np.ndarray]]


def numbered_frames(episode: int, length: int) -> list[np.ndarray]:
    """Frame i of an episode carries the number 50 * episode + i."""
    return [numbered(50 * episode + index, *SHAPE[:2]) for index in range(length)]


def square_frames(episode: int, length: int) -> list[np.ndarray]:
    """The square walks, in every episode somewhat brighter."""
    return [np.minimum(frame + 5 * episode, 255).astype(np.uint8) for frame in moving_square(length, *SHAPE[:2])]


def numbers(episode: int, index: int, length: int) -> dict[str, object]:
    """All features of a frame but the cameras."""
    return {
        "observation.state": np.array([index, episode], np.float32),
        "action": np.float32(index / 7),
        "grid": np.arange(6).reshape(2, 3) + 10.0 * index,
        "note": f"frame {index}",
        "next.done": index == length - 1,
    }


def write_dataset(
    folder: Path,
    lengths: Sequence[int] = LENGTHS,
    frames: Frames = numbered_frames,
    cameras: Sequence[str] = (TOP,),
    limits: FileLimits | None = None,
    fps: float = FPS,
) -> Path:
    """Writes a dataset with our writer; every second episode has another task."""
    features = {
        camera: Feature(dtype="video", shape=SHAPE, names=["height", "width", "channels"]) for camera in cameras
    }
    with LeRobotWriter(folder, fps, features | FEATURES, "toy", limits=limits) as writer:
        for episode, length in enumerate(lengths):
            for index, frame in enumerate(frames(episode, length)):
                writer.add_frame(dict.fromkeys(cameras, frame) | numbers(episode, index, length))
            writer.save_episode(f"task {episode % 2}")
        writer.finish()
    return folder


def add_image_camera(folder: Path, camera: str, frames: Frames = numbered_frames) -> None:
    """Gives a dataset a camera whose frames are PNG files in its Parquet file, in row groups of five rows."""
    for path in sorted((folder / "data").glob("*/*.parquet")):
        table = pq.read_table(path, partitioning=None)
        lengths = dict(zip(*np.unique(table["episode_index"].to_numpy(), return_counts=True), strict=True))
        cells = [png(frame) for episode, length in lengths.items() for frame in frames(int(episode), int(length))]
        column = pa.array(
            [{"bytes": cell, "path": None} for cell in cells], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        record = json.loads(table.schema.metadata[b"huggingface"])
        record["info"]["features"][camera] = {"_type": "Image"}
        table = table.append_column(camera, column).replace_schema_metadata(
            {b"huggingface": json.dumps(record).encode()}
        )
        pq.write_table(table, path, row_group_size=5)
    edit_info(folder, lambda info: info["features"].update({camera: {"dtype": "image", "shape": SHAPE, "names": None}}))


def png(frame: np.ndarray) -> bytes:
    """The frame as a PNG file."""
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG")
    return data.getvalue()


def edit_info(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes meta/info.json."""
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def edit_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Changes a Parquet file."""
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
