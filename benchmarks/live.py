"""Latency, CPU and memory of a node process on a camera topic, seen from outside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from v2r_msgs.msg import Reward
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph, GraphError

SETTLE_S = 3.0


@dataclass(frozen=True)
class Live:
    """What was seen of one node.

    Attributes:
        node: its name.
        camera_hz: rate at which images were published.
        seconds: time measured, after settling.
        rewards: messages that arrived.
        scored: frames that the node itself counted as scored in that time; 0 if it does not count.
        dropped: frames that it counted as replaced by a newer one.
        latency_p50_ms, latency_p95_ms, latency_max_ms: image stamp to arrival of the reward here.
        first_half_p50_ms, second_half_p50_ms: growth shows as a difference.
        rate_hz, jitter_ms: mean reward rate, and standard deviation of the time between two rewards.
        good_hz: of rewards with status OK.
        inference_p50_ms: what the node itself says that a frame took.
        cpu_ms_per_reward: processor time of the node's process for each reward.
        rss_mb: resident memory at the end.
        torch_loaded: whether libtorch is mapped into the process.
        start_to_ready_s: from process start to the first moment in which it could score.
    """

    node: str
    camera_hz: float
    seconds: float
    rewards: int
    scored: int
    dropped: int
    latency_p50_ms: float
    latency_p95_ms: float
    latency_max_ms: float
    first_half_p50_ms: float
    second_half_p50_ms: float
    rate_hz: float
    good_hz: float
    jitter_ms: float
    inference_p50_ms: float
    cpu_ms_per_reward: float
    rss_mb: float
    torch_loaded: bool
    start_to_ready_s: float

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def measure(
    module: str,
    logs: Path,
    camera_hz: float,
    seconds: float,
    parameters: Mapping[str, object] | None = None,
    lifecycle: bool = False,
) -> Live:
    """Runs video_node and one node in processes of their own and watches the rewards from a third.

    Args:
        module: the node's module; its node name is the module's last part.
        logs: folder for logs.
        camera_hz: frames per second of the camera, 640x480 rgb8.
        seconds: how long to measure.
        parameters: of the node.
        lifecycle: whether it has to be configured and activated.

    Raises:
        GraphError: a process failed.
    """
    name = module.rpartition(".")[2]
    arrivals: list[tuple[float, float, Reward]] = []

    def on_reward(reward: Reward) -> None:
        stamp = reward.header.stamp.sec + reward.header.stamp.nanosec * 1e-9
        arrivals.append((time.time(), time.time() - stamp, reward))

    with Graph(logs) as graph:
        graph.node.create_subscription(Reward, f"/{name}/reward", on_reward, 100)
        started = time.monotonic()
        process = psutil.Process(graph.start(module, parameters).pid)
        if lifecycle and not (graph.transition(f"/{name}", CONFIGURE) and graph.transition(f"/{name}", ACTIVATE)):
            raise GraphError(f"{name} refused to start:\n{graph.log(name)}")
        graph.spin(
            lambda: bool(graph.node.get_publishers_info_by_topic(f"/{name}/reward")), 60.0, f"{name} to be ready"
        )
        ready = time.monotonic() - started
        graph.start("v2r_ros.video_node", {"rate": camera_hz, "loop": True, "wait_for_subscribers": 1})
        graph.spin(lambda: bool(arrivals), 60.0, "the first reward")
        _spin_for(graph, SETTLE_S)
        arrivals.clear()
        before = process.cpu_times()
        _spin_for(graph, seconds)
        after = process.cpu_times()
        rss = process.memory_info().rss / 2**20
        torch_loaded = any("libtorch" in region.path for region in process.memory_maps())
        seen = list(arrivals)
        graph.stop()
    if len(seen) < 4:
        raise GraphError(f"{name}: only {len(seen)} rewards in {seconds:.0f} s; logs are in {logs}")
    latency = np.array([item[1] for item in seen]) * 1e3
    half = len(latency) // 2
    cpu = after.user + after.system - before.user - before.system
    return Live(
        node=name,
        camera_hz=camera_hz,
        seconds=seconds,
        rewards=len(seen),
        scored=int(seen[-1][2].frame_count) - int(seen[0][2].frame_count) + 1 if seen[-1][2].frame_count else 0,
        dropped=int(seen[-1][2].dropped_frames - seen[0][2].dropped_frames),
        latency_p50_ms=float(np.percentile(latency, 50)),
        latency_p95_ms=float(np.percentile(latency, 95)),
        latency_max_ms=float(latency.max()),
        first_half_p50_ms=float(np.median(latency[:half])),
        second_half_p50_ms=float(np.median(latency[half:])),
        rate_hz=len(seen) / seconds,
        good_hz=sum(item[2].status == Reward.STATUS_OK for item in seen) / seconds,
        jitter_ms=float(np.diff([item[0] for item in seen]).std() * 1e3),
        inference_p50_ms=float(np.median([item[2].inference_ms for item in seen])),
        cpu_ms_per_reward=cpu / len(seen) * 1e3,
        rss_mb=rss,
        torch_loaded=torch_loaded,
        start_to_ready_s=ready,
    )


def _spin_for(graph: Graph, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    graph.spin(lambda: time.monotonic() > deadline, seconds + 10.0, "the measurement")
