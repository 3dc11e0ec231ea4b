"""The main job, live: a camera topic becomes a reward topic, recorded in a bag and drawn as a picture.

Three processes and a real ROS 2 graph: video_node plays the shipped demonstration as a camera, reward_node scores it,
recorder writes the bag. Then the shipped clips are scored, so that success, half a success and another task can be
compared at a glance.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from v2r_core import CLIPS, DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, VideoScore
from v2r_core.plot import Clip, draw_comparison, draw_curve
from v2r_core.rewards.quality import voc
from v2r_core.video import open_video
from v2r_msgs.msg import Reward, RewardInfo
from v2r_ros import qos
from v2r_ros.bags import RecordedRewards, read_rewards
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph, GraphError

REQUIRED_SHARE = 0.95
TOPICS = ["/camera/image", "/reward_node/reward", "/reward_node/info", "/diagnostics"]
CLIPS_SHOWN = {
    "success.mp4": "the demonstration itself",
    "success_2.mp4": "the task done again",
    "half.mp4": "stops half way",
    "other.mp4": "does another task",
}


@dataclass(frozen=True)
class Demo:
    """Options of `make demo`."""

    out: Path = Path("out/demo")
    """Folder for bag, pictures, table and logs; an earlier demo in it is replaced."""
    video: Path = CLIPS / "success.mp4"
    """What the camera sees."""
    goal: str = "success.mp4"
    """Demonstration that defines the goal, one of the shipped clips."""


@dataclass(frozen=True)
class LiveNumbers:
    """What the live part measured; times in milliseconds.

    `accepted` counts the frames on the topic less those that the node replaced by a newer one before it scored them
    (`dropped`); `answered` the reward messages in the bag that hold a number, so that a frame lost on either way counts
    against it.
    """

    played: int
    accepted: int
    answered: int
    dropped: int
    rate_hz: float
    latency_p50_ms: float
    latency_p95_ms: float
    inference_p50_ms: float
    start_to_active_s: float
    provider: str


def main(options: Demo) -> int:
    """Runs the demo and returns the exit code."""
    console = Console()
    out = options.out
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    console.print(
        "[bold]Video2Reward[/bold]: video_node plays a demonstration on /camera/image, reward_node publishes its "
        "worth on /reward_node/reward, recorder writes both to a bag."
    )
    try:
        info, start_to_active = _live(options, console)
    except GraphError as error:
        console.print(f"[red]The live part failed:[/red] {error}")
        return 1
    rewards = read_rewards(out / "bag")
    numbers = _measure(rewards, out / "bag", len(open_video(options.video)), start_to_active, info)
    with open_video(f"{out / 'bag'}:{TOPICS[0]}") as recorded:
        nearest = np.abs(recorded.stamps[None] - rewards.stamps[:, None]).argmin(axis=1)
        title = f"Live: /camera/image to /reward_node/reward at {numbers.rate_hz:.0f} Hz"
        draw_curve(out / "reward.png", lambda i: recorded[nearest[i]], rewards.stamps, rewards.curve, title)
    scores = _score_clips(options, console)
    with ExitStack() as opened:
        clips = [_clip(name, score, opened) for name, score in scores.items()]
        draw_comparison(out / "comparison.png", clips, f"The shipped clips, scored against {options.goal}")
    _report(console, numbers, scores, out)
    share = numbers.answered / numbers.accepted if numbers.accepted else 0.0
    if share < REQUIRED_SHARE:
        console.print(
            f"[red]Only {numbers.answered} of {numbers.accepted} accepted frames got a reward "
            f"({share:.1%}, {REQUIRED_SHARE:.0%} required).[/red] The logs in {out / 'logs'} say why."
        )
        return 1
    return 0


def _live(options: Demo, console: Console) -> tuple[RewardInfo, float]:
    """Runs the graph until the video ends. Returns what the node said of itself, and seconds from start to active."""
    frames = len(open_video(options.video))
    count = 0
    infos: list[RewardInfo] = []

    def on_reward(_: Reward) -> None:
        nonlocal count
        count += 1

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Graph(options.out / "logs") as graph, Progress(*columns, console=console) as progress:
        task = progress.add_task("starting the nodes", total=frames)
        graph.node.create_subscription(Reward, TOPICS[1], on_reward, 100)
        graph.node.create_subscription(RewardInfo, TOPICS[2], infos.append, qos.latched())
        camera = ("-r", f"image:={TOPICS[0]}")
        started = time.monotonic()
        graph.start("v2r_ros.reward_node", {"goal": options.goal}, None, *camera)
        configured = graph.transition("/reward_node", CONFIGURE)
        start_to_active = time.monotonic() - started
        # The camera starts when node and recorder listen, so that none of its frames is missing in the bag.
        graph.start("v2r_ros.recorder", {"bag": str(options.out / "bag"), "topics": TOPICS})
        video = graph.start(
            "v2r_ros.video_node", {"video": str(options.video), "wait_for_subscribers": 2}, None, *camera
        )
        graph.spin(lambda: all(_listens(graph, "recorder", topic) for topic in TOPICS), 30.0, "the recorder to listen")
        started = time.monotonic()
        if not configured or not graph.transition("/reward_node", ACTIVATE):
            raise GraphError(f"reward_node refused to start:\n{graph.log('reward_node')}")
        start_to_active += time.monotonic() - started

        def played() -> bool:
            description = "camera -> reward" if count else "starting the nodes"
            progress.update(task, completed=min(count, frames), description=description)
            return video.poll() is not None and bool(infos)

        graph.spin(played, timeout=60.0 + 4.0 * frames / 30.0, what="the video to end")
        codes = graph.stop("recorder", "reward_node")
        if any(codes.values()):
            raise GraphError(f"exit codes {codes}; logs are in {options.out / 'logs'}")
    return infos[-1], start_to_active


def _listens(graph: Graph, node: str, topic: str) -> bool:
    return any(info.node_name == node for info in graph.node.get_subscriptions_info_by_topic(topic))


def _measure(rewards: RecordedRewards, bag: Path, played: int, start_to_active: float, info: RewardInfo) -> LiveNumbers:
    from_image = rewards.status != Reward.STATUS_STALE_IMAGE
    believed = np.isin(rewards.status, [Reward.STATUS_OK, Reward.STATUS_WARMING_UP, Reward.STATUS_OUT_OF_DISTRIBUTION])
    latency = rewards.latency[from_image & (rewards.latency > 0)] * 1e3
    stamps = rewards.stamps[from_image]
    with open_video(f"{bag}:{TOPICS[0]}") as recorded:
        published = len(recorded)
    dropped = int(rewards.dropped[-1]) if len(rewards) else 0
    return LiveNumbers(
        played=max(played, published),
        accepted=published - dropped,
        answered=int(believed.sum()),
        dropped=dropped,
        rate_hz=float((len(stamps) - 1) / (stamps[-1] - stamps[0])) if len(stamps) > 1 else 0.0,
        latency_p50_ms=float(np.percentile(latency, 50)) if len(latency) else float("nan"),
        latency_p95_ms=float(np.percentile(latency, 95)) if len(latency) else float("nan"),
        inference_p50_ms=float(np.median(rewards.inference_ms[believed])) if believed.any() else float("nan"),
        start_to_active_s=start_to_active,
        provider=info.provider,
    )


def _score_clips(options: Demo, console: Console) -> dict[str, VideoScore]:
    """Scores the shipped clips with the goal of the live part."""
    scorer = Scorer(load_bundle(DEFAULT_BUNDLE))
    with open_video(CLIPS / options.goal) as demonstration:
        scorer.set_goal(scorer.goal_from_video(demonstration, options.goal))
    scores = {}
    columns = (TextColumn("scoring {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name in CLIPS_SHOWN:
            with open_video(CLIPS / name) as video:
                task = progress.add_task(name, total=len(video))
                scores[name] = scorer.score(video, lambda done, _, task=task: progress.update(task, completed=done))
    return scores


def _clip(name: str, score: VideoScore, opened: ExitStack) -> Clip:
    video = opened.enter_context(open_video(CLIPS / name))
    return Clip(f"{name}: {CLIPS_SHOWN[name]}", video.__getitem__, score.stamps, score.curve)


def _report(console: Console, numbers: LiveNumbers, scores: dict[str, VideoScore], out: Path) -> None:
    live = Table(title="Live", show_header=False)
    live.add_row("frames played / accepted / dropped", f"{numbers.played} / {numbers.accepted} / {numbers.dropped}")
    live.add_row("frames with a reward", f"{numbers.answered}")
    live.add_row("reward rate", f"{numbers.rate_hz:.1f} Hz")
    live.add_row(
        "latency, image stamp to publication",
        f"p50 {numbers.latency_p50_ms:.1f} ms, p95 {numbers.latency_p95_ms:.1f} ms",
    )
    live.add_row("resize and inference", f"p50 {numbers.inference_p50_ms:.1f} ms on {numbers.provider}")
    live.add_row("process start to active", f"{numbers.start_to_active_s:.2f} s")
    clips = Table(
        title="The shipped clips, same goal",
        caption="end, best: progress. VOC: rank correlation of value and time. unlike: frames out of distribution.",
    )
    for heading in ("clip", "what happens", "end", "best", "VOC", "unlike"):
        clips.add_column(heading, justify="left" if heading in ("clip", "what happens") else "right", no_wrap=True)
    summary: dict[str, object] = {"live": asdict(numbers), "clips": {}}
    for name, score in scores.items():
        row = clip_numbers(score)
        summary["clips"][name] = row  # type: ignore[index]
        cells = [f"{row[key]:.2f}" for key in ("final_progress", "best_progress", "voc")]
        clips.add_row(name, CLIPS_SHOWN[name], *cells, f"{row['out_of_distribution']:.0%}")
    console.print(live, clips)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"Pictures: {out / 'reward.png'} and {out / 'comparison.png'}; bag: {out / 'bag'}")


def clip_numbers(score: VideoScore) -> dict[str, float]:
    """Final and best progress, VOC and share of out-of-distribution frames of one clip; NaN where undefined."""
    progress = score.curve.progress[np.isfinite(score.curve.progress)]
    tail = score.curve.progress[-max(1, len(score.curve) // 20) :]
    return {
        "final_progress": float(np.nanmean(tail)) if np.isfinite(tail).any() else float("nan"),
        "best_progress": float(progress.max()) if len(progress) else float("nan"),
        "voc": voc(score.curve.value, score.stamps),
        "out_of_distribution": float((score.status == Reward.STATUS_OUT_OF_DISTRIBUTION).mean()),
    }


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Demo, description=__doc__)))
