"""The scorer: one answer online and offline, whatever the batch, with decoding in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import NoGoalError, Scorer, Status
from v2r_core.rewards.goal import goal_from_images
from v2r_core.video import open_video


class Frames(list):
    """A list of frames with stamps."""

    @property
    def stamps(self) -> np.ndarray:
        return np.arange(len(self)) / 30.0


@pytest.fixture(params=["vip", "uvd", "pixel"])
def scorer(request: pytest.FixtureRequest, tmp_path: Path) -> Scorer:
    made = Scorer(load_bundle(write_tiny_bundle(tmp_path / "bundle")), reward=request.param, providers=["cpu"])
    made.set_goal(made.goal_from_video(moving_square(), "square"))
    return made


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_score_equals_steps(scorer: Scorer, batch: int) -> None:
    frames = Frames(moving_square())
    whole = scorer.score(frames, batch=batch)
    scorer.reset()
    for index, frame in enumerate(frames):
        sample, status = scorer.step(frame)
        assert status == whole.status[index]
        for name in ("reward", "raw_reward", "value", "progress", "uncertainty"):
            np.testing.assert_allclose(getattr(sample, name), getattr(whole.curve, name)[index], atol=1e-5)


def test_the_demonstration_ends_at_the_goal(scorer: Scorer) -> None:
    curve = scorer.score(Frames(moving_square())).curve
    assert curve.progress[-1] > 0.95
    assert curve.value[-1] == curve.value.max()


def test_a_video_file_gives_its_stamps(clip: Path, tmp_path: Path) -> None:
    scorer = Scorer(load_bundle(write_tiny_bundle(tmp_path / "bundle")))
    with open_video(clip) as video:
        scorer.set_goal(scorer.goal_from_video(video, "clip"))
        seen: list[tuple[int, int]] = []
        result = scorer.score(video, lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(result.stamps, np.arange(40) / 30.0, atol=1e-6)
    assert seen[-1] == (40, 40)
    assert set(result.status[1:]) == {Status.OK}
    assert result.encoder_ms > 0


def test_no_goal(tiny_bundle: Path) -> None:
    scorer = Scorer(load_bundle(tiny_bundle))
    with pytest.raises(NoGoalError, match="set_goal"):
        scorer.step(moving_square()[0])
    with pytest.raises(NoGoalError):
        scorer.score(Frames(moving_square()))


def test_a_goal_that_does_not_fit_leaves_the_old_one(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="'alien'"):
        scorer.set_goal(goal_from_images(np.ones((1, 5), np.float32), "alien"))
    assert scorer.goal is not None
    assert scorer.goal.name == "square"


def test_a_goal_inside_the_bundle_is_used(tmp_path: Path) -> None:
    import json

    from v2r_core.deploy.bundle import MANIFEST
    from v2r_core.deploy.folder import describe_files

    folder = write_tiny_bundle(tmp_path / "bundle")
    Scorer(load_bundle(folder)).goal_from_video(moving_square(), "inside").save(folder / "goal.safetensors")
    content = json.loads((folder / MANIFEST).read_text())
    content["goal"] = "goal.safetensors"
    content["files"] |= {k: v.model_dump() for k, v in describe_files(folder, ["goal.safetensors"]).items()}
    (folder / MANIFEST).write_text(json.dumps(content))
    scorer = Scorer(load_bundle(folder))
    assert scorer.goal is not None
    assert scorer.goal.name == "inside"


def test_an_error_while_decoding_arrives_and_ends_the_thread(scorer: Scorer) -> None:
    class Broken(Frames):
        def __iter__(self) -> Iterator[np.ndarray]:
            yield moving_square()[0]
            raise OSError("the disk is gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        scorer.score(Broken(moving_square()))
    assert threading.active_count() == before


def test_distance_to_goal_is_that_of_the_newest_frame(tiny_bundle: Path) -> None:
    frames = moving_square()
    scorer = Scorer(load_bundle(tiny_bundle))
    assert np.isnan(scorer.distances_to_goal()).all()
    scorer.set_goal(scorer.goal_from_frames([frames[-1]], "last"))
    scorer.step(frames[0])
    (far,) = scorer.distances_to_goal()
    scorer.step(frames[-1])
    assert far > 0.1
    assert scorer.distances_to_goal() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("rule", ["mean", "min"])
@pytest.mark.parametrize("reward", ["vip", "uvd"])
def test_two_cameras(tmp_path: Path, reward: str, rule: str) -> None:
    """The second camera sees the task mirrored; with `min` one of them is enough."""
    frames = moving_square()
    both = Frames((frame, np.ascontiguousarray(frame[:, ::-1])) for frame in frames)
    bundle = load_bundle(write_tiny_bundle(tmp_path / "bundle"))
    scorer = Scorer(bundle, reward=reward, parameters={"cameras": rule}, cameras=2)
    scorer.set_goal(scorer.goal_from_video(both, "both"))
    whole = scorer.score(both)
    assert whole.curve.progress[-1] > 0.95
    scorer.reset()
    for index, view in enumerate(both):
        sample, status = scorer.step(view)
        assert status == whole.status[index]
        assert sample.value == pytest.approx(whole.curve.value[index], abs=1e-5)
    assert scorer.distances_to_goal() == pytest.approx([0.0, 0.0], abs=1e-6)
    # The second camera is stuck at the first frame: the mean notices it, the minimum does not.
    scorer.reset()
    value = [scorer.step((view[0], both[0][1]))[0].value for view in both][-1]
    full = whole.curve.value[-1]
    assert value == pytest.approx(full, abs=1e-5) if rule == "min" else not value >= full - 0.1


def test_a_view_of_another_number_of_cameras_is_refused(tiny_bundle: Path) -> None:
    scorer = Scorer(load_bundle(tiny_bundle), cameras=2)
    with pytest.raises(ValueError, match="1 frames at one moment for 2 cameras"):
        scorer.goal_from_frames(moving_square()[:1], "one")
    single = Scorer(load_bundle(tiny_bundle))
    with pytest.raises(ValueError, match="for 1 cameras, there are 2"):
        scorer.set_goal(single.goal_from_frames(moving_square()[:1], "one"))
