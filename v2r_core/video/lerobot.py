"""A LeRobotDataset v3 on disk, read without the `lerobot` package and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.lerobot_parquet import ParquetRows, parquet_errors, to_numpy
from v2r_core.video.lerobot_schema import Feature, Info, read_info
from v2r_core.video.video import Video, VideoError

_NEEDED = ("episode_index", "length", "tasks", "data/chunk_index", "data/file_index")


class LeRobotFolder:
    """The folder of a dataset. In memory are the places of the episodes, never their data. Not thread-safe.

    Attributes:
        path: of the folder.
        info: what `meta/info.json` says.
    """

    def __init__(self, path: Path, info: Info, places: Any) -> None:
        """See `open`.

        Args:
            path: of the folder.
            info: its record.
            places: pyarrow.Table with a row an episode.
        """
        self.path = path
        self.info = info
        self._places = places
        self._newest: tuple[Path, NDArray[np.int64]] | None = None

    @classmethod
    def open(cls, path: str | Path) -> LeRobotFolder:
        """Reads the record and the table of episodes.

        Raises:
            VideoError: no LeRobotDataset, of another version than 3, not finished, damaged, or pyarrow is missing.
        """
        folder = Path(path).expanduser()
        info = read_info(folder)
        return cls(folder, info, _read_places(folder, info))

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.info.fps

    @property
    def features(self) -> dict[str, Feature]:
        """What every frame has, by name."""
        return self.info.features

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the features that are pictures."""
        return tuple(name for name, feature in self.features.items() if feature.is_camera)

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return int(self._places.num_rows)

    def length(self, episode: int) -> int:
        """Frames of an episode.

        Raises:
            VideoError: no such episode.
        """
        return int(self._place(episode, "length"))

    def tasks(self, episode: int) -> tuple[str, ...]:
        """What an episode was to do, in words.

        Raises:
            VideoError: no such episode.
        """
        return tuple(self._place(episode, "tasks"))

    def choose_camera(self, camera: str | None = None) -> str:
        """The camera that is meant; None: the only one.

        Raises:
            VideoError: no such camera, or several to choose from.
        """
        if not self.cameras:
            raise VideoError(f"{self.path}: no camera in this dataset, only {', '.join(self.features)}")
        if camera is None and len(self.cameras) > 1:
            raise VideoError(f"{self.path}: has several cameras; choose one of {', '.join(self.cameras)}")
        chosen = self.cameras[0] if camera is None else camera
        if chosen not in self.cameras:
            raise VideoError(f"{self.path}: no camera {chosen!r}; its cameras are {', '.join(self.cameras)}")
        return chosen

    def video(self, episode: int, camera: str | None = None, *, lean: bool = False) -> Video:
        """Opens an episode as a video, with the timestamps of the dataset, which begin at 0.

        Args:
            episode: its number, from 0.
            camera: None: the only one.
            lean: see `open_video`.

        Raises:
            VideoError: no such episode or camera, or its files are missing or damaged.
        """
        # PyAV takes longer to load than most that look into a dataset take to run.
        from v2r_core.video.lerobot_episode import EpisodeInVideo, EpisodeOfImages  # noqa: PLC0415

        chosen = self.choose_camera(camera)
        stamps = self.column(episode, "timestamp").astype(np.float64)
        name = f"{self.path.name}#{episode}" + (f"/{chosen}" if len(self.cameras) > 1 else "")
        if self.features[chosen].dtype == "image":
            path, start = self._locate(episode)
            return EpisodeOfImages(name, path, chosen, start, stamps, self.fps)
        span = tuple(self._place(episode, f"videos/{chosen}/{end}_timestamp") for end in ("from", "to"))
        path = self.video_file(episode, chosen)
        return EpisodeInVideo(name, path, stamps, (float(span[0]), float(span[1])), self.fps, lean)

    def column(self, episode: int, name: str) -> NDArray[Any]:
        """One feature of one episode.

        Args:
            episode: its number, from 0.
            name: of a feature that is no camera.

        Returns:
            (T,) for features of shape (1,), else (T, *shape), of the feature's dtype; strings are objects.

        Raises:
            VideoError: no such episode or feature, or its file is missing or damaged.
        """
        feature = self.features.get(name)
        if feature is None:
            raise VideoError(f"{self.path}: no feature {name!r}; its features are {', '.join(self.features)}")
        if feature.is_camera:
            raise VideoError(f"{self.path}: {name!r} is a camera, not a column of numbers; open it as a video")
        path, start = self._locate(episode)
        with ParquetRows(path) as rows:
            table = rows.table([name], start, self.length(episode))
        try:
            return to_numpy(table[name], feature.shape, feature.dtype)
        except (TypeError, ValueError, AttributeError) as error:
            raise VideoError(
                f"{path}: {name!r} is not {feature.dtype} {feature.shape}, as {self.path} says ({error})"
            ) from error

    def data_file(self, episode: int) -> Path:
        """The Parquet file in which the numbers of an episode are.

        Raises:
            VideoError: no such episode.
        """
        chunk, file = (int(self._place(episode, f"data/{part}_index")) for part in ("chunk", "file"))
        return self.path / self.info.data_path.format(chunk_index=chunk, file_index=file)

    def video_file(self, episode: int, camera: str) -> Path:
        """The mp4 in which an episode of a camera is.

        Raises:
            VideoError: no such episode, or there is no video of it.
        """
        if self.info.video_path is None:
            raise VideoError(f"{self.path}: info.json says that there are no videos; write the dataset again")
        chunk, file = (int(self._place(episode, f"videos/{camera}/{part}_index")) for part in ("chunk", "file"))
        return self.path / self.info.video_path.format(video_key=camera, chunk_index=chunk, file_index=file)

    def _place(self, episode: int, name: str) -> Any:
        if not 0 <= episode < self.episodes:
            raise VideoError(f"{self.path}: episode {episode} is not there; it has {self.episodes}, counted from 0")
        value = self._places[name][episode].as_py() if name in self._places.column_names else None
        if value is None:
            raise VideoError(f"{self.path}: nothing about {name} of episode {episode}; write the dataset again")
        return value

    def _locate(self, episode: int) -> tuple[Path, int]:
        """File and first row of an episode."""
        path = self.data_file(episode)
        if self._newest is None or self._newest[0] != path:
            with ParquetRows(path) as file:
                index = file.table(["episode_index"])["episode_index"].to_numpy()
            self._newest = path, index
        rows = np.flatnonzero(self._newest[1] == episode)
        length = self.length(episode)
        if len(rows) != length or (length and rows[-1] - rows[0] + 1 != length):
            raise VideoError(
                f"{path}: {len(rows)} rows of episode {episode}, {length} in a row expected; copy it again"
            )
        return path, int(rows[0]) if length else 0


