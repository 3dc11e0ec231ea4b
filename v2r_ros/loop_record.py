"""What a bag of the closed loop says of its episodes: camera, reward, actions, episodes, and the simulator's truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader

from v2r_core.rewards.reward import RewardCurve
from v2r_msgs.msg import Episode, Reward
from v2r_ros.bags import RecordedRewards, read_rewards
from v2r_ros.episodes import END_NAMES

IMAGE, ACTION, REWARD = "/camera/image", "/policy_node/action", "/reward_node/reward"
EPISODE, SUCCESS = "/policy_node/episode", "/sim_node/success"
SLACK_NS = 5_000_000
"""A view's picture and its truth are two messages; the recorder may get the small one that much earlier."""


@dataclass(frozen=True)
class LoopEpisode:
    """One episode as it went over the topics.

    Attributes:
        first, last: numbers of its first and its last image among those of the bag.
        rewards: (T,) numbers of its rewards among those of the bag, one an image at most.
        end: why policy_node ended it, in words.
        success: whether the task was done before the next reset, by the simulator's own word.
        steps_to_success: images from the first one until then; -1 without success.
        seconds_to_success: by their stamps; NaN without success.
        seconds: length by the stamps.
        control_rate: actions a second by the wall clock; NaN below two of them.
        final_progress, best_progress: NaN if the reward never had one.
        unlike: rewards of status OUT_OF_DISTRIBUTION.
        unusable: rewards of any status that stops the robot: other than OK and WARMING_UP.
    """

    first: int
    last: int
    rewards: NDArray[np.int64]
    end: str
    success: bool
    steps_to_success: int
    seconds_to_success: float
    seconds: float
    control_rate: float
    final_progress: float
    best_progress: float
    unlike: int
    unusable: int

    @property
    def ended_by_progress(self) -> bool:
        """Whether the reward took the task for done."""
        return self.end == END_NAMES[Episode.END_SUCCESS]


@dataclass(frozen=True)
class LoopRecord:
    """A bag of the closed loop.

    Attributes:
        episodes: in their order.
        stamps: (N,) of the images, float64 seconds.
        rewards: all rewards.
    """

    episodes: list[LoopEpisode]
    stamps: NDArray[np.float64]
    rewards: RecordedRewards

    def curve(self, episode: LoopEpisode) -> RewardCurve:
        """The rewards of an episode."""
        curve = self.rewards.curve
        return RewardCurve(**{field.name: getattr(curve, field.name)[episode.rewards] for field in fields(curve)})


@dataclass(frozen=True)
class _Messages:
    """One topic: when its messages were recorded, int64 ns, and what they hold."""

    recorded: NDArray[np.int64]
    held: list[Any]


def read_loop(bag: Path, episodes: int) -> LoopRecord:
    """Reads a bag that holds the topics named in this module.

    Args:
        bag: folder of the bag. Recorded with the wall clock, whatever clock the stamps are of.
        episodes: how many to read, from the first on.

    Raises:
        ValueError: a topic is missing, there are fewer episodes, or the first image of one is not in the bag.
    """
    topics = _read(bag)
    images, actions, truth = topics[IMAGE], topics[ACTION], topics[SUCCESS]
    stamps = np.array(images.held, np.int64)
    ends = topics[EPISODE]
    if len(ends.held) < episodes:
        raise ValueError(f"{bag}: {len(ends.held)} episodes recorded, {episodes} expected; record it again")
    firsts = [_first_image(bag, stamps, _nanoseconds(episode.start)) for episode in ends.held]
    rewards = read_rewards(bag, REWARD)
    reward_stamps = np.round(rewards.stamps * 1e9).astype(np.int64)
    done = truth.recorded[np.array(truth.held, bool)]
    found = []
    for number, episode in enumerate(ends.held[:episodes]):
        first, end = firsts[number], _nanoseconds(episode.header.stamp)
        begun = int(images.recorded[first])
        until = int(images.recorded[firsts[number + 1]]) if number + 1 < len(firsts) else np.iinfo(np.int64).max
        steps = _steps_until(done[(done > begun) & (done < until)], images.recorded[first + 1 :])
        acted = actions.recorded[(actions.recorded > begun) & (actions.recorded < ends.recorded[number])]
        moved = acted[[any(actions.held[i]) for i in np.searchsorted(actions.recorded, acted)]]
        # Reward stamps went through float64 seconds, which rounds them by less than a microsecond.
        scored = np.flatnonzero((reward_stamps >= stamps[first] - 1000) & (reward_stamps <= end + 1000))
        status = rewards.status[scored]
        found.append(
            LoopEpisode(
                first=first,
                last=int(np.searchsorted(stamps, end, "right")) - 1,
                rewards=scored,
                end=END_NAMES[episode.end_reason],
                success=steps >= 0,
                steps_to_success=steps,
                seconds_to_success=(stamps[first + steps] - stamps[first]) * 1e-9 if steps >= 0 else float("nan"),
                seconds=(end - stamps[first]) * 1e-9,
                control_rate=(len(moved) - 1) / ((moved[-1] - moved[0]) * 1e-9) if len(moved) > 1 else float("nan"),
                final_progress=float(episode.final_progress),
                best_progress=float(episode.max_progress),
                unlike=int((status == Reward.STATUS_OUT_OF_DISTRIBUTION).sum()),
                unusable=int((~np.isin(status, [Reward.STATUS_OK, Reward.STATUS_WARMING_UP])).sum()),
            )
        )
    return LoopRecord(found, stamps * 1e-9, rewards)


def _read(bag: Path) -> dict[str, _Messages]:
    """What is needed of the topics' messages: stamps of images, numbers of actions, truths, whole episodes."""
    take = {
        IMAGE: lambda message: _nanoseconds(message.header.stamp),
        ACTION: lambda message: message.data.tolist(),
        SUCCESS: lambda message: message.data,
        EPISODE: lambda message: message,
    }
    recorded: dict[str, list[int]] = {topic: [] for topic in take}
    held: dict[str, list[Any]] = {topic: [] for topic in take}
    with AnyReader([bag]) as reader:
        chosen = [connection for connection in reader.connections if connection.topic in take]
        if missing := set(take) - {connection.topic for connection in chosen}:
            raise ValueError(f"{bag}: {sorted(missing)} not recorded; add them to the recorder's topics")
        for connection, time, data in reader.messages(chosen):
            message = reader.deserialize(data, connection.msgtype)
            recorded[connection.topic].append(time)
            held[connection.topic].append(take[connection.topic](message))
    return {topic: _Messages(np.array(recorded[topic], np.int64), held[topic]) for topic in take}


def _first_image(bag: Path, stamps: NDArray[np.int64], start: int) -> int:
    found = np.flatnonzero(stamps == start)
    if not len(found):
        raise ValueError(f"{bag}: the image of {start * 1e-9:.3f} s, which began an episode, was not recorded")
    return int(found[0])


def _steps_until(done: NDArray[np.int64], later: NDArray[np.int64]) -> int:
    """Images after the first one up to the first success, -1 without one."""
    return int(np.searchsorted(later, done[0] + SLACK_NS, "right")) if len(done) else -1


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def percentiles_ms(seconds: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """p50 and p95 in milliseconds; NaN without data."""
    if not len(seconds):
        return float("nan"), float("nan")
    p50, p95 = np.percentile(np.asarray(seconds) * 1e3, [50, 95])
    return float(p50), float(p95)
