"""Writes a LeRobotDataset v3 from scratch, without the `lerobot` package and without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from v2r_core.label.lerobot_camera import CameraWriter
from v2r_core.label.lerobot_stats import Stats, column_stats, flat_stats, merge_stats
from v2r_core.label.lerobot_tables import (
    MEGABYTE,
    STATS,
    TASKS,
    FileLimits,
    ParquetFiles,
    add_features,
    arrow_column,
    arrow_field,
    write_json,
    write_tasks,
)
from v2r_core.label.partial import PartialFolder
from v2r_core.video.lerobot_schema import CODEBASE_VERSION, DATA_PATH, EPISODES_PATH, INFO, VIDEO_PATH, Feature

_EPISODES_AT_ONCE = 32
"""Rows of the table of episodes that wait in memory, some ten kilobytes each."""


COUNTERS: Mapping[str, Feature] = {
    "timestamp": Feature(dtype="float32", shape=(1,)),
    "frame_index": Feature(dtype="int64", shape=(1,)),
    "episode_index": Feature(dtype="int64", shape=(1,)),
    "index": Feature(dtype="int64", shape=(1,)),
    "task_index": Feature(dtype="int64", shape=(1,)),
}
"""What every dataset has; the writer fills it in."""


class LeRobotWriter:
    """A dataset in the making, to be used in a `with` block. Not thread-safe.

    Frames are encoded as they come; what waits in memory is the numbers of one episode. The dataset appears under its
    name in `finish`; a writer that is left without it leaves nothing.

        with LeRobotWriter(folder, 30, {"observation.images.top": Feature(dtype="video", shape=(480, 640, 3))}) as out:
            for frame in frames:
                out.add_frame({"observation.images.top": frame})
            out.save_episode("push the block")
            out.finish()
    """

    def __init__(
        self,
        folder: Path,
        fps: float,
        features: Mapping[str, Feature],
        robot_type: str | None = None,
        *,
        force: bool = False,
        limits: FileLimits | None = None,
    ) -> None:
        """Checks what is to be written.

        Args:
            folder: of the dataset.
            fps: frames a second; frame i of an episode has the timestamp i / fps.
            features: what every frame has besides `COUNTERS`, by name; cameras are "video", (H, W, 3), with even sides.
            robot_type: for the record.
            force: replace the folder if it is there.
            limits: of files; None: those of LeRobot.

        Raises:
            ValueError: fps, a name, a type or a shape that cannot be written.
        """
        if not 0 < fps < math.inf:
            raise ValueError(f"{folder}: fps is {fps}, a positive number of frames per second expected")
        for name, feature in features.items():
            _check_feature(name, feature)
        self._fps = fps
        self._own = dict(features)
        self._features = {**features, **COUNTERS}
        self._robot_type = robot_type
        self._limits = limits = limits or FileLimits()
        self._partial = PartialFolder(folder, force)
        self._root = self._partial.product
        most = limits.video_files_size_in_mb * MEGABYTE
        self._cameras = {
            name: CameraWriter(self._root, name, fps, limits.chunks_size, most)
            for name, feature in features.items()
            if feature.is_camera
        }
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._tasks: dict[str, int] = {}
        self._stats: dict[str, Stats | None] = {}
        self._episodes = self._frames = self._in_episode = 0
        self._data = ParquetFiles(self._root, DATA_PATH, limits)
        self._places = ParquetFiles(self._root, EPISODES_PATH, limits)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """Makes the folder, under a name that is not the final one.

        Raises:
            FileExistsError: the folder is there already, or another writer is at work on it.
        """
        self._partial.__enter__()
        self._root.mkdir()
        return self

    def add_frame(self, frame: Mapping[str, Any]) -> None:
        """Adds a frame to the episode.

        Args:
            frame: a value for every feature: uint8 RGB (H, W, 3) of a camera, an array of the feature's shape, a plain
                number for the shape (1,), or a str.

        Raises:
            ValueError: a feature is missing, unknown, or of another type or shape; nothing was added then.
        """
        if set(frame) != set(self._own):
            missing, unknown = sorted(set(self._own) - set(frame)), sorted(set(frame) - set(self._own))
            raise ValueError(f"frame {self._in_episode}: missing are {missing}, unknown are {unknown}")
        values = {name: _checked(name, feature, frame[name]) for name, feature in self._own.items()}
        for name, value in values.items():
            if name in self._cameras:
                self._cameras[name].add(value)
            else:
                self._columns.setdefault(name, []).append(value)
        self._in_episode += 1

    def save_episode(self, task: str) -> int:
        """Ends the episode.

        Args:
            task: what it was to do, in words.

        Returns:
            Its number, from 0.

        Raises:
            ValueError: no frame was added since the last one.
        """
        length = self._in_episode
        if not length:
            raise ValueError(f"episode {self._episodes}: no frame was added to it; add at least one")
        columns = {name: np.stack(values) for name, values in self._columns.items()} | self._counted(task)
        place: dict[str, Any] = {}
        stats: dict[str, Stats] = {
            name: column_stats(values) for name, values in columns.items() if self._features[name].dtype != "string"
        }
        for name, camera in self._cameras.items():
            where, stats[name] = camera.end_episode()
            place |= where
        chunk, file = self._data.write(self._table(columns))
        row = {"episode_index": self._episodes, "tasks": [task], "length": length}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self._frames, "dataset_to_index": self._frames + length} | place
        for name, values in stats.items():
            row |= flat_stats(name, values)
            self._stats[name] = merge_stats(self._stats.get(name), values)
        self._rows.append(row)
        if len(self._rows) >= _EPISODES_AT_ONCE:
            self._write_rows()
        self._columns = {}
        self._in_episode = 0
        self._episodes += 1
        self._frames += length
        return self._episodes - 1

    def discard_episode(self) -> None:
        """Takes back the frames since the last episode. What the videos have of them belongs to no episode."""
        for camera in self._cameras.values():
            camera.discard_episode()
        self._columns = {}
        self._in_episode = 0

    def finish(self) -> None:
        """Writes what the whole dataset has in common, and gives it its name.

        Raises:
            ValueError: no episode, or frames that belong to none.
        """
        if not self._episodes or self._in_episode:
            raise ValueError(
                f"{self._episodes} episodes were saved and {self._in_episode} frames belong to none; save the last one"
            )
        for camera in self._cameras.values():
            camera.close()
        self._write_rows()
        self._data.close()
        self._places.close()
        write_tasks(self._root / TASKS, list(self._tasks))
        known = {name: stats for name, stats in self._stats.items() if stats is not None}
        write_json(
            self._root / STATS,
            {name: {kind: value.tolist() for kind, value in stats.items()} for name, stats in known.items()},
        )
        write_json(self._root / INFO, self._info())
        self._partial.finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not finished."""
        for camera in self._cameras.values():
            # What an encoder says about a file that is thrown away must not hide why it is.
            with suppress(Exception):
                camera.close()
        for files in (self._data, self._places):
            with suppress(Exception):
                files.close()
        self._partial.__exit__(kind, error, trace)

    def _counted(self, task: str) -> dict[str, NDArray[Any]]:
        number = self._tasks.setdefault(task, len(self._tasks))
        frames = np.arange(self._in_episode, dtype=np.int64)
        return {
            "timestamp": (frames / self._fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full_like(frames, self._episodes),
            "index": frames + self._frames,
            "task_index": np.full_like(frames, number),
        }

    def _table(self, columns: Mapping[str, NDArray[Any]]) -> Any:
        import pyarrow as pa  # noqa: PLC0415

        features = {name: feature for name, feature in self._features.items() if name in columns}
        schema = pa.schema(
            [arrow_field(name, feature) for name, feature in features.items()], add_features(None, features)
        )
        return pa.table([arrow_column(columns[name], feature) for name, feature in features.items()], schema=schema)

    def _write_rows(self) -> None:
        import pyarrow as pa  # noqa: PLC0415

        if self._rows:
            place = self._places.place_for(len(self._rows))
            names = ("meta/episodes/chunk_index", "meta/episodes/file_index")
            rows = [row | dict(zip(names, place, strict=True)) for row in self._rows]
            self._places.write(pa.Table.from_pylist(rows, schema=self._places.schema))
            self._rows = []

    def _info(self) -> dict[str, Any]:
        fps = int(self._fps) if float(self._fps).is_integer() else self._fps
        features = {name: feature.model_dump(mode="json") for name, feature in self._features.items()}
        for name in self._cameras:
            height, width, channels = self._features[name].shape
            features[name]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": channels,
                "has_audio": False,
            }
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self._robot_type,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": self._limits.chunks_size,
            "data_files_size_in_mb": self._limits.data_files_size_in_mb,
            "video_files_size_in_mb": self._limits.video_files_size_in_mb,
            "fps": fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._cameras else None,
            "features": features,
        }


