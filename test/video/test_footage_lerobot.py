"""A LeRobotDataset as training material: each episode is a video of its own, whatever file it lies in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from clip_writer import number_of, write_video
from lerobot_data import LENGTHS, TOP, WRIST, add_image_camera, edit_info, write_dataset

from v2r_core.video import VideoError, open_video
from v2r_core.video.augment import View
from v2r_core.video.batches import finish, make_loader
from v2r_core.video.clips import ClipDataset, DataSpec
from v2r_core.video.footage import CacheFolder, Reader, find_videos, index_sources
from v2r_core.video.frame_cache import open_cached, source_state

WHOLE = View(
    48, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.0, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes, one camera as a video, one as images."""
    folder = write_dataset(tmp_path_factory.mktemp("sets") / "pick")
    add_image_camera(folder, WRIST)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Episodes of 12, 1, 9 and 15 frames in one mp4."""
    return write_dataset(tmp_path / "pick")


def test_every_episode_of_every_camera_is_a_source(both: Path) -> None:
    episodes = [f"{both}#{episode}/{camera}" for episode in range(4) for camera in (TOP, WRIST)]
    assert find_videos([both]) == episodes
    assert find_videos([both.parent]) == episodes
    assert find_videos([f"{both}#2"]) == episodes[4:6]
    assert find_videos([f"{both}#2/{WRIST}", both]) == [
        episodes[5],
        *(name for name in episodes if name != episodes[5]),
    ]
    sources, skipped = index_sources(episodes, needed=2)
    assert [source.frames for source in sources] == [12, 12, 9, 9, 15, 15]
    assert [name for name, _ in skipped] == episodes[2:4]


def test_a_dataset_among_videos(dataset: Path) -> None:
    write_video(dataset.parent / "a.mp4", count=5)
    write_video(dataset.parent / "pick#9.mp4", count=5)
    episodes = [f"{dataset}#{episode}/{TOP}" for episode in range(4)]
    assert find_videos([dataset.parent]) == [
        str(dataset.parent / "a.mp4"),
        str(dataset.parent / "pick#9.mp4"),
        *episodes,
    ]


@pytest.mark.parametrize("inside", ["videos", f"videos/{TOP}", f"videos/{TOP}/chunk-000/file-000.mp4"])
def test_a_file_of_many_episodes_is_no_video(dataset: Path, inside: str) -> None:
    with pytest.raises(VideoError, match=r"part of the LeRobotDataset .*pick, .*many episodes.*give .*pick#0"):
        find_videos([dataset / inside])


def test_what_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="episode 4 is not there; it has 4"):
        find_videos([f"{dataset}#4"])
    with pytest.raises(VideoError, match=f"no camera 'front'; its cameras are {TOP}"):
        find_videos([f"{dataset}#0/front"])
    with pytest.raises(VideoError, match=r"'one' names no episode"):
        find_videos([f"{dataset}#one"])
    edit_info(dataset, lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(VideoError, match=r"'v2\.1', v3\.x expected; convert it"):
        find_videos([tmp_path])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_the_frames_of_two_episodes_never_mix(dataset: Path, workers: int, cached: bool, tmp_path: Path) -> None:
    """Episode e has the numbers from 50 e on: the picture itself says where it is from."""
    spec = DataSpec((WHOLE,), frames=3, stride=2)
    data = ClipDataset([dataset], spec, cache=tmp_path / "cache" if cached else None)
    assert len(data) == sum(max(0, length - 4) for length in LENGTHS)
    assert [name for name, _ in data.skipped] == [f"{dataset}#1/{TOP}"]
    seen = set()
    for batch in map(finish, make_loader(data, 4, workers, steps=8)):
        assert not batch["damaged"]
        for name, clip in zip(batch["names"], batch["views"][0], strict=True):
            source, _, frame = name.rpartition("#")
            episode = int(source.removeprefix(f"{dataset}#").removesuffix(f"/{TOP}"))
            numbers = [number_of((clip[:, t].permute(1, 2, 0) * 255).numpy()) for t in range(3)]
            assert numbers == [50 * episode + int(frame) + step for step in (0, 2, 4)]
            seen.add(episode)
    assert seen == {0, 2, 3}


def test_cached_frames_are_of_one_episode_and_follow_the_dataset(dataset: Path, tmp_path: Path) -> None:
    sources, _ = index_sources([f"{dataset}#{episode}/{TOP}" for episode in (0, 3)], 2)
    reader = Reader(sources, CacheFolder(tmp_path / "cache", 256))
    assert [number_of(reader.frame(source, 5)) for source in (0, 1)] == [5, 155]
    before = set((tmp_path / "cache").glob("*.npy"))
    assert len(before) == 2
    write_dataset(tmp_path / "new", (8, 8))
    dataset.rename(tmp_path / "old")
    (tmp_path / "new").rename(dataset)
    assert len(open_cached(f"{dataset}#0/{TOP}", tmp_path / "cache", 256)) == 8
    assert len(before & set((tmp_path / "cache").glob("*.npy"))) == 1


def test_the_state_of_an_episode_is_that_of_its_files(dataset: Path) -> None:
    state = source_state(f"{dataset}#0/{TOP}")
    assert {name for name, _, _ in state} == {
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/tasks.parquet",
        f"videos/{TOP}/chunk-000/file-000.mp4",
    }
    os.utime(dataset / "videos" / TOP / "chunk-000" / "file-000.mp4", ns=(1, 1))
    assert source_state(f"{dataset}#0/{TOP}") != state


def test_a_reader_gives_what_open_video_does(both: Path) -> None:
    sources, _ = index_sources(find_videos([both]), 2)
    reader = Reader(sources)
    assert len(sources) == 6
    for number, source in enumerate(sources):
        with open_video(source.path) as video:
            assert np.array_equal(reader.frame(number, source.frames - 1), video[-1])
