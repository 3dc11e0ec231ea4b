"""One door for all sources: what it opens, and what it says when it cannot."""

import subprocess
import sys

import numpy as np
import pytest
from clip_writer import numbered, write_video
from PIL import Image

from v2r_core.video import VideoError, open_video
from v2r_core.video.files import ImageFolder, VideoFile


def test_kinds(tmp_path):
    assert isinstance(open_video(str(write_video(tmp_path / "Clip.MP4", count=2))), VideoFile)
    folder = tmp_path / "folder:/with:colons"
    folder.mkdir(parents=True)
    Image.fromarray(numbered(0)).save(folder / "0.png")
    video = open_video(folder)
    assert isinstance(video, ImageFolder)
    assert video.fps == 10
    assert np.isfinite(video.stamps).all()


def test_single_frame_has_the_declared_rate(tmp_path):
    video = open_video(write_video(tmp_path / "one.mp4", count=1))
    assert len(video) == 1
    assert video.fps == pytest.approx(30)


@pytest.mark.parametrize("path", ["nothing.mp4", "nothing", "nothing:/camera/image"])
def test_missing(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_video(tmp_path / path)


def test_unknown_extension_lists_the_known(tmp_path):
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(VideoError, match=r"'\.txt'.*\.mp4.*\.mcap"):
        open_video(path)


def test_empty_folder(tmp_path):
    with pytest.raises(VideoError, match=r"no image in this folder.*\.png"):
        open_video(tmp_path)


def test_topic_of_what_is_no_bag(tmp_path):
    path = write_video(tmp_path / "clip.mp4", count=2)
    with pytest.raises(VideoError, match=r"'/camera'.*no rosbag2"):
        open_video(f"{path}:/camera")


def test_importing_loads_no_decoder_and_no_torch():
    script = "import sys, v2r_core.video; print([m for m in ('av', 'rosbags', 'torch', 'rclpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["success", "success_2", "half", "other"])
def test_shipped_clips(name):
    from v2r_core import __file__ as core

    path = core.replace("__init__.py", f"assets/clips/{name}.mp4")
    with open_video(path) as video:
        assert video[0].shape == (480, 640, 3)
        assert video.fps == pytest.approx(30)
        assert 4 <= video.stamps[-1] <= 8