def _check_feature(name: str, feature: Feature) -> None:
    if "/" in name or not name or name in COUNTERS or name == "task":
        raise ValueError(f"feature {name!r}: this name is taken or has a slash in it; choose another one")
    if feature.dtype == "video":
        if len(feature.shape) != 3 or feature.shape[2] != 3 or feature.shape[0] % 2 or feature.shape[1] % 2:
            raise ValueError(f"feature {name!r}: shape {feature.shape}, (height, width, 3) with even sides expected")
        return
    if feature.dtype == "string" and feature.shape == (1,):
        return
    try:
        is_number = np.dtype(feature.dtype).kind in "biuf"
    except TypeError:
        is_number = False
    if not is_number or len(feature.shape) > 5:
        raise ValueError(
            f"feature {name!r}: {feature.dtype} {feature.shape} cannot be written; give video, numbers of up to five "
            "axes, or one string"
        )


def _checked(name: str, feature: Feature, value: Any) -> Any:
    """The value as it is written."""
    if feature.dtype == "string":
        if not isinstance(value, str):
            raise ValueError(f"{name}: {type(value).__name__} given, a str expected")
        return np.array(value, dtype=object)
    array = np.asarray(value)
    dtype = np.dtype(np.uint8 if feature.is_camera else feature.dtype)
    if array.shape != feature.shape and not (feature.shape == (1,) and array.shape == ()):
        raise ValueError(f"{name}: shape {array.shape} given, {feature.shape} expected")
    if array.dtype != dtype and (feature.is_camera or not np.can_cast(array.dtype, dtype, "same_kind")):
        raise ValueError(f"{name}: {array.dtype} given, {dtype} expected")
    # A copy: the caller may fill the same array again.
    return array if feature.is_camera else array.astype(dtype).reshape(feature.shape)
