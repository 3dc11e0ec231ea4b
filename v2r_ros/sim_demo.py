"""The trained policy that ships with the repository does its task in the closed loop, over real topics.

Five processes: sim_node (MetaWorld's door-close) is camera and actuator, reward_node scores what the camera sees,
policy_node acts and stops the robot when the reward is not well, recorder writes the bag, and this one counts. The
placements are ones that neither training nor evaluation had; the simulator itself says what succeeded. Then the same
policy is stepped through the same placements without ROS, for comparison.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from diagnostic_msgs.msg import DiagnosticArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from std_srvs.srv import SetBool

from v2r_core import DEMO_GOAL, DEMO_POLICY
from v2r_core.deploy.policy import Policy, load_policy
from v2r_core.deploy.stream import Status
from v2r_core.overlay import draw_overlay
from v2r_core.plot import draw_curve
from v2r_core.rl.envs import make_env
from v2r_core.video import Video, open_video
from v2r_core.video.resize import Frame
from v2r_core.video.writing import write_video
from v2r_msgs.msg import Episode
from v2r_ros.graph import ACTIVATE, CONFIGURE, Graph, GraphError
from v2r_ros.loop_record import ACTION, EPISODE, IMAGE, REWARD, SUCCESS, LoopRecord, read_loop
from v2r_ros.loop_report import Direct, report, save_summary, summarise

ENV, SIZE, ACTION_REPEAT, HORIZON = "metaworld:door-close-v3", 128, 3, 120
STEPS = HORIZON // ACTION_REPEAT
REQUIRED_SHARE, REQUIRED_PACE = 0.8, 0.9
TIME_LIMIT = 2.0
"""Of an episode, as a multiple of the horizon, at which the simulator itself stands still: a machine that is too slow
for real time is to have all its steps."""
PATIENCE_S = 5.0
"""In lockstep all wait for the slowest, so nobody stops the robot sooner."""
SEEDS = 600_000_000
"""Placements of the demo begin after this seed: beyond those of training and those of evaluation."""
MAX_SKIPPED = 20
"""Placements that may be left out: a reset whose answer was lost is asked for again, and takes the next seed."""
SUCCESS_PROGRESS, SUCCESS_FRAMES = 0.7, 8
"""With 0.8 one of the first ten placements went on to the time limit; with 0.7, 99 of the first hundred episodes end so
if and only if the door is shut. Of ten episodes of random actions none got beyond 0.5."""
TOPICS = [IMAGE, "/camera/camera_info", ACTION, REWARD, "/reward_node/info", EPISODE, SUCCESS, "/diagnostics"]


@dataclass(frozen=True)
class SimDemo:
    """Options of `make sim-demo`."""

    out: Path = Path("out/sim-demo")
    """Folder for bag, video, picture, table and logs; an earlier demo in it is replaced."""
    episodes: int = 10
    """How many; each has its own placement."""
    lockstep: bool = False
    """The simulator waits for every action and reward: for machines too busy for real time; tells no latencies."""


def main(options: SimDemo) -> int:
    """Runs the demo and returns the exit code."""
    console, out = Console(), options.out
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    pace = "in lockstep" if options.lockstep else "in real time"
    console.print(
        f"[bold]Video2Reward[/bold]: {ENV} over ROS topics {pace}; the camera's pictures go to reward_node and "
        "policy_node, actions go back."
    )
    try:
        diagnosed = _live(options, console)
    except GraphError as error:
        console.print(f"[red]The loop failed:[/red] {error}")
        return 1
    record = read_loop(out / "bag", options.episodes)
    with open_video(f"{out / 'bag'}:{IMAGE}") as camera:
        direct = _step_directly([camera[episode.first] for episode in record.episodes], console)
        write_video(out / "loop.mp4", _drawn(camera, record), 1 / _period(record))
        _draw(out / "episode.png", camera, record)
    summary = summarise(ENV, record, direct, diagnosed, lockstep=options.lockstep)
    save_summary(out / "summary.json", summary, record, direct)
    report(console, summary, record, direct)
    console.print(f"Video: {out / 'loop.mp4'}; picture: {out / 'episode.png'}; bag: {out / 'bag'}")
    if not summary.control_rate_hz >= REQUIRED_PACE * _rate():
        console.print(
            f"[yellow]This machine is too busy for real time: {summary.control_rate_hz:.1f} actions a second, "
            f"{_rate():.1f} wanted; `python -m v2r_ros.sim_demo --lockstep` waits for everybody.[/yellow]"
        )
    required = math.ceil(REQUIRED_SHARE * options.episodes)
    if summary.successes < required:
        console.print(
            f"[red]{summary.successes} of {options.episodes} episodes succeeded, {required} required.[/red] "
            f"{out / 'loop.mp4'} shows them, {out / 'logs'} may say why."
        )
        return 1
    return 0


# --- over ROS --------------------------------------------------------------------------------------------------------


def _live(options: SimDemo, console: Console) -> dict[str, str]:
    """Runs all episodes. Returns what policy_node said of itself after the last one."""
    ended: list[Episode] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Graph(options.out / "logs") as graph, Progress(*columns, console=console) as progress:
        task = progress.add_task("starting the nodes", total=options.episodes)
        graph.node.create_subscription(Episode, EPISODE, ended.append, 10)
        _start(graph, options)
        progress.update(task, description="camera -> reward, policy -> action")
        while len(ended) < options.episodes:
            before = len(ended)
            graph.call(SetBool, "/policy_node/enable", SetBool.Request(data=True))
            # Longer than the longest episode, its resets, and the time that a fault may last.
            graph.spin(lambda before=before: len(ended) > before, 60.0, "the end of an episode")
            progress.update(task, completed=min(len(ended), options.episodes))
        diagnosed = _diagnosed(graph)
        codes = graph.stop("recorder", "policy_node", "reward_node", "sim_node")
        if any(codes.values()):
            raise GraphError(f"exit codes {codes}; logs are in {options.out / 'logs'}")
    return diagnosed


def _start(graph: Graph, options: SimDemo) -> None:
    """Starts the nodes, and waits until each hears the others."""
    # In lockstep all clocks are the simulator's: what a slow machine takes long for is no time in there.
    clock: dict[str, object] = {"use_sim_time": options.lockstep}
    camera = ("-r", f"image:={IMAGE}")
    simulation = {"env": ENV, "size": SIZE, "action_repeat": ACTION_REPEAT, "horizon": HORIZON, "seed": SEEDS}
    simulation |= {"lockstep": options.lockstep, "simulated_time": options.lockstep}
    goal = {"goals_dir": str(DEMO_GOAL.parent), "goal": DEMO_GOAL.name}
    policy = {
        "model": str(DEMO_POLICY),
        "reset_environment": "/sim_node/reset",
        "success_progress": SUCCESS_PROGRESS,
        "success_frames": SUCCESS_FRAMES,
        "time_limit": TIME_LIMIT * STEPS / _rate(),
        "diagnostics_period": 0.2,
    }
    if options.lockstep:
        simulation |= {"action_timeout": PATIENCE_S}
        policy |= {"image_timeout": PATIENCE_S, "reward_timeout": PATIENCE_S, "reward_deadline": 2 * PATIENCE_S}
    graph.start("v2r_ros.sim_node", simulation, None, "-r", f"action:={ACTION}", "-r", f"reward:={REWARD}")
    graph.start("v2r_ros.reward_node", goal | clock, None, *camera)
    graph.start("v2r_ros.policy_node", policy | clock, None, *camera, "-r", f"reward:={REWARD}")
    graph.start("v2r_ros.recorder", {"bag": str(options.out / "bag"), "topics": TOPICS})
    for node in ("/reward_node", "/policy_node"):
        for transition in (CONFIGURE, ACTIVATE):
            if not graph.transition(node, transition):
                raise GraphError(f"{node[1:]} refused to start:\n{graph.log(node[1:])}")
    count = graph.node.count_subscribers
    graph.spin(lambda: count(IMAGE) == 3 and count(ACTION) == 2, 120.0, "camera and actuator")
    graph.spin(lambda: all(_recorded(graph, topic) for topic in TOPICS), 30.0, "the recorder to listen")


def _rate() -> float:
    """Actions a second that the policy was trained with."""
    return load_policy(DEMO_POLICY).manifest.rate


def _recorded(graph: Graph, topic: str) -> bool:
    return any(info.node_name == "recorder" for info in graph.node.get_subscriptions_info_by_topic(topic))


def _diagnosed(graph: Graph) -> dict[str, str]:
    """The next diagnostics of policy_node."""
    found: list[dict[str, str]] = []

    def listen(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/policy_node":
                found.append({item.key: item.value for item in status.values})

    subscription = graph.node.create_subscription(DiagnosticArray, "/diagnostics", listen, 10)
    graph.spin(lambda: bool(found), 10.0, "diagnostics of policy_node")
    graph.node.destroy_subscription(subscription)
    return found[-1]


# --- without ROS -----------------------------------------------------------------------------------------------------


def _step_directly(first_frames: Sequence[Frame], console: Console) -> list[Direct]:
    """Steps the policy through the placements that the loop had, which their first pictures tell."""
    policy = Policy(load_policy(DEMO_POLICY))
    env = make_env(ENV, size=SIZE, action_repeat=ACTION_REPEAT, horizon=HORIZON)
    results, seed = [], SEEDS
    with console.status("the same policy, stepped directly"):
        for seen in first_frames:
            last = seed + 1 + MAX_SKIPPED
            frame = None
            while frame is None or not np.array_equal(frame, seen):
                seed += 1
                if seed > last:
                    raise ValueError(f"no seed from {last - MAX_SKIPPED} to {last} gives the placement of an episode")
                frame, _ = env.reset(seed=seed)
            policy.reset()
            steps = -1
            for step in range(1, STEPS + 1):
                frame, _, _, _, info = env.step(policy.act(frame))
                if info["success"]:
                    steps = step
                    break
            results.append(Direct(seed, steps >= 0, steps))
    env.close()
    return results


# --- what is shown ---------------------------------------------------------------------------------------------------


def _period(record: LoopRecord) -> float:
    return float(np.median(np.diff(record.stamps)))


def _drawn(camera: Video, record: LoopRecord) -> Iterator[Frame]:
    """All episodes, one after the other, with the reward of each picture on it."""
    curve, status, stamps = record.rewards.curve, record.rewards.status, record.rewards.stamps
    for episode in record.episodes:
        for number in range(episode.first, episode.last + 1):
            nearest = int(np.abs(stamps - record.stamps[number]).argmin())
            yield draw_overlay(
                camera[number],
                reward=float(curve.reward[nearest]),
                progress=float(curve.progress[nearest]),
                value=float(curve.value[nearest]),
                subgoal_index=int(curve.subgoal_index[nearest]),
                subgoal_count=int(curve.subgoal_count[nearest]),
                status=Status(int(status[nearest])).name.lower(),
            )


def _draw(path: Path, camera: Video, record: LoopRecord) -> None:
    """The first episode that succeeded, or the first one."""
    shown = next((episode for episode in record.episodes if episode.success), record.episodes[0])
    if not len(shown.rewards):
        return
    stamps = record.rewards.stamps[shown.rewards]
    nearest = np.abs(record.stamps[None] - stamps[:, None]).argmin(axis=1)
    outcome = f"success after {shown.seconds_to_success:.2f} s" if shown.success else "no success"
    title = f"{ENV} in the closed loop over ROS: {outcome}"
    draw_curve(path, lambda index: camera[int(nearest[index])], stamps, record.curve(shown), title)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(SimDemo, description=__doc__)))
