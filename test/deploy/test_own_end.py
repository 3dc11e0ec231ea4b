import numpy as np

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.own_end import score_towards_own_end
from v2r_core.deploy.stream import Scorer
from v2r_core.video.source import open_video


def test_each_frame_is_embedded_once(tiny_bundle, clip, monkeypatch):
    scorer = Scorer(load_bundle(tiny_bundle), "vip")
    seen = []
    monkeypatch.setattr(scorer, "_embed", lambda frames: seen.append(len(frames)) or scorer.session(frames))
    ticks = []
    with open_video(clip) as video:
        scored, goal = score_towards_own_end(scorer, video, lambda done, total: ticks.append((done, total)))
    # One more to learn the length of the embedding.
    assert sum(seen) == 40 + 1
    assert ticks[-1] == (40, 40)
    assert len(scored.curve) == 40
    assert goal.milestone_frames.tolist() == [39]


def test_it_equals_a_score_towards_that_goal(tiny_bundle, clip):
    scorer = Scorer(load_bundle(tiny_bundle), "uvd")
    with open_video(clip) as video:
        scored, goal = score_towards_own_end(scorer, video)
        again = Scorer(load_bundle(tiny_bundle), "uvd")
        again.set_goal(goal)
        wanted = again.score(video)
    np.testing.assert_array_equal(scored.status, wanted.status)
    for name in ("reward", "value", "progress", "uncertainty", "subgoal_index"):
        np.testing.assert_allclose(getattr(scored.curve, name), getattr(wanted.curve, name), atol=1e-5)
