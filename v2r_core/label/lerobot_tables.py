"""How a LeRobotDataset v3 lays out its Parquet files: Arrow types, and what its readers find in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.lerobot_schema import Feature

TASKS = "meta/tasks.parquet"
STATS = "meta/stats.json"
_HUGGINGFACE = b"huggingface"
_TASK_COLUMN = "__index_level_0__"
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class FileLimits:
    """When the next file is begun.

    Attributes:
        chunks_size: files in a folder.
        data_files_size_in_mb: of a Parquet file, in MiB.
        video_files_size_in_mb: of an mp4, in MiB.
    """

    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200


def next_place(place: tuple[int, int], chunks_size: int) -> tuple[int, int]:
    """Chunk and number of the file after this one, with so many files a chunk."""
    chunk, file = place
    return (chunk + 1, 0) if file + 1 >= chunks_size else (chunk, file + 1)


def arrow_field(name: str, feature: Feature) -> Any:
    """The pyarrow.Field of a feature that is no camera."""
    import pyarrow as pa  # noqa: PLC0415

    scalar = pa.string() if feature.dtype == "string" else pa.from_numpy_dtype(np.dtype(feature.dtype))
    if feature.shape == (1,):
        return pa.field(name, scalar)
    if len(feature.shape) == 1:
        return pa.field(name, pa.list_(scalar, feature.shape[0]))
    kind = scalar
    for _ in feature.shape:
        kind = pa.list_(kind)
    return pa.field(name, kind)


def arrow_column(values: NDArray[Any], feature: Feature) -> Any:
    """Values (T,) or (T, *shape) of a feature as a pyarrow.Array of the type of `arrow_field`."""
    import pyarrow as pa  # noqa: PLC0415

    kind = arrow_field("", feature).type
    if feature.shape == (1,):
        return pa.array(values.reshape(len(values)).tolist() if feature.dtype == "string" else values.ravel(), kind)
    flat = pa.array(np.ascontiguousarray(values).ravel())
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, feature.shape[0])
    for axis in range(len(feature.shape) - 1, -1, -1):
        ends = np.arange(0, len(flat) + 1, feature.shape[axis], dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(ends), flat)
    return flat


def add_features(metadata: Mapping[bytes, bytes] | None, features: Mapping[str, Feature]) -> dict[bytes, bytes]:
    """Metadata of a Parquet file whose columns the `datasets` library is to know.

    Args:
        metadata: so far; None for a new file.
        features: what is added to it; videos have no column.

    Returns:
        All metadata. A file that says nothing to that library says nothing then either: it looks at the columns.
    """
    kept = dict(metadata or {})
    if metadata is not None and _HUGGINGFACE not in kept:
        return kept
    record = json.loads(kept[_HUGGINGFACE]) if metadata is not None else {"info": {"features": {}}}
    known = record.setdefault("info", {}).setdefault("features", {})
    known.update({name: _described(feature) for name, feature in features.items() if feature.dtype != "video"})
    # It identifies the table as it was.
    record.pop("fingerprint", None)
    return kept | {_HUGGINGFACE: json.dumps(record).encode()}


def _described(feature: Feature) -> dict[str, Any]:
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.dtype == "image":
        return {"_type": "Image"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "List"}
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Writes the table of tasks, which its readers take for a pandas table with the task as index."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    def described(name: str | None, field: str, kind: str, numpy: str) -> dict[str, Any]:
        return {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}

    record = {
        "index_columns": [_TASK_COLUMN],
        "column_indexes": [described(None, "", "unicode", "object") | {"field_name": None}],
        "columns": [
            described("task_index", "task_index", "int64", "int64"),
            described(None, _TASK_COLUMN, "unicode", "object"),
        ],
    }
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), _TASK_COLUMN: pa.array(tasks, pa.string())}
    )
    pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(record).encode()}), path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as its readers do it themselves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


class ParquetFiles:
    """Tables one after the other into Parquet files of a limited size, a row group each.

    Attributes:
        schema: of the first table; None before it.
    """

    def __init__(self, root: Path, template: str, limits: FileLimits) -> None:
        """Writes nothing yet.

        Args:
            root: folder of the dataset.
            template: of the files' names.
            limits: of the files.
        """
        self._root, self._template = root, template
        self._chunks_size, self._most_bytes = limits.chunks_size, limits.data_files_size_in_mb * MEGABYTE
        self._place = (0, 0)
        self._rows = 0
        self._writer: Any = None
        self._path = root
        self.schema: Any = None

    def place_for(self, rows: int) -> tuple[int, int]:
        """Chunk and file that the next table, of so many rows, will be in."""
        if self._writer is not None:
            size = self._path.stat().st_size
            if size + size / self._rows * rows >= self._most_bytes:
                self.close()
                self._place = next_place(self._place, self._chunks_size)
        return self._place

    def write(self, table: Any) -> tuple[int, int]:
        """Writes a table and says where."""
        import pyarrow.parquet as pq  # noqa: PLC0415

        chunk, file = self.place_for(table.num_rows)
        if self._writer is None:
            self._path = self._root / self._template.format(chunk_index=chunk, file_index=file)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.schema = self.schema or table.schema
            self._writer = pq.ParquetWriter(self._path, self.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._rows += table.num_rows
        return chunk, file

    def close(self) -> None:
        """Ends the file. May be called twice."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0
