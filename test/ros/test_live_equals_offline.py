"""What the node published live is what `v2r score` says of the same images with the same bundle."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from live_recording import record_without_drops

from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.cli.main import main as v2r
from v2r_msgs.msg import Reward
from v2r_ros.bags import read_rewards

TOLERANCE = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["vip", "uvd"])
def test_live_equals_offline(tmp_path: Path, reward: str) -> None:
    bag = record_without_drops(tmp_path, reward=reward)
    live = read_rewards(bag)
    out = tmp_path / "score"
    arguments = [f"{bag}:/image", "--goal", str(CLIPS / "success.mp4"), "--reward", reward, "--out", str(out)]
    assert v2r(["score", *arguments, "--model", str(DEFAULT_BUNDLE)]) == 0
    with (out / "curve.csv").open() as file:
        offline = list(csv.DictReader(file))
    by_stamp = {row["stamp"]: row for row in offline}
    matched = 0
    for index, stamp in enumerate(live.stamps):
        row = by_stamp.get(f"{stamp:.6f}")
        if live.status[index] == Reward.STATUS_STALE_IMAGE or row is None:
            continue
        matched += 1
        for name in ("reward", "value", "progress", "uncertainty"):
            np.testing.assert_allclose(
                getattr(live.curve, name)[index], float(row[name]), atol=TOLERANCE, err_msg=f"{name} of frame {index}"
            )
        assert live.curve.subgoal_index[index] == int(row["subgoal"])
    assert matched >= 0.98 * len(offline)
    assert len(offline) == 180
