"""What is drawn on a frame: the reward too, which is all that a step reward has."""

import numpy as np
import pytest

from v2r_core.cli import overlay
from v2r_core.overlay import STRIP, draw_overlay
from v2r_core.rewards.reward import RewardCurve, RewardSample

NAN = float("nan")
FRAME = np.full((360, 480, 3), 90, np.uint8)


def strip(**changes):
    """The strip below the frame."""
    shown = {"reward": NAN, "progress": NAN, "value": NAN, "subgoal_index": 0, "subgoal_count": 0, "status": "ok"}
    return draw_overlay(FRAME, **(shown | changes))[360:].astype(int)


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


@pytest.mark.parametrize("status", ["bad_image", "out_of_distribution"])
def test_a_status_that_is_bad_is_red(status):
    picture = strip(status=status)
    assert ((picture[..., 0] > 180) & (picture[..., 2] < 40)).sum() > 50
