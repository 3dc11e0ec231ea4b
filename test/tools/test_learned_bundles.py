"""Learned rewards as `make bench` measures them: of the right size and rate, and with a number for its camera."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.learned_bundles import METHODS, VIDEO, tiny_bundles
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.video.source import open_video

RATES = {"vip": None, "viper": 15.0, "diffusion-reward": 7.5}


@pytest.mark.slow
def test_tiny_bundles_score_every_frame_of_their_camera(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the training side is not installed")
    bundles = tiny_bundles(tmp_path)
    assert tuple(bundles) == METHODS
    for method, folder in bundles.items():
        rate = load_bundle(folder).manifest.reward.rate
        assert rate == (RATES[method] and pytest.approx(RATES[method], rel=0.01))
        scorer = Scorer(load_bundle(folder), providers=["cpu"])
        with open_video(VIDEO) as video:
            if scorer.reward.needs_goal:
                scorer.set_goal(scorer.goal_from_video(video, "end"))
            scored = scorer.score(video)
        warm = max(scorer.reward.history - 1, 1)
        assert (scored.status[warm:] == Status.OK).mean() > 0.95, method
        assert np.isfinite(scored.curve.reward[warm:]).mean() > 0.95
    written = {folder: (folder / "bundle.json").stat().st_mtime_ns for folder in bundles.values()}
    tiny_bundles(tmp_path)
    assert {folder: (folder / "bundle.json").stat().st_mtime_ns for folder in bundles.values()} == written
