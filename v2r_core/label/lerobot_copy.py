"""A copy of a LeRobotDataset v3 with labels in it: data rewritten file by file, everything else as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.stream import Status
from v2r_core.label.lerobot_stats import Stats, column_stats, flat_stats, merge_stats
from v2r_core.label.lerobot_tables import STATS, add_features, write_json
from v2r_core.label.table import Labels
from v2r_core.video.lerobot import LeRobotFolder, episode_files
from v2r_core.video.lerobot_parquet import ParquetRows, parquet_errors
from v2r_core.video.lerobot_schema import INFO, Feature
from v2r_core.video.video import VideoError

PROGRESS = "sarm_progress.parquet"
"""Where LeRobot's reward-weighted training looks for the progress of every frame, in the dataset's folder."""

RECORD = Path("meta/v2r_labels.json")
"""Where a labelled dataset says what labelled it."""

NEXT_REWARD = "next.reward"
"""Where LeRobot's own code looks for rewards: at a frame, that of the step which begins there."""

LABELS = {
    "v2r.reward": Feature(dtype="float32", shape=(1,)),
    "v2r.raw_reward": Feature(dtype="float32", shape=(1,)),
    "v2r.value": Feature(dtype="float32", shape=(1,)),
    "v2r.progress": Feature(dtype="float32", shape=(1,)),
    "v2r.uncertainty": Feature(dtype="float32", shape=(1,)),
    "v2r.subgoal_index": Feature(dtype="int64", shape=(1,)),
    "v2r.subgoal_count": Feature(dtype="int64", shape=(1,)),
    "v2r.status": Feature(dtype="int64", shape=(1,)),
}
"""What every frame gets."""

_PLACES = ("index", "episode_index", "frame_index")
"""Columns that say which frame a row is of."""

_LEFT_OUT = (".git", ".cache")
"""Folders that belong to the place where a dataset lies, not to the dataset."""

Columns = Mapping[str, NDArray[Any]]
LabelsOf = Callable[[int], Columns]
"""From the number of an episode to its labels: a column (T,) for every feature."""


def label_columns(labels: Labels) -> Columns:
    """Labels of an episode of T frames as columns (T,), `next.reward` among them."""
    curve = labels.curve
    reward = curve.reward.astype(np.float32)
    return {
        "v2r.reward": reward,
        "v2r.raw_reward": curve.raw_reward.astype(np.float32),
        "v2r.value": curve.value.astype(np.float32),
        "v2r.progress": curve.progress.astype(np.float32),
        "v2r.uncertainty": curve.uncertainty.astype(np.float32),
        "v2r.subgoal_index": curve.subgoal_index.astype(np.int64),
        "v2r.subgoal_count": curve.subgoal_count.astype(np.int64),
        "v2r.status": labels.status.astype(np.int64),
        # No step begins at the last frame.
        NEXT_REWARD: np.append(reward[1:], np.float32(np.nan)),
    }


def no_labels(length: int, status: Status) -> Columns:
    """The columns of an episode that has no labels."""
    nothing = np.full(length, np.nan, np.float32)
    columns: dict[str, NDArray[Any]] = dict.fromkeys((*LABELS, NEXT_REWARD), nothing)
    columns |= dict.fromkeys(("v2r.subgoal_index", "v2r.subgoal_count"), np.zeros(length, np.int64))
    return columns | {"v2r.status": np.full(length, int(status), np.int64)}


def progress_schema(model: str) -> Any:
    """Of `PROGRESS`, a pyarrow.Schema: where a frame is, and its progress under the name of RA-BC's default head.

    Args:
        model: name of what labelled it.
    """
    import pyarrow as pa  # noqa: PLC0415

    kinds = dict.fromkeys(_PLACES, pa.int64())
    return pa.schema(kinds | {"progress_sparse": pa.float32()}, {"reward_model_path": model})


