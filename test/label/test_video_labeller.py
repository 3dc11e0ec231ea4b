"""One labelled video: the same numbers as `v2r score`, whatever the goal and the reward."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from synthetic_video import moving_square
from toy_rewards import write_learned_bundle

from v2r_core.cli.main import main
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.goals import file_goal_name
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.video.source import open_video

COLUMNS = {"reward": "reward", "value": "value", "progress": "progress", "uncertainty": "uncertainty"}


@pytest.fixture
def goals(tmp_path: Path, clip: Path, tiny_bundle: Path) -> dict[str, str | None]:
    Image.fromarray(moving_square()[-1]).save(tmp_path / "goal.png")
    scorer = Scorer(load_bundle(tiny_bundle))
    with open_video(clip) as video:
        scorer.goal_from_video(video, "saved").save(tmp_path / "goal.safetensors")
    return {
        "none": None,
        "last": "last",
        "image": str(tmp_path / "goal.png"),
        "demonstration": str(clip),
        "saved": str(tmp_path / "goal.safetensors"),
    }


def scored(clip: Path, model: Path, out: Path, goal: str | None, reward: str | None) -> np.ndarray:
    words = ["score", str(clip), "--model", str(model), "--out", str(out), "--json"]
    words += ["--goal", goal] if goal else []
    words += ["--reward", reward] if reward else []
    assert main(words) == 0
    return np.genfromtxt(out / "curve.csv", delimiter=",", names=True, dtype=None, encoding=None)


def check(labels, expected: np.ndarray) -> None:
    assert len(labels) == len(expected) == 40
    for mine, theirs in COLUMNS.items():
        # The csv has six digits.
        np.testing.assert_allclose(getattr(labels.curve, mine), expected[theirs], rtol=1e-5, atol=1e-9)
    assert [Status(number).name.lower() for number in labels.status] == expected["status"].tolist()
    np.testing.assert_array_equal(labels.curve.subgoal_index, expected["subgoal"])
    np.testing.assert_allclose(labels.stamps, expected["stamp"], atol=1e-6)
    assert np.isfinite(labels.curve.reward).sum() > 20


@pytest.mark.parametrize("reward", [None, "uvd", "pixel"])
@pytest.mark.parametrize("form", ["none", "last", "image", "demonstration"])
def test_equals_score(clip: Path, tiny_bundle: Path, tmp_path: Path, goals, form: str, reward: str | None) -> None:
    labels = VideoLabeller(LabellerOptions(tiny_bundle, reward)).label(VideoTask(str(clip), "clip", goals[form]))
    check(labels, scored(clip, tiny_bundle, tmp_path / "score", goals[form], reward))
    origin = labels.origin
    assert (origin.source, origin.name, origin.reward) == (str(clip), "clip", reward or "vip")
    assert origin.goal_source == ("last" if form in ("none", "last") else goals[form])
    assert origin.goal
    assert origin.model_sha256 == load_bundle(tiny_bundle).sha256


@pytest.mark.parametrize("reward", ["time", "viper", "diffusion"])
def test_learned_rewards_equal_score(clip: Path, tmp_path: Path, reward: str) -> None:
    model = write_learned_bundle(tmp_path / "bundle", reward)
    labeller = VideoLabeller(LabellerOptions(model))
    labels = labeller.label(VideoTask(str(clip), "clip"))
    check(labels, scored(clip, model, tmp_path / "score", None, None))
    assert (labels.origin.goal, labels.origin.goal_source) == ("", "")
    assert labels.origin.kind == ("value" if reward == "time" else "step_reward")
    with pytest.raises(ValueError, match="compares with no goal"):
        labeller.label(VideoTask(str(clip), "clip", "last"))


def test_one_video_leaves_no_trace_in_the_next(clip: Path, tiny_bundle: Path, tmp_path: Path, goals) -> None:
    """One labeller, goals and videos in turn: as if each had a labeller of its own."""
    other = tmp_path / "other.mp4"
    with av.open(str(other), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        for frame in reversed(moving_square(25, 48, 96)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    labeller = VideoLabeller(LabellerOptions(tiny_bundle))
    for source, goal in [(clip, None), (other, "image"), (clip, "demonstration"), (other, None), (clip, "image")]:
        task = VideoTask(str(source), source.name, goals[goal] if goal else None)
        fresh = VideoLabeller(LabellerOptions(tiny_bundle)).label(task)
        again = labeller.label(task)
        assert again.origin == fresh.origin
        np.testing.assert_array_equal(again.curve.reward, fresh.curve.reward)
        np.testing.assert_array_equal(again.curve.progress, fresh.curve.progress)


def test_saved_goal(clip: Path, tiny_bundle: Path, goals) -> None:
    labeller = VideoLabeller(LabellerOptions(tiny_bundle))
    saved = labeller.label(VideoTask(str(clip), "clip", goals["saved"]))
    shown = labeller.label(VideoTask(str(clip), "clip", goals["demonstration"]))
    np.testing.assert_allclose(saved.curve.value, shown.curve.value, atol=1e-6)
    assert saved.origin.goal == file_goal_name([Path(goals["saved"])])


@pytest.mark.parametrize("form", ["last", "image", "demonstration", "saved"])
def test_overlay(clip: Path, tiny_bundle: Path, tmp_path: Path, goals, form: str) -> None:
    """Every frame is in it, with the picture of the goal in the corner where there is one."""
    out = tmp_path / "sub" / "overlay.mp4"
    VideoLabeller(LabellerOptions(tiny_bundle)).label(VideoTask(str(clip), "clip", goals[form], out))
    assert [path.name for path in out.parent.iterdir()] == ["overlay.mp4"]
    with open_video(out) as video:
        assert len(video) == 40
        assert video.fps == pytest.approx(30)
        first = video[0]
    assert first.shape[1] == 480
    # The walking square is far from its goal: only a picture of the goal is bright in the right upper corner.
    corner = first[15:85, 400:460].mean()
    assert (corner > 75) == (form != "saved")


def test_errors_name_the_file(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    labeller = VideoLabeller(LabellerOptions(tiny_bundle))
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4"):
        labeller.label(VideoTask(str(tmp_path / "nothing.mp4"), "x"))
    with pytest.raises(FileNotFoundError, match=r"goal\.png"):
        labeller.label(VideoTask(str(clip), "x", str(tmp_path / "goal.png")))
    (tmp_path / "bad.mp4").write_bytes(clip.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        labeller.label(VideoTask(str(tmp_path / "bad.mp4"), "x"))
    assert len(labeller.label(VideoTask(str(clip), "x"))) == 40, "an error spoils nothing for the next video"
