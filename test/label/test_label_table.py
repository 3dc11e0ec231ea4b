"""Labels as a table: what is written is read back, and what is none is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from v2r_core.deploy.stream import Status
from v2r_core.label.table import METADATA, LabelOrigin, Labels, TableError, read_labels, write_labels
from v2r_core.rewards.reward import RewardCurve

ORIGIN = LabelOrigin(
    source="/videos/a b.mp4",
    name="a b.mp4",
    reward="uvd",
    kind="value",
    goal="über",
    goal_source="last",
    model="tiny",
    model_sha256="0" * 64,
)
NUMBERS = ("reward", "raw_reward", "value", "progress", "uncertainty")
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def labels(draw: st.DrawFn) -> Labels:
    count = draw(st.integers(0, 20))
    numbers = {name: draw(arrays(np.float64, count, elements=FLOATS)) for name in NUMBERS}
    whole = {
        name: draw(arrays(np.int64, count, elements=st.integers(0, 2**31 - 1)))
        for name in ("subgoal_index", "subgoal_count")
    }
    stamps = draw(arrays(np.float64, count, elements=st.floats(allow_nan=False)))
    status = draw(arrays(np.int64, count, elements=st.sampled_from([int(status) for status in Status])))
    return Labels(ORIGIN, stamps, RewardCurve(**numbers, **whole), status)


def check_equal(found: Labels, expected: Labels) -> None:
    assert found.origin == expected.origin
    np.testing.assert_array_equal(found.stamps, expected.stamps)
    np.testing.assert_array_equal(found.status, expected.status)
    for field in dataclasses.fields(RewardCurve):
        mine, theirs = getattr(found.curve, field.name), getattr(expected.curve, field.name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs, field.name)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels())
def test_read_back(tmp_path: Path, written: Labels) -> None:
    """NaN, infinities, the empty video and stamps of any size come back bit for bit."""
    write_labels(tmp_path / "sub" / "a.parquet", written)
    check_equal(read_labels(tmp_path / "sub" / "a.parquet"), written)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.parquet"]


@pytest.fixture
def five() -> Labels:
    numbers = {name: np.arange(5.0) / 4 for name in NUMBERS}
    numbers["progress"][2] = np.nan
    whole = {name: np.arange(5) for name in ("subgoal_index", "subgoal_count")}
    return Labels(ORIGIN, np.arange(5) / 30, RewardCurve(**numbers, **whole), np.arange(5))


def test_what_others_see(tmp_path: Path, five: Labels) -> None:
    """Any reader of Parquet finds a row a frame, NaN as NaN and not as null, and the status in words."""
    write_labels(tmp_path / "a.parquet", five)
    table = pq.read_table(tmp_path / "a.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "frame_index": "int64",
        "timestamp": "double",
        **dict.fromkeys(NUMBERS, "float"),
        "subgoal_index": "int32",
        "subgoal_count": "int32",
        "status": "dictionary<values=string, indices=int8, ordered=0>",
    }
    assert table["frame_index"].to_pylist() == list(range(5))
    assert table["progress"].null_count == 0
    assert np.isnan(table["progress"].to_numpy()[2])
    assert table["status"].to_pylist()[:3] == ["ok", "stale_image", "no_goal"]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "a.parquet")


def test_damaged_files(tmp_path: Path, five: Labels) -> None:
    """Cut anywhere: refused with the file's name and the remedy, never read as something else."""
    path = tmp_path / "a.parquet"
    write_labels(path, five)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(TableError, match=r"a\.parquet: no labels .*label the video again"):
            read_labels(path)


@pytest.mark.parametrize("change", ["other table", "no metadata", "newer schema", "column", "status", "text"])
def test_other_files(tmp_path: Path, five: Labels, change: str) -> None:
    path = tmp_path / "a.parquet"
    write_labels(path, five)
    table = pq.read_table(path)
    if change == "other table":
        table = pa.table({"x": [1, 2]})
    elif change == "no metadata":
        table = table.replace_schema_metadata({})
    elif change == "newer schema":
        newer = ORIGIN.model_dump_json().replace('"schema_version":1', '"schema_version":2')
        assert newer != ORIGIN.model_dump_json()
        table = table.replace_schema_metadata({METADATA: newer})
    elif change == "column":
        table = table.drop_columns(["value"])
    elif change == "status":
        table = table.set_column(table.schema.get_field_index("status"), "status", pa.array(["fine"] * 5))
    if change == "text":
        path.write_text("frame,reward\n0,1\n")
    else:
        pq.write_table(table, path)
    with pytest.raises(TableError, match="label the video again"):
        read_labels(path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, five: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write_labels(path, five)
    before = path.read_bytes()

    def full(table, where, *args):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_labels(path, dataclasses.replace(five, stamps=five.stamps + 1))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.parquet"]
