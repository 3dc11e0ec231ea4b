"""The labels of one video as a Parquet file: one row a frame, and in the file's metadata what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from v2r_core.deploy.folder import Strict
from v2r_core.deploy.stream import Status
from v2r_core.label.complete import complete
from v2r_core.rewards.reward import RewardCurve, RewardKind

METADATA = b"v2r_labels"
_STATUS_NAMES = [status.name.lower() for status in Status]
_INTEGERS = ("subgoal_index", "subgoal_count")
_NUMBERS = tuple(field.name for field in fields(RewardCurve) if field.name not in _INTEGERS)


class TableError(ValueError):
    """A file holds no labels; the message names it, what is wrong and the remedy."""


class LabelOrigin(Strict):
    """What stands behind labels.

    Attributes:
        source: what was labelled, as `open_video` takes it.
        name: of the video or episode, for tables and pictures.
        reward: vip, uvd, time...
        kind: "value" or "step_reward".
        goal: identifier of the goal; empty where the reward needs none.
        goal_source: where it came from: a file, "last", "bundle"; empty without a goal.
        model: name of the bundle.
        model_sha256: of the bundle.
    """

    schema_version: Literal[1] = 1
    source: str
    name: str
    reward: str
    kind: RewardKind
    goal: str
    goal_source: str
    model: str
    model_sha256: str


@dataclass(frozen=True)
class Labels:
    """A labelled video.

    Attributes:
        origin: what stands behind the numbers.
        stamps: (T,) float64 seconds, as the video has them.
        curve: T samples; NaN means "not available".
        status: (T,) int64, values of `Status`.
    """

    origin: LabelOrigin
    stamps: NDArray[np.float64]
    curve: RewardCurve
    status: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stamps)


def need_tables() -> None:
    """Raises RuntimeError where Parquet cannot be read and written; for who wants to know before hours of work."""
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415 (170 MB that a robot does not need)
    except ImportError as error:
        raise RuntimeError(f"tables of labels need pyarrow ({error}); pip install -e '.[label]'") from error


def write_labels(path: Path, labels: Labels) -> None:
    """Writes a Parquet file, which appears under its name only when it is complete.

    Columns: frame_index int64, timestamp float64 [s], reward, raw_reward, value, progress, uncertainty float32,
    subgoal_index, subgoal_count int32, status (name in lower case, dictionary-encoded).

    Raises:
        OSError: the file cannot be written.
        RuntimeError: pyarrow is not installed.
    """
    need_tables()
    import pyarrow as pa  # noqa: PLC0415 (see need_tables)
    import pyarrow.parquet as pq  # noqa: PLC0415

    codes = pa.array(labels.status.astype(np.int8))
    columns = {
        "frame_index": np.arange(len(labels), dtype=np.int64),
        "timestamp": labels.stamps,
        **{name: getattr(labels.curve, name).astype(np.float32) for name in _NUMBERS},
        **{name: getattr(labels.curve, name).astype(np.int32) for name in _INTEGERS},
        "status": pa.DictionaryArray.from_arrays(codes, pa.array(_STATUS_NAMES)),
    }
    table = pa.table(columns).replace_schema_metadata({METADATA: labels.origin.model_dump_json()})
    with complete(path) as half:
        pq.write_table(table, half)


def read_labels(path: Path) -> Labels:
    """Reads what `write_labels` wrote.

    Raises:
        FileNotFoundError: no such file.
        TableError: it is no such file, or damaged.
        RuntimeError: pyarrow is not installed.
    """
    need_tables()
    import pyarrow as pa  # noqa: PLC0415 (see need_tables)
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        table = pq.read_table(path)
        origin = LabelOrigin.model_validate_json((table.schema.metadata or {}).get(METADATA, b""))
        columns = {name: table[name].to_numpy() for name in ("timestamp", *_NUMBERS, *_INTEGERS)}
        names = table["status"].cast(pa.string()).to_pylist()
        status = np.array([_STATUS_NAMES.index(name) for name in names], np.int64)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValidationError, KeyError, ValueError) as error:
        raise TableError(f"{path}: no labels of `v2r label` ({error}); label the video again") from error
    curve = RewardCurve(
        **{name: columns[name].astype(np.float64) for name in _NUMBERS},
        **{name: columns[name].astype(np.int64) for name in _INTEGERS},
    )
    return Labels(origin, columns["timestamp"].astype(np.float64), curve, status)
