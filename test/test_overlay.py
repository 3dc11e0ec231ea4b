"""What is drawn on a frame: the reward too, which is all that a step reward has."""

import numpy as np
import pytest

from v2r_core.label import overlay_video as overlay
from v2r_core.overlay import STRIP, TARGET_SIDE, draw_overlay, small_target
from v2r_core.rewards.reward import RewardCurve, RewardSample

NAN = float("nan")
FRAME = np.full((360, 480, 3), 90, np.uint8)


SHOWN = {"reward": NAN, "progress": NAN, "value": NAN, "subgoal_index": 0, "subgoal_count": 0, "status": "ok"}


def strip(**changes):
    """The strip below the frame."""
    return draw_overlay(FRAME, **(SHOWN | changes))[360:].astype(int)


def test_the_reward_is_drawn_where_there_is_nothing_else():
    nothing = strip()
    assert nothing.shape == (STRIP, 480, 3)
    good, bad = strip(reward=0.5), strip(reward=-3.25)
    for picture in (good, bad):
        assert np.abs(picture - nothing).max() > 100
    assert np.abs(good - bad).max() > 100
    # Rewards of a step are small: a thousandth is not nothing.
    assert np.abs(strip(reward=0.004) - strip(reward=0.0)).max() > 100


def test_all_words_have_room():
    """The last column of a letter is not cut off at the right edge."""
    widest = strip(reward=-12.345, progress=0.88, value=-888.88, subgoal_index=9, subgoal_count=12)
    written = np.flatnonzero((widest[24:] > 100).any(axis=(0, 2)))
    assert written.max() < 470


def test_a_video_of_a_step_reward_shows_each_reward(monkeypatch, tmp_path):
    rewards = [NAN, -1.5, 2.5]
    curve = RewardCurve.from_samples([RewardSample(each, each, NAN, NAN, 0, 0, 0.1) for each in rewards])
    written = []
    monkeypatch.setattr(overlay, "write_video", lambda path, pictures, fps: written.extend(pictures))
    overlay.write_overlay(tmp_path / "a.mp4", [FRAME] * 3, curve, ["warming_up", "ok", "ok"], [], 30.0)
    for picture, reward in zip(written, rewards, strict=True):
        np.testing.assert_array_equal(picture[360:], strip(reward=reward))


@pytest.mark.parametrize(("count", "index", "shown"), [(3, 1, 1), (1, 0, 2), (0, 0, 2)])
def test_the_picture_is_of_the_subgoal_that_the_reward_pursues(monkeypatch, tmp_path, count, index, shown):
    """A reward without subgoals looks at the last one of a goal that has three."""
    curve = RewardCurve.from_samples([RewardSample(0.1, 0.1, NAN, NAN, index, count, 0.1)])
    targets = [np.full((48, 64, 3), level, np.uint8) for level in (10, 120, 240)]
    written = []
    monkeypatch.setattr(overlay, "write_video", lambda path, pictures, fps: written.extend(pictures))
    overlay.write_overlay(tmp_path / "a.mp4", [FRAME], curve, ["ok"], targets, 30.0)
    expected = draw_overlay(
        FRAME, **(SHOWN | {"reward": 0.1, "subgoal_index": index, "subgoal_count": count}), target=targets[shown]
    )
    np.testing.assert_array_equal(written[0], expected)


@pytest.mark.parametrize("status", ["bad_image", "out_of_distribution"])
def test_a_status_that_is_bad_is_red(status):
    picture = strip(status=status)
    assert ((picture[..., 0] > 180) & (picture[..., 2] < 40)).sum() > 50


@pytest.mark.parametrize("shape", [(480, 640), (640, 120), (9, 900), (30, 40)])
def test_small_pictures_of_subgoals_keep_their_shape(shape):
    picture = np.full((*shape, 3), 200, np.uint8)
    small = small_target(picture)
    assert max(small.shape[:2]) == min(max(shape), TARGET_SIDE)
    assert small.shape[0] / small.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.5 if min(shape) < 10 else 0.02)
    assert not np.shares_memory(small, picture)
    drawn = draw_overlay(FRAME, **SHOWN, target=small).astype(int)
    assert drawn.shape == (360 + STRIP, 480, 3)
    # The picture stays in its corner, above the words, and the frame around it is seen.
    inside = np.abs(drawn[:360] - 90).max(axis=2) > 20
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert rows.max() < 125 and columns.min() > 350 and columns.max() < 475
