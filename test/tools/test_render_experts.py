"""tools/render_experts.py draws a task: video, side-car, split. Needs MetaWorld and headless OpenGL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from v2r_core.video.source import open_video

TOOL = Path(__file__).parents[2] / "tools" / "render_experts.py"
# In a process of its own: Mesa must not be loaded before triton.
CHECK = "import metaworld, mujoco; mujoco.GLContext(8, 8)"


def environment() -> dict[str, str]:
    return {"MUJOCO_GL": "egl", **os.environ}


@pytest.mark.slow
def test_one_seed_a_split(tmp_path: Path) -> None:
    usable = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment(), capture_output=True, text=True, check=False
    )
    if usable.returncode:
        pytest.skip(f"no MetaWorld or no headless OpenGL: {usable.stderr.strip().rpartition(chr(10))[2]}")
    words = ["--out", str(tmp_path), "--tasks", "reach", "--train", "1", "--heldout", "1", "--longest", "12"]
    command = [sys.executable, str(TOOL), *words, "--size", "64", "--processes", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*"))
    assert files == ["heldout/reach_1.mp4", "heldout/reach_1.npz", "train/reach_0.mp4", "train/reach_0.npz"]
    with open_video(tmp_path / "train" / "reach_0.mp4") as video, np.load(tmp_path / "train" / "reach_0.npz") as truth:
        assert len(video) == 6 == len(truth["gripper"]) == len(truth["object"])
        assert video[0].shape == (64, 64, 3)
        assert video[0].std() > 10
        assert (str(truth["task"]), int(truth["seed"])) == ("reach", 0)
        assert np.isnan(truth["object2"]).all()
        # The arm stands over the table, in metres.
        assert (np.abs(truth["gripper"] - [0, 0.6, 0.2]) < [0.5, 0.4, 0.3]).all()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert "0 videos" in again.stdout
