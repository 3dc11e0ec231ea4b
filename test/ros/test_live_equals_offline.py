"""What the node published live is what `v2r score` says of the same images with the same bundle."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from node_harness import make_graph

from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.cli.main import main as v2r
from v2r_msgs.msg import Reward
from v2r_ros.bags import read_rewards
from v2r_ros.graph import ACTIVATE, CONFIGURE

TOLERANCE = 1e-4
TOPICS = ["/image", "/reward_node/reward"]


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["vip", "uvd"])
def test_live_equals_offline(tmp_path: Path, reward: str) -> None:
    bag = tmp_path / "bag"
    with make_graph(tmp_path) as graph:
        parameters = {"goal": "success.mp4", "reward": reward, "providers": ["cpu"], "image_qos": "reliable"}
        graph.start("v2r_ros.reward_node", parameters)
        assert graph.transition("/reward_node", CONFIGURE), graph.log("reward_node")
        graph.start("v2r_ros.recorder", {"bag": str(bag), "topics": TOPICS})
        video = graph.start(
            "v2r_ros.video_node", {"video": str(CLIPS / "half.mp4"), "rate": 15.0, "wait_for_subscribers": 2}
        )
        for topic in TOPICS:
            graph.spin(
                lambda topic=topic: any(
                    info.node_name == "recorder" for info in graph.node.get_subscriptions_info_by_topic(topic)
                ),
                20.0,
                "the recorder",
            )
        assert graph.transition("/reward_node", ACTIVATE)
        graph.spin(lambda: video.poll() is not None, 60.0, "the video to end")
        assert graph.stop() == {"reward_node": 0, "recorder": 0, "video_node": 0}
    live = read_rewards(bag)
    assert live.dropped[-1] == 0, "the machine was too slow for 15 frames a second; nothing can be compared"
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
