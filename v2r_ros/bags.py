"""Reads recorded rewards back, without ROS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader

from v2r_core.rewards.reward import RewardCurve

REWARD_TYPE = "v2r_msgs/msg/Reward"


@dataclass(frozen=True)
class RecordedRewards:
    """A reward stream out of a bag; every array has one entry a message, in recorded order.

    Attributes:
        stamps: header stamps, float64 seconds.
        arrival: when the recorder got the message, float64 seconds.
        latency: publication minus stamp as the node measured it, float64 seconds; 0 means unknown.
        inference_ms: milliseconds of resizing and inference.
        status: constants of v2r_msgs/Reward.
        dropped: frames dropped so far.
        episode: episode numbers.
        curve: the numbers.
    """

    stamps: NDArray[np.float64]
    arrival: NDArray[np.float64]
    latency: NDArray[np.float64]
    inference_ms: NDArray[np.float64]
    status: NDArray[np.int64]
    dropped: NDArray[np.int64]
    episode: NDArray[np.int64]
    curve: RewardCurve

    def __len__(self) -> int:
        return len(self.stamps)


def read_rewards(bag: Path, topic: str | None = None) -> RecordedRewards:
    """Reads the rewards of a bag.

    Args:
        bag: folder of a rosbag2 bag, or an .mcap file.
        topic: name; None takes the only reward topic.

    Raises:
        ValueError: no such topic, or several and none was named.
    """
    with AnyReader([bag]) as reader:
        found = [c for c in reader.connections if c.msgtype == REWARD_TYPE and topic in (None, c.topic)]
        if len({c.topic for c in found}) != 1:
            there = sorted({f"{c.topic} [{c.msgtype}]" for c in reader.connections})
            raise ValueError(f"{bag}: one topic of type {REWARD_TYPE} expected, there are {there}; name the topic")
        pairs = [(time, reader.deserialize(raw, c.msgtype)) for c, time, raw in reader.messages(found)]
    messages = [message for _, message in pairs]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(message, name) for message in messages], np.float64)

    def integers(name: str) -> NDArray[np.int64]:
        return np.array([getattr(message, name) for message in messages], np.int64)

    names = ("reward", "raw_reward", "value", "progress", "uncertainty")
    curve = RewardCurve(
        subgoal_index=integers("subgoal_index"),
        subgoal_count=integers("subgoal_count"),
        **{name: column(name) for name in names},
    )
    return RecordedRewards(
        stamps=np.array([m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in messages]),
        arrival=np.array([time * 1e-9 for time, _ in pairs]),
        latency=np.array([m.latency.sec + m.latency.nanosec * 1e-9 for m in messages]),
        inference_ms=column("inference_ms"),
        status=integers("status"),
        dropped=integers("dropped_frames"),
        episode=integers("episode"),
        curve=curve,
    )
