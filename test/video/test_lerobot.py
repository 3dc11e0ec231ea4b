"""Episodes of a LeRobotDataset v3 as videos: the right frames out of files that hold many; what is said of bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clip_writer import number_of
from lerobot_data import FPS, LENGTHS, TOP, WRIST, add_image_camera, edit_info, edit_table, write_dataset

from v2r_core.label.lerobot_tables import FileLimits
from v2r_core.video import VideoError, open_video
from v2r_core.video.lerobot import LeRobotFolder

DATA = "data/chunk-000/file-000.parquet"
MP4 = f"videos/{TOP}/chunk-000/file-000.mp4"
PLACES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera as a video, one as images."""
    folder = write_dataset(tmp_path_factory.mktemp("a=b") / "pick")
    add_image_camera(folder, WRIST)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset that a test may spoil."""
    return write_dataset(tmp_path / "pick", lengths=(6, 5))


def test_what_a_dataset_says_of_itself(both: Path) -> None:
    folder = LeRobotFolder.open(both)
    assert folder.fps == FPS
    assert folder.episodes == len(LENGTHS)
    assert folder.cameras == (TOP, WRIST)
    assert [folder.length(episode) for episode in range(folder.episodes)] == list(LENGTHS)
    assert [folder.tasks(episode) for episode in range(3)] == [("task 0",), ("task 1",), ("task 0",)]
    assert folder.features["grid"].shape == (2, 3)


def test_columns(both: Path) -> None:
    folder = LeRobotFolder.open(both)
    state = folder.column(2, "observation.state")
    assert state.dtype == np.float32
    np.testing.assert_array_equal(state, [[index, 2] for index in range(9)])
    np.testing.assert_array_equal(folder.column(3, "action"), np.arange(15, dtype=np.float32) / np.float32(7))
    grid = folder.column(0, "grid")
    np.testing.assert_array_equal(grid, np.arange(6).reshape(1, 2, 3) + 10.0 * np.arange(12)[:, None, None])
    assert folder.column(1, "note").tolist() == ["frame 0"]
    assert folder.column(2, "next.done").tolist() == [False] * 8 + [True]
    np.testing.assert_array_equal(folder.column(3, "index"), np.arange(22, 37))


@pytest.mark.parametrize("camera", [TOP, WRIST])
@pytest.mark.parametrize("lean", [False, True])
def test_every_frame_of_every_episode(both: Path, camera: str, lean: bool) -> None:
    for episode, length in enumerate(LENGTHS):
        expected = [50 * episode + index for index in range(length)]
        with open_video(f"{both}#{episode}/{camera}", lean=lean) as video:
            assert video.name == f"pick#{episode}/{camera}"
            assert len(video) == length
            assert video.fps == FPS
            np.testing.assert_allclose(video.stamps, np.arange(length) / FPS, atol=1e-6)
            assert video.stamps.dtype == np.float64
            assert [number_of(frame) for frame in video] == expected
            order = np.random.default_rng(episode).permutation(length)
            assert [number_of(video[index]) for index in order] == [expected[index] for index in order]
            assert number_of(video[-1]) == expected[-1]
            assert video[0].shape == (48, 64, 3)
            assert video[0].dtype == np.uint8
            with pytest.raises(IndexError, match=f"frame {length} of {length}"):
                video[length]


@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_iterators_do_not_disturb_one_another(both: Path, camera: str) -> None:
    with open_video(f"{both}#3/{camera}") as video:
        first, second = iter(video), iter(video)
        seen = [(number_of(next(first)), number_of(next(second)), number_of(video[14 - index])) for index in range(10)]
    assert seen == [(150 + index, 150 + index, 164 - index) for index in range(10)]


@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_closed(both: Path, camera: str) -> None:
    video = open_video(f"{both}#3/{camera}")
    video.close()
    video.close()
    with pytest.raises(VideoError, match="closed"):
        video[3]


def test_many_files_and_chunks(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "many", (4,) * 5, limits=FileLimits(2, 1e-6, 1e-6))
    assert len(list(folder.glob("videos/*/chunk-*/*.mp4"))) == 5
    assert len(list(folder.glob("data/chunk-002/*.parquet"))) == 1
    for episode in range(5):
        with open_video(f"{folder}#{episode}") as video:
            assert video.name == f"many#{episode}"
            assert [number_of(frame) for frame in video] == [50 * episode + index for index in range(4)]


def test_the_only_camera_need_not_be_named(dataset: Path) -> None:
    with open_video(f"{dataset}#1") as video:
        assert [number_of(frame) for frame in video] == [50, 51, 52, 53, 54]


def test_hash_in_names(dataset: Path) -> None:
    strange = dataset.rename(dataset.with_name("run#1"))
    with open_video(f"{strange}#0") as video:
        assert len(video) == 6
    with pytest.raises(VideoError, match=r"say which episode.*run#1#0"):
        open_video(strange)
    file = strange.with_name("clip#2.mp4")
    (strange / MP4).rename(file)
    with open_video(file) as video:
        assert len(video) == 11
    with pytest.raises(FileNotFoundError, match=r"other#1\.mp4"):
        open_video(strange.with_name("other#1.mp4"))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("#2", "episode 2 is not there; it has 2, counted from 0"),
        ("#1/observation.images.side", rf"no camera 'observation\.images\.side'; its cameras are {TOP}"),
        ("#x", "'x' names no episode"),
        ("#-1", "'-1' names no episode"),
        ("", "is a LeRobotDataset; say which episode"),
    ],
)
def test_wrong_choice(dataset: Path, rest: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_video(f"{dataset}{rest}")


def test_several_cameras_to_choose_from(both: Path) -> None:
    with pytest.raises(VideoError, match=f"choose one of {TOP}, {WRIST}"):
        open_video(f"{both}#0")


def test_episode_of_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no LeRobotDataset"):
        open_video(f"{tmp_path}#0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(codebase_version="v2.1"), r"'v2\.1', v3\.x expected; convert it: python -m lerobot"),
        (lambda info: info.update(codebase_version="v4.0"), r"'v4\.0', v3\.x expected"),
        (lambda info: info.pop("codebase_version"), "None, v3"),
        (lambda info: info.update(fps=0), "fps: .*greater than 0"),
        (lambda info: info.pop("features"), "features: Field required"),
        (lambda info: info["features"][TOP].update(shape=[]), "shape"),
        (lambda info: info["features"].update({"a/b": {"dtype": "float32", "shape": [1]}}), "a/b"),
        (lambda info: info.update(data_path="../{chunk_index}"), "leads out"),
        (lambda info: info.update(video_path="{video_key.__class__}"), "unknown fields"),
        (lambda info: info.update(total_episodes=3), "2 episodes in meta/episodes, 3 in info.json"),
    ],
)
def test_records_that_cannot_be(dataset: Path, change, message: str) -> None:
    edit_info(dataset, change)
    with pytest.raises(VideoError, match=message):
        open_video(f"{dataset}#0")


def test_record_that_is_no_json(dataset: Path) -> None:
    (dataset / "meta/info.json").write_text("{")
    with pytest.raises(VideoError, match="no JSON"):
        LeRobotFolder.open(dataset)


@pytest.mark.parametrize("name", [DATA, MP4, PLACES])
def test_missing_files_are_named(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    with pytest.raises(VideoError, match=r"missing|no meta/episodes") as error:
        open_video(f"{dataset}#0")
    assert name.split("/", maxsplit=1)[0] in str(error.value)


@pytest.mark.parametrize("name", [DATA, MP4, PLACES])
def test_files_that_are_cut_off(dataset: Path, name: str) -> None:
    data = (dataset / name).read_bytes()
    (dataset / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(VideoError, match=r"truncated|cut off"), open_video(f"{dataset}#1") as video:
        list(video)


def test_damage_inside_of_a_parquet_file(both: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", both, folder], check=True)
    data = bytearray((folder / DATA).read_bytes())
    # The pictures are the last column of each row group; the footer stays.
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    (folder / DATA).write_bytes(data)
    with pytest.raises(VideoError):
        for episode in range(4):
            with open_video(f"{folder}#{episode}/{WRIST}") as video:
                list(video)


def test_image_that_is_only_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "pick", (3,))
    add_image_camera(folder, WRIST)
    cells = [{"bytes": None, "path": "a.png"}] * 3
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    edit_table(folder / DATA, lambda table: table.set_column(table.num_columns - 1, WRIST, pa.array(cells, kind)))
    with pytest.raises(VideoError, match="image 0 is not in"):
        open_video(f"{folder}#0/{WRIST}")


def test_rows_that_are_missing(dataset: Path) -> None:
    edit_table(dataset / DATA, lambda table: table.slice(0, 9))
    assert len(LeRobotFolder.open(dataset).column(0, "action")) == 6
    with pytest.raises(VideoError, match="3 rows of episode 1, 5 in a row expected"):
        LeRobotFolder.open(dataset).column(1, "action")


def test_frames_that_the_video_does_not_have(dataset: Path) -> None:
    place = f"videos/{TOP}/from_timestamp"

    def late(table: pa.Table) -> pa.Table:
        index = table.column_names.index(place)
        table = table.set_column(index, place, pa.array([0.0, 7.0]))
        return table.set_column(index + 1, place.replace("from", "to"), pa.array([0.6, 7.5]))

    edit_table(dataset / PLACES, late)
    assert len(open_video(f"{dataset}#0")) == 6
    with pytest.raises(VideoError, match=r"no frame at 7\.000 s"):
        open_video(f"{dataset}#1")


def test_part_of_the_video_that_is_too_short(dataset: Path) -> None:
    place = f"videos/{TOP}/to_timestamp"
    edit_table(
        dataset / PLACES,
        lambda table: table.set_column(table.column_names.index(place), place, pa.array([0.3, 1.1])),
    )
    with pytest.raises(VideoError, match=r"last frame is at 0\.500 s.*ends at 0\.300 s"):
        open_video(f"{dataset}#0")


def test_column_of_another_type_than_said(dataset: Path) -> None:
    edit_info(dataset, lambda info: info["features"]["observation.state"].update(shape=[3]))
    with pytest.raises(VideoError, match=r"'observation\.state' is not float32 \(3,\)"):
        LeRobotFolder.open(dataset).column(0, "observation.state")


@pytest.mark.parametrize(("name", "message"), [("nothing", "no feature 'nothing'"), (TOP, "is a camera")])
def test_columns_that_are_none(dataset: Path, name: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        LeRobotFolder.open(dataset).column(0, name)


def test_without_pyarrow_the_error_names_the_extra(dataset: Path) -> None:
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from v2r_core.video import VideoError, open_video\n"
        f"try: open_video({str(dataset) + '#0'!r})\n"
        "except VideoError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "pip install -e '.[label]'" in out.stdout


def test_importing_loads_neither_torch_nor_pyarrow() -> None:
    script = (
        "import sys, v2r_core.video.lerobot, v2r_core.video.lerobot_episode\n"
        "print([m for m in ('torch', 'pyarrow', 'rclpy', 'lerobot') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_what_else_the_record_says_is_kept(dataset: Path) -> None:
    edit_info(dataset, lambda info: info.update(license="apache-2.0"))
    info = LeRobotFolder.open(dataset).info
    assert json.loads(info.model_dump_json())["license"] == "apache-2.0"
