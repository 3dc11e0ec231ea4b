"""Parquet files of a LeRobotDataset: opened with errors that name them, and read a few rows at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from v2r_core.video.video import VideoError


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises about a file into one error that names it.

    Raises:
        VideoError: the file is missing or damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 (170 MB that a robot does not need)
    except ImportError as error:
        raise VideoError(f"{path}: pyarrow is needed for it: pip install -e '.[label]'") from error
    try:
        yield
    except FileNotFoundError as error:
        raise VideoError(f"{path}: missing; copy the dataset again") from error
    except (pa.ArrowException, OSError) as error:
        raise VideoError(f"{path}: cannot be read ({error}); it is damaged or cut off, copy it again") from error


class ParquetRows:
    """A Parquet file of which single rows are read. Not thread-safe.

    Attributes:
        path: of the file.
        names: of its columns.
        count: rows.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and reads its footer.

        Raises:
            VideoError: it is missing or damaged.
        """
        self.path = path
        with parquet_errors(path):
            import pyarrow.parquet as pq  # noqa: PLC0415

            # Not `read_table`, which takes folders named `a=b` for columns.
            self._file = pq.ParquetFile(path)
            metadata = self._file.metadata
            self.names: tuple[str, ...] = tuple(self._file.schema_arrow.names)
        self.count: int = metadata.num_rows
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *np.cumsum(sizes).tolist()]

    def table(self, columns: Sequence[str], start: int = 0, count: int | None = None) -> Any:
        """Some columns of `count` rows from `start` on, as a pyarrow.Table; None: all that follow.

        Raises:
            VideoError: a column is missing, or the file is damaged.
        """
        stop = self.count if count is None else start + count
        if missing := [name for name in columns if name not in self.names]:
            raise VideoError(f"{self.path}: no column {missing[0]!r} in it; write the dataset again")
        first = self._group(start)
        groups = range(first, self._group(max(start, stop - 1)) + 1) if self.count else []
        with parquet_errors(self.path):
            table = self._file.read_row_groups(list(groups), columns=list(columns))
        return table.slice(start - self._starts[first], stop - start)

    def values(self, column: str, batch: int, row: int) -> Iterator[tuple[int, Any]]:
        """Numbers and values of rows in order, without holding more than a few: the first is at or before `row`.

        Args:
            column: its name.
            batch: rows in memory at a time.
            row: where reading has to begin at the latest.

        Raises:
            VideoError: the file is damaged.
        """
        first = self._group(row)
        number = self._starts[first]
        with parquet_errors(self.path):
            groups = list(range(first, len(self._starts) - 1))
            for part in self._file.iter_batches(batch_size=batch, row_groups=groups, columns=[column]):
                for value in part.column(0):
                    yield number, value
                    number += 1

    def start_before(self, row: int) -> int:
        """The first row that has to be read to get at `row`."""
        return self._starts[self._group(row)]

    def close(self) -> None:
        """Closes the file. May be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _group(self, row: int) -> int:
        return max(0, min(bisect_right(self._starts, row) - 1, len(self._starts) - 2))


def to_numpy(column: Any, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A column as an array.

    Args:
        column: a pyarrow.ChunkedArray of T values.
        shape: of one value; (1,) are stored as plain numbers.
        dtype: of numpy, or "string".

    Returns:
        (T,) for the shape (1,), else (T, *shape); strings are objects. Missing values are NaN in columns of floats.

    Raises:
        ValueError, TypeError: the values are not what shape and dtype say.
    """
    if dtype == "string":
        return np.array(column.to_pylist(), dtype=object)
    plain = () if shape == (1,) else shape
    flat = column.combine_chunks()
    for _ in plain:
        # One level of lists, or an extension type of them, after the other: far faster than Python lists.
        flat = getattr(flat, "storage", flat).flatten()
    if flat.null_count and np.dtype(dtype).kind != "f":
        raise ValueError(f"{flat.null_count} values are missing")
    array = flat.to_numpy(zero_copy_only=False)
    return np.asarray(array, dtype=np.dtype(dtype)).reshape(len(column), *plain)
