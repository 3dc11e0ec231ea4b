"""benchmarks/make_episodes.py renders a task: five behaviours, labels, resumption. Needs MetaWorld and OpenGL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from v2r_core.evaluate.episodes import read_episodes

TOOL = Path(__file__).parents[2] / "benchmarks" / "make_episodes.py"
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
    words = ["--out", str(tmp_path), "--tasks", "button-press", "--heldout-tasks", "--train", "1"]
    command = [sys.executable, str(TOOL), *words, "--train-random", "1", "--heldout", "1", "--size", "32"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "7 new videos" in done.stdout

    train = read_episodes(tmp_path / "train")
    assert [each.labels.file for each in train.episodes] == ["expert/button-press/0.mp4", "random/button-press/0.mp4"]
    heldout = {each.labels.behaviour: each for each in read_episodes(tmp_path / "heldout").episodes}
    grades = {behaviour: each.labels.quality for behaviour, each in heldout.items()}
    assert grades == {"expert": 4, "noisy": 3, "half": 2, "wrong_goal": 1, "random": 0}
    assert {behaviour: each.labels.success for behaviour, each in heldout.items()} == {
        behaviour: grade > 2 for behaviour, grade in grades.items()
    }
    expert = heldout["expert"].labels
    assert expert.stages and expert.success_frame and max(expert.stages) < expert.success_frame < expert.frames
    first = {}
    for behaviour, each in heldout.items():
        labels = each.labels
        with each.open() as video:
            assert video[0].shape == (32, 32, 3) and video.fps == pytest.approx(labels.fps)
            first[behaviour] = video[0].astype(int)
        assert len(labels.dense_reward) == labels.frames and labels.dense_reward[0] is None
        # Those that fail last as long as the expert, so that duration tells nothing.
        assert labels.frames == expert.frames or behaviour == "noisy"
    # All start alike; the codec is lossy.
    assert all(np.abs(first["expert"] - frame).mean() < 4 for frame in first.values())
    assert expert.dense_reward[-1] > heldout["half"].labels.dense_reward[-1]

    (tmp_path / "heldout" / "episodes.json").unlink()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "0 new videos" in again.stdout
    assert len(read_episodes(tmp_path / "heldout").episodes) == 5
