"""Videos of several cameras: one episode, and the way back."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clip_writer import number_of, write_video
from robot_bags import SECOND, START, episode, reward, write_bag

from v2r_core.cli.convert import Convert
from v2r_core.convert.parts import CameraNames, ConvertError, Wishes
from v2r_core.convert.run import ConvertTask, convert
from v2r_core.label.set_writer import MANIFEST, read_manifest
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.video import Video

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
FOLDERS, FILES = Wishes(cameras="folders"), Wishes(cameras="files")


def numbers(video: Video) -> list[int]:
    with video:
        return [number_of(frame) for frame in video]


def two_cameras(root: Path, labelled: bool = False) -> Path:
    """A dataset of two episodes, of 20 and 15 frames, with two cameras that show different numbers."""
    rows = episode() + episode(START + 9 * SECOND, 15, number=1)
    if labelled:
        for number, start, frames in ((0, START, 20), (1, START + 9 * SECOND, 15)):
            rows += [reward(10.0 * number + index, start + index * SECOND // 20, number) for index in range(frames)]
    convert(ConvertTask(write_bag(root / "bag", rows), root / "dataset", "lerobot"))
    return root / "dataset"


@pytest.mark.parametrize("labelled", [False, True])
def test_a_dataset_becomes_videos_and_the_same_dataset_again(tmp_path: Path, labelled: bool):
    first = two_cameras(tmp_path, labelled)
    convert(ConvertTask(first, tmp_path / "videos", "videos"))
    result = convert(ConvertTask(tmp_path / "videos", tmp_path / "again", "lerobot", FOLDERS))
    assert (result.episodes, result.frames, result.recordings, result.failed) == (2, 35, 2, {})
    assert not sum(result.left_out.frames.values())
    one, other = LeRobotFolder.open(first), LeRobotFolder.open(tmp_path / "again")
    assert other.cameras == one.cameras == (FRONT, WRIST)
    assert (other.fps, other.episodes) == (one.fps, one.episodes)
    for number in range(2):
        assert other.length(number) == one.length(number)
        for camera in (FRONT, WRIST):
            assert numbers(one.video(number, camera)) == numbers(other.video(number, camera))
        assert numbers(other.video(number, WRIST))[0] == 100 + 10 * number
        for name in ("v2r.reward", "v2r.value", "v2r.progress", "v2r.status", "next.reward") if labelled else ():
            assert np.array_equal(one.column(number, name), other.column(number, name), equal_nan=True), name
    assert ("v2r.reward" in other.features) == labelled


def layout(root: Path, cameras: CameraNames) -> Path:
    """Three episodes: the second is longer on the wrist, the third has no wrist."""
    for number, camera, count in (
        (1, "front", 20),
        (1, "wrist", 20),
        (2, "front", 10),
        (2, "wrist", 14),
        (10, "front", 9),
    ):
        folder, name = (camera, f"try {number}") if cameras == "folders" else (f"try {number}", camera)
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_video(root / folder / f"{name}.mp4", count=count)
    return root


@pytest.mark.parametrize("cameras", ["folders", "files"])
def test_both_ways_to_name_cameras(tmp_path: Path, cameras: CameraNames, capsys: pytest.CaptureFixture[str]):
    videos = layout(tmp_path / "videos", cameras)
    out = tmp_path / "out"
    assert Convert(videos, out, "lerobot", cameras=cameras).run() == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "try 10: no video of wrist, only of front" in said
    folder = LeRobotFolder.open(out)
    assert [folder.length(number) for number in range(folder.episodes)] == [20, 10]
    assert numbers(folder.video(1, WRIST)) == list(range(10))
    assert Convert(videos, tmp_path / "one", "lerobot", cameras=cameras, image=("front",)).run() == 0
    assert LeRobotFolder.open(tmp_path / "one").cameras == (FRONT,)
    assert LeRobotFolder.open(tmp_path / "one").episodes == 3


def test_the_first_camera_has_the_clock_and_no_frame_is_from_the_future(tmp_path: Path):
    write_video_at(tmp_path / "videos" / "a" / "fast.mp4", 30, 60)
    write_video_at(tmp_path / "videos" / "a" / "slow.mp4", 10, 10)
    wishes = Wishes(cameras="files", images=("fast", "slow"))
    result = convert(ConvertTask(tmp_path / "videos", tmp_path / "out", "lerobot", wishes))
    folder = LeRobotFolder.open(tmp_path / "out")
    slow = numbers(folder.video(0, "observation.images.slow"))
    # The slow one shows its last frame for a tenth of a second, up to 1.0 s.
    assert result.left_out.frames["before the begin or after the end of observation.images.slow"] == 29
    assert numbers(folder.video(0, "observation.images.fast")) == list(range(31))
    assert slow == [index // 3 for index in range(30)] + [9]
    assert folder.fps == 30


def write_video_at(path: Path, fps: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, count=count, pts=range(count), time_base=Fraction(1, fps))


def test_an_episode_without_labels_is_left_out(tmp_path: Path):
    """Also if it is the first one: the others keep theirs."""
    convert(ConvertTask(two_cameras(tmp_path, labelled=True), tmp_path / "videos", "videos"))
    first = read_manifest(tmp_path / "videos")["front/episode_000000.mp4"]
    with (tmp_path / "videos" / MANIFEST).open("a") as file:
        file.write(first.model_copy(update={"state": "failed", "error": "damaged"}).model_dump_json() + "\n")
    result = convert(ConvertTask(tmp_path / "videos", tmp_path / "again", "lerobot", FOLDERS))
    assert result.failed == {"episode_000000": "episode_000000: its video of front has no labels; label it again"}
    assert result.frames == 15
    assert "v2r.reward" in LeRobotFolder.open(tmp_path / "again").features


def test_what_names_no_camera_is_refused(tmp_path: Path, clip: Path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clip, folder / "a.mp4")
    with pytest.raises(ConvertError, match=r"a\.mp4: CAMERA/EPISODE\.mp4 expected"):
        convert(ConvertTask(folder, tmp_path / "out", "lerobot", FOLDERS))
    with pytest.raises(ConvertError, match=r"a\.mp4: EPISODE/CAMERA\.mp4 expected"):
        convert(ConvertTask(folder, tmp_path / "out", "lerobot", FILES))
    layout(tmp_path / "named", "folders")
    with pytest.raises(ConvertError, match="no camera 'top'; its cameras are front, wrist"):
        wishes = Wishes(cameras="folders", images=("front", "top"))
        convert(ConvertTask(tmp_path / "named", tmp_path / "out", "lerobot", wishes))
    shutil.copy(tmp_path / "named/front/try 1.mp4", tmp_path / "named/front/try 1.mkv")
    with pytest.raises(ConvertError, match="are of the same camera and episode"):
        convert(ConvertTask(tmp_path / "named", tmp_path / "out", "lerobot", FOLDERS))
    with pytest.raises(ConvertError, match="cameras=folders is for videos, and this is bag"):
        convert(ConvertTask(write_bag(tmp_path / "bag", episode()), tmp_path / "out", "lerobot", FOLDERS))
    assert not list(tmp_path.glob("out*"))