class LabelledCopy:
    """Writes the copy. It is made anew from the labels every time, so it needs no journal."""

    def __init__(
        self, source: LeRobotFolder, target: Path, added: Mapping[str, Feature], labels_of: LabelsOf, model: str
    ) -> None:
        """Writes nothing yet.

        Args:
            source: the original.
            target: folder to be made.
            added: the features that come in, or that replace those of that name.
            labels_of: see `LabelsOf`.
            model: name of the model, for the table of progress.
        """
        self._source, self._target = source, target
        self._added, self._labels_of, self._model = dict(added), labels_of, model
        self._newest: tuple[int, Columns] | None = None

    def write(self) -> None:
        """Writes everything.

        Raises:
            VideoError: a file of the original is damaged.
            OSError: the disk is full, or a file cannot be read or written.
        """
        self._target.mkdir()
        data = self._data_files()
        episodes = [path.relative_to(self._source.path) for path in episode_files(self._source.path)]
        made = {*data, *episodes, Path(INFO), Path(STATS), Path(PROGRESS)}
        for name in _files(self._source.path):
            if name not in made:
                _take_over(self._source.path / name, self._target / name)
        self._write_data(data)
        totals: dict[str, Stats | None] = dict.fromkeys(self._added)
        for path in episodes:
            self._write_episodes(path, totals)
        self._write_records(totals)

    def _data_files(self) -> list[Path]:
        """All that a reader of the dataset looks at, in the order of the episodes."""
        source = self._source
        used = dict.fromkeys(source.data_file(number) for number in range(source.episodes))
        found = dict.fromkeys(sorted((source.path / "data").glob("*/*.parquet")))
        return [path.relative_to(source.path) for path in used | found]

    def _columns(self, episode: int) -> Columns:
        if self._newest is None or self._newest[0] != episode:
            self._newest = episode, self._labels_of(episode)
        return self._newest[1]

    def _write_data(self, names: list[Path]) -> None:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        schema = progress_schema(self._model)
        with pq.ParquetWriter(self._target / PROGRESS, schema) as progress:
            for name in names:
                for rows in self._write_data_file(self._source.path / name, self._target / name):
                    progress.write_table(pa.table(rows, schema=schema))

    def _write_data_file(self, source: Path, target: Path) -> Iterator[dict[str, Any]]:
        """Rewrites one file, a row group at a time, and gives the rows of the table of progress."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        target.parent.mkdir(parents=True, exist_ok=True)
        with parquet_errors(source):
            file = pq.ParquetFile(source)
        if missing := [name for name in _PLACES if name not in file.schema_arrow.names]:
            raise VideoError(f"{source}: no column {missing[0]!r} in it; write the dataset again")
        fields = [pa.field(name, _arrow_type(feature)) for name, feature in self._added.items()]
        kept = [field for field in file.schema_arrow if field.name not in self._added]
        metadata = add_features(file.schema_arrow.metadata or {}, self._added)
        schema = pa.schema([*kept, *fields], metadata)
        with file, pq.ParquetWriter(target, schema, compression=_compression(file)) as writer:
            for group in range(file.num_row_groups):
                with parquet_errors(source):
                    table = file.read_row_group(group)
                numbers = {name: table[name].to_numpy() for name in _PLACES}
                new = self._rows(source, numbers["episode_index"], numbers["frame_index"])
                columns = [table[field.name] for field in kept] + [pa.array(new[name]) for name in self._added]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=max(1, table.num_rows))
                yield numbers | {"progress_sparse": new["v2r.progress"]}

    def _rows(self, path: Path, episodes: NDArray[np.int64], frames: NDArray[np.int64]) -> Columns:
        """The new columns of rows of whatever episodes and frames."""
        rows = {name: np.empty(len(episodes), np.dtype(feature.dtype)) for name, feature in self._added.items()}
        for episode in np.unique(episodes):
            where = episodes == episode
            if (frames[where] >= self._source.length(int(episode))).any() or (frames[where] < 0).any():
                raise VideoError(
                    f"{path}: frame {frames[where].max()} of episode {episode}, which has "
                    f"{self._source.length(int(episode))} frames; write the dataset again"
                )
            labels = self._columns(int(episode))
            for name, column in rows.items():
                column[where] = labels[name][frames[where]]
        return rows

    def _write_episodes(self, name: Path, totals: dict[str, Stats | None]) -> None:
        """Rewrites one file of the table of episodes with the statistics of the new features."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        with ParquetRows(self._source.path / name) as file:
            table = file.table(file.names)
        rows: list[dict[str, object]] = []
        for episode in table["episode_index"].to_pylist():
            labels = self._columns(episode)
            row: dict[str, object] = {}
            for feature in self._added:
                stats = column_stats(labels[feature])
                totals[feature] = merge_stats(totals[feature], stats)
                row |= flat_stats(feature, stats)
            rows.append(row)
        new = pa.Table.from_pylist(rows)
        kept = [column for column in table.column_names if column not in new.column_names]
        table = table.select(kept)
        for column in new.column_names:
            table = table.append_column(column, new[column])
        target = self._target / name
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target)

    def _write_records(self, totals: Mapping[str, Stats | None]) -> None:
        info = json.loads((self._source.path / INFO).read_bytes())
        for name, feature in self._added.items():
            info["features"][name] = feature.model_dump(mode="json")
        write_json(self._target / INFO, info)
        path = self._source.path / STATS
        stats = json.loads(path.read_bytes()) if path.is_file() else {}
        for name, total in totals.items():
            # A feature that no frame has a number of has no statistics; those of another one must not stay.
            stats.pop(name, None)
            if total is not None:
                stats[name] = {kind: value.tolist() for kind, value in total.items()}
        write_json(self._target / STATS, stats)


def _arrow_type(feature: Feature) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    return pa.from_numpy_dtype(np.dtype(feature.dtype))


def _compression(file: Any) -> str:
    metadata = file.metadata
    known = metadata.num_row_groups and metadata.num_columns
    return str(metadata.row_group(0).column(0).compression) if known else "snappy"


def _files(folder: Path) -> Iterator[Path]:
    """All files of a dataset, relative to its folder."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(names):
            yield (Path(root) / name).relative_to(folder)


def _take_over(source: Path, target: Path) -> None:
    """Copies a file; a video gets a second name instead, which costs no space, where that can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A dataset from a hub's cache is links to files elsewhere.
    real = source.resolve()
    # Videos are never written to again. Other files are, e.g. the tasks by whoever records another episode.
    if source.suffix == ".mp4":
        with suppress(OSError):
            os.link(real, target)
            return
    shutil.copyfile(real, target)