def episode_files(folder: Path) -> list[Path]:
    """The Parquet files with the table of episodes, in their order."""
    return sorted((folder / "meta" / "episodes").glob("*/*.parquet"))


def _read_places(folder: Path, info: Info) -> Any:
    """All of the table of episodes but the statistics."""
    files = episode_files(folder)
    if not files:
        raise VideoError(f"{folder}: no meta/episodes/*/*.parquet in it; copy the dataset again")
    tables = []
    for path in files:
        with ParquetRows(path) as rows:
            if missing := [name for name in _NEEDED if name not in rows.names]:
                raise VideoError(f"{path}: no column {missing[0]!r} in it; write the dataset again")
            tables.append(rows.table([name for name in rows.names if not name.startswith("stats/")]))
    with parquet_errors(files[0].parent):
        import pyarrow as pa  # noqa: PLC0415

        places = pa.concat_tables(tables, promote_options="permissive")
    numbers = places["episode_index"].to_numpy()
    if not np.array_equal(numbers, np.arange(len(numbers))) or len(numbers) != info.total_episodes:
        raise VideoError(
            f"{folder}: {len(numbers)} episodes in meta/episodes, {info.total_episodes} in info.json, and they have to "
            "be numbered from 0 in their order; was the dataset finalised?"
        )
    return places
