"""What a run of the closed loop came to: numbers for a file, tables for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from v2r_ros.loop_record import LoopEpisode, LoopRecord, percentiles_ms


@dataclass(frozen=True)
class Direct:
    """The same policy on the same placement, without ROS: seed, whether it succeeded, and after how many actions."""

    seed: int
    success: bool
    steps_to_success: int


@dataclass(frozen=True)
class Summary:
    """All numbers of the demo; seconds are by the images' stamps: wall clock, or simulated in lockstep.

    `points` is success over ROS less success of the policy stepped directly, in percentage points; `ends_agree` counts
    the episodes in which progress ended the episode if and only if the simulator saw a success. Latencies are of the
    newest 300 images, as policy_node measures them, and NaN in lockstep, where stamps wait for the policy.
    """

    lockstep: bool
    env: str
    policy: str
    policy_sha256: str
    episodes: int
    successes: int
    direct_successes: int
    points: float
    ends_agree: int
    control_rate_hz: float
    camera_to_action_p50_ms: float
    camera_to_action_p95_ms: float
    camera_to_reward_p50_ms: float
    camera_to_reward_p95_ms: float
    inference_p50_ms: float
    images_dropped_by_policy: int
    images_dropped_by_reward: int
    stops: dict[str, int]
    seconds_to_success_p50: float
    unusable_rewards: int
    unlike_rewards: int


def summarise(
    env: str, record: LoopRecord, direct: Sequence[Direct], diagnosed: Mapping[str, str], *, lockstep: bool
) -> Summary:
    """Puts the numbers of a run together.

    Args:
        env: name of the environment.
        record: what went over the topics.
        direct: the same placements without ROS, one an episode.
        diagnosed: policy_node's diagnostics after the last episode.
        lockstep: stamps were the simulator's, so that they tell no latency.
    """
    episodes, rewards, nan = record.episodes, record.rewards, float("nan")
    wins, direct_wins = (sum(result.success for result in results) for results in (episodes, direct))
    latency = [] if lockstep else rewards.latency[np.concatenate([e.rewards for e in episodes])]
    reward_p50, reward_p95 = percentiles_ms(latency)
    done = [episode.seconds_to_success for episode in episodes if episode.success]
    rates = [episode.control_rate for episode in episodes if math.isfinite(episode.control_rate)]
    return Summary(
        lockstep=lockstep,
        env=env,
        policy=diagnosed["policy"],
        policy_sha256=diagnosed["policy sha256"],
        episodes=len(episodes),
        successes=wins,
        direct_successes=direct_wins,
        points=100 * (wins - direct_wins) / len(episodes),
        ends_agree=sum(episode.ended_by_progress == episode.success for episode in episodes),
        control_rate_hz=float(np.median(rates)) if rates else nan,
        camera_to_action_p50_ms=nan if lockstep else 1e3 * float(diagnosed["latency p50 [s]"]),
        camera_to_action_p95_ms=nan if lockstep else 1e3 * float(diagnosed["latency p95 [s]"]),
        camera_to_reward_p50_ms=reward_p50,
        camera_to_reward_p95_ms=reward_p95,
        inference_p50_ms=float(diagnosed["inference p50 [ms]"]),
        images_dropped_by_policy=int(diagnosed["images dropped"]),
        images_dropped_by_reward=int(rewards.dropped[-1]) if len(rewards) else 0,
        stops={key.removeprefix("stops: "): int(n) for key, n in diagnosed.items() if key.startswith("stops: ")},
        seconds_to_success_p50=float(np.median(done)) if done else nan,
        unusable_rewards=sum(episode.unusable for episode in episodes),
        unlike_rewards=sum(episode.unlike for episode in episodes),
    )


def report(console: Console, summary: Summary, record: LoopRecord, direct: Sequence[Direct]) -> None:
    """Prints one table of the episodes and one of the loop."""
    table = Table(
        title="Episodes",
        caption="done: by the simulator's word. direct: steps without ROS. unlike: frames out of distribution.",
    )
    for heading in ("seed", "done after", "steps", "direct", "ended by", "progress", "unlike"):
        table.add_column(heading, justify="left" if heading == "ended by" else "right", no_wrap=True)
    for episode, other in zip(record.episodes, direct, strict=True):
        table.add_row(*_cells(episode, other))
    numbers = Table(title="The loop", show_header=False)
    count = summary.episodes
    dropped = f"{summary.images_dropped_by_policy} by policy_node, {summary.images_dropped_by_reward} by reward_node"
    rows = {
        "success over ROS": f"{summary.successes} of {count}",
        "success stepped directly": f"{summary.direct_successes} of {count}",
        "difference": f"{summary.points:+.0f} points",
        "ended by progress if and only if done": f"{summary.ends_agree} of {count}",
        "control rate": f"{summary.control_rate_hz:.1f} Hz",
        "camera to action": _latency(summary.camera_to_action_p50_ms, summary.camera_to_action_p95_ms),
        "camera to reward": _latency(summary.camera_to_reward_p50_ms, summary.camera_to_reward_p95_ms),
        "the policy's inference": f"p50 {summary.inference_p50_ms:.1f} ms",
        "images dropped": dropped,
        "rewards that forbid to move": f"{summary.unusable_rewards} ({summary.unlike_rewards} out of distribution)",
        "the robot was stopped": ", ".join(f"{why}: {times}" for why, times in summary.stops.items()) or "never",
    }
    for name, text in rows.items():
        numbers.add_row(name, text)
    console.print(table, numbers)


def save_summary(path: Path, summary: Summary, record: LoopRecord, direct: Sequence[Direct]) -> None:
    """Writes all numbers, those of each episode under `runs`, as JSON; what is not a number is null."""
    runs = []
    for episode, other in zip(record.episodes, direct, strict=True):
        own = asdict(episode) | {"rewards": len(episode.rewards)}
        runs.append(_plain(own | {f"direct_{name}": value for name, value in asdict(other).items()}))
    path.write_text(json.dumps(_plain(asdict(summary)) | {"runs": runs}, indent=2, allow_nan=False) + "\n")


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _cells(episode: LoopEpisode, direct: Direct) -> list[str]:
    return [
        str(direct.seed),
        f"{episode.seconds_to_success:.2f} s" if episode.success else "[red]never[/red]",
        f"{episode.steps_to_success}" if episode.success else "-",
        f"{direct.steps_to_success}" if direct.success else "never",
        episode.end,
        f"{episode.final_progress:.2f}",
        f"{episode.unlike} of {len(episode.rewards)}",
    ]


def _latency(p50: float, p95: float) -> str:
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms" if math.isfinite(p50) else "not measured in lockstep"
