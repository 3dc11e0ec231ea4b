"""A clip as the live node scored it, in a bag: real nodes, real recorder."""

from __future__ import annotations

from pathlib import Path

from node_harness import make_graph

from v2r_core import CLIPS
from v2r_ros.bags import read_rewards
from v2r_ros.graph import ACTIVATE, CONFIGURE

TOPICS = ["/image", "/reward_node/reward"]


def record_without_drops(folder: Path, **parameters: object) -> Path:
    """A bag of half.mp4 and of what the node said of all its images.

    A machine that is busy with other work drops some at 15 per second, and then nothing can be compared; so slower
    streams are tried.

    Args:
        folder: for bags and logs.
        parameters: of the reward node, besides goal, provider and reliable images.
    """
    for rate in (15.0, 8.0, 4.0):
        attempt = folder / f"at_{rate:g}"
        attempt.mkdir()
        bag = _record(attempt, rate, parameters)
        if read_rewards(bag).dropped[-1] == 0:
            return bag
    raise AssertionError("images were dropped even at 4 per second: nothing can be compared")


def _record(folder: Path, rate: float, parameters: dict[str, object]) -> Path:
    bag = folder / "bag"
    with make_graph(folder) as graph:
        node = {"goal": "success.mp4", "providers": ["cpu"], "image_qos": "reliable", **parameters}
        graph.start("v2r_ros.reward_node", node)
        assert graph.transition("/reward_node", CONFIGURE), graph.log("reward_node")
        graph.start("v2r_ros.recorder", {"bag": str(bag), "topics": TOPICS})
        video = graph.start(
            "v2r_ros.video_node", {"video": str(CLIPS / "half.mp4"), "rate": rate, "wait_for_subscribers": 2}
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
        graph.spin(lambda: video.poll() is not None, 120.0, "the video to end")
        assert graph.stop() == {"reward_node": 0, "recorder": 0, "video_node": 0}
    return bag
