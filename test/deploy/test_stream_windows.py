"""Rewards that look at a window of frames: the same stretch of time at every frame rate, online and offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle
from toy_rewards import LENGTH, write_learned_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.pacing import frames_apart
from v2r_core.deploy.stream import Scorer, Status, judge
from v2r_core.rewards.reward import RewardSample

FIELDS = ("reward", "raw_reward", "value", "progress", "uncertainty")
NAN = float("nan")
WINDOWED = ["viper", "diffusion"]


class Frames(list):
    """Frames at a rate."""

    def __init__(self, frames: list[np.ndarray], fps: float = 30.0) -> None:
        super().__init__(frames)
        self.stamps = 1e9 + np.arange(len(frames)) / fps


def scorer_of(tmp_path: Path, reward: str, rate: float | None = None, paced: bool = False, **parameters) -> Scorer:
    folder = tmp_path / f"{reward}-{rate}-{len(parameters)}"
    if not folder.exists():
        write_learned_bundle(folder, reward, rate, **parameters)
    return Scorer(load_bundle(folder), providers=["cpu"], paced=paced)


@pytest.mark.parametrize(
    ("camera", "window", "frames"),
    [
        (30, 30, 1),
        (30, 25, 1),  # the next frame would come 1.7 periods after the last
        (30, 20, 2),
        (29.2, 20, 2),  # the same camera when it keeps time badly
        (30, 15, 2),
        (30, 10, 3),
        (25, 10, 3),
        (60, 20, 3),
        (20.1, 30, 1),
        (19.9, 30, 0),
        (1, 30, 0),
    ],
)
def test_frames_apart(camera: float, window: float, frames: int) -> None:
    assert frames_apart(1 / camera, 1 / window) == frames


def test_frames_apart_never_leave_the_window_too_far_apart() -> None:
    for ratio in np.geomspace(0.67, 100, 500):
        span = frames_apart(1.0, float(ratio)) / ratio
        assert 0.68 < span < 1.5


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(
    ("reward", "rate"), [("time", None), *((reward, rate) for reward in WINDOWED for rate in (None, 10.0))]
)
def test_score_equals_steps(tmp_path: Path, reward: str, rate: float | None, batch: int) -> None:
    scorer, frames = scorer_of(tmp_path, reward, rate), Frames(moving_square())
    whole = scorer.score(frames, batch=batch)
    scorer.reset()
    for index, frame in enumerate(frames):
        sample, status = scorer.step(frame)
        assert status == whole.status[index]
        for name in FIELDS:
            np.testing.assert_allclose(getattr(sample, name), getattr(whole.curve, name)[index], rtol=0, atol=1e-4)
    raw = whole.curve.raw_reward
    assert np.nanstd(raw) > 1e-3, "a reward that is the same for all frames compares nothing"


@pytest.mark.parametrize(("fps", "apart"), [(10, 1), (20, 2), (30, 3), (60, 6)])
@pytest.mark.parametrize("reward", WINDOWED)
def test_the_window_spans_the_same_time_at_every_rate(tmp_path: Path, reward: str, fps: int, apart: int) -> None:
    scored = scorer_of(tmp_path, reward, 10.0).score(Frames(moving_square(), fps))
    warm = (LENGTH[reward] - 1) * apart
    assert list(scored.status) == [Status.WARMING_UP] * warm + [Status.OK] * (40 - warm)
    assert np.isnan(scored.curve.reward[:warm]).all() and np.isfinite(scored.curve.reward[warm:]).all()
    assert np.isfinite(scored.curve.uncertainty).all()
    assert np.isnan(scored.curve.value).all() and np.isnan(scored.curve.progress).all()


def test_frames_left_out_change_nothing_but_their_own_scores(tmp_path: Path) -> None:
    scorer, frames = scorer_of(tmp_path, "viper", 10.0), moving_square()
    whole = scorer.score(Frames(frames, 30)).curve.reward
    thinned = scorer.score(Frames(frames[::3], 10)).curve.reward
    np.testing.assert_allclose(whole[::3], thinned, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reward", WINDOWED)
def test_a_paced_scorer_gives_what_a_video_of_that_rate_gives(tmp_path: Path, reward: str) -> None:
    frames = moving_square()[::3]
    offline = scorer_of(tmp_path, reward, 10.0).score(Frames(frames, 10)).curve.reward
    live = scorer_of(tmp_path, reward, 10.0, paced=True)
    assert live.period == pytest.approx(0.1)
    assert live.reward.history == LENGTH[reward]
    np.testing.assert_allclose([live.step(frame)[0].reward for frame in frames], offline, rtol=0, atol=1e-4)


def test_a_video_after_one_of_another_rate_is_scored_as_the_first(tmp_path: Path) -> None:
    scorer, frames = scorer_of(tmp_path, "viper", 10.0), moving_square()
    before = scorer.score(Frames(frames, 30)).curve.reward
    assert not np.allclose(scorer.score(Frames(frames, 60)).curve.reward, before, equal_nan=True)
    np.testing.assert_array_equal(scorer.score(Frames(frames, 30)).curve.reward, before)


def test_parameters_outlive_the_change_of_rate(tmp_path: Path) -> None:
    bundle = load_bundle(write_learned_bundle(tmp_path / "bundle", "viper", 10.0))
    plain, scaled = (Scorer(bundle, parameters={"scale": scale}, providers=["cpu"]) for scale in (1.0, 3.0))
    video = Frames(moving_square(), 30)
    np.testing.assert_allclose(scaled.score(video).curve.reward, 3 * plain.score(video).curve.reward, rtol=1e-5)


def test_scale_and_clip_outlive_the_change_of_rate(tmp_path: Path) -> None:
    frames = moving_square()
    plain = scorer_of(tmp_path, "viper", 10.0)
    expected = [plain.score(Frames(frames, fps)).curve.reward for fps in (30, 60)]
    bound = 2 * float(np.nanmedian(np.abs(np.concatenate(expected))))
    scorer = scorer_of(tmp_path, "viper", 10.0)
    scorer.set_shape(3.0, bound)
    for fps, reward in zip((30, 60), expected, strict=True):
        found = scorer.score(Frames(frames, fps)).curve.reward
        np.testing.assert_allclose(found, np.clip(3 * reward, -bound, bound), rtol=1e-5)
    with pytest.raises(ValueError, match="scale"):
        scorer.set_shape(-1.0, None)
    again = scorer.score(Frames(frames, 30)).curve.reward
    np.testing.assert_allclose(again, np.clip(3 * expected[0], -bound, bound), rtol=1e-5)


def test_a_video_with_too_few_frames_a_second_is_refused_with_both_numbers(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path, "viper", 10.0)
    with pytest.raises(ValueError, match=r"5 frames/s, a window of 'viper' wants 10"):
        scorer.score(Frames(moving_square(), 5))
    assert set(scorer.score(Frames(moving_square(), 7)).status[WARM:]) == {Status.OK}


WARM = LENGTH["viper"] - 1


@pytest.mark.parametrize("reward", WINDOWED)
@pytest.mark.parametrize("count", [1, 2])
def test_a_video_shorter_than_the_window_has_no_reward(tmp_path: Path, reward: str, count: int) -> None:
    scored = scorer_of(tmp_path, reward, 10.0).score(Frames(moving_square()[:count], 30))
    assert list(scored.status) == [Status.WARMING_UP] * count
    assert np.isnan(scored.curve.reward).all()


def test_frames_without_times_are_counted_as_in_training(tmp_path: Path) -> None:
    video = Frames(moving_square())
    video.stamps = np.zeros(40)
    scored = scorer_of(tmp_path, "viper", 10.0).score(video)
    assert list(scored.status).index(Status.OK) == WARM * 2


def test_a_bundle_without_rate_counts_frames(tmp_path: Path) -> None:
    for paced in (False, True):
        scorer = scorer_of(tmp_path, "viper", paced=paced)
        assert scorer.period is None
        assert list(scorer.score(Frames(moving_square(), 7)).status).index(Status.OK) == WARM * 2


def test_only_the_bundles_own_reward_has_a_pace(tmp_path: Path) -> None:
    bundle = load_bundle(write_learned_bundle(tmp_path / "bundle", "viper", 10.0))
    other = Scorer(bundle, reward="vip", providers=["cpu"], paced=True)
    assert other.period is None
    assert other.reward.kind == "value"
    assert Scorer(load_bundle(write_tiny_bundle(tmp_path / "tiny")), providers=["cpu"], paced=True).period is None


def test_noise_is_that_of_the_seed(tmp_path: Path) -> None:
    bundle, video = load_bundle(write_learned_bundle(tmp_path / "bundle", "diffusion")), Frames(moving_square())
    first, again, other = (
        Scorer(bundle, parameters={"seed": seed}, providers=["cpu"]).score(video).curve.reward for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.nanmax(np.abs(first - other)) > 1e-3


@pytest.mark.parametrize("reward", WINDOWED)
def test_a_frame_out_of_distribution_empties_the_window(tmp_path: Path, reward: str) -> None:
    frames = moving_square()
    frames[20] = np.zeros_like(frames[0])
    scored = scorer_of(tmp_path, reward, 30.0).score(Frames(frames))
    assert scored.status[20] == Status.OUT_OF_DISTRIBUTION
    assert scored.curve.uncertainty[20] > 1
    warm = LENGTH[reward] - 1
    assert list(scored.status[21 : 22 + warm]) == [Status.WARMING_UP] * warm + [Status.OK]


@pytest.mark.parametrize(
    ("sample", "kind", "status"),
    [
        (RewardSample(1.0, 1.0, NAN, NAN, 0, 1, 0.5), "step_reward", Status.OK),
        (RewardSample(NAN, NAN, NAN, NAN, 0, 1, 0.5), "step_reward", Status.WARMING_UP),
        (RewardSample(NAN, NAN, NAN, NAN, 0, 1, NAN), "step_reward", Status.INTERNAL_ERROR),
        (RewardSample(1.0, 1.0, NAN, NAN, 0, 1, 1.5), "step_reward", Status.OUT_OF_DISTRIBUTION),
        (RewardSample(NAN, NAN, NAN, NAN, 0, 1, float("inf")), "step_reward", Status.OUT_OF_DISTRIBUTION),
        (RewardSample(1.0, 1.0, 2.0, NAN, 0, 1, NAN), "value", Status.OK),
        (RewardSample(NAN, NAN, 2.0, NAN, 0, 1, NAN), "value", Status.WARMING_UP),
        (RewardSample(1.0, 1.0, NAN, NAN, 0, 1, 0.5), "value", Status.INTERNAL_ERROR),
    ],
)
def test_judge(sample: RewardSample, kind: str, status: Status) -> None:
    judged, found = judge(sample, kind)
    assert found is status
    if status is Status.OUT_OF_DISTRIBUTION:
        assert np.isnan([judged.reward, judged.raw_reward, judged.value, judged.progress]).all()
        assert judged.uncertainty == sample.uncertainty
    else:
        assert judged is sample
