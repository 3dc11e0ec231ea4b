"""`make bench`: every promise about speed and memory, measured in one run, with the bound beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import learned_rewards
from benchmarks.learned_bundles import tiny_bundles
from benchmarks.live import Live, measure
from benchmarks.offline import score_against_encoder

SLOW_ENCODER = "random:timm:resnet50"


@dataclass(frozen=True)
class Bench:
    """Options of `make bench`."""

    out: Path = Path("out/bench")
    """Folder for JSON files, logs and videos."""
    seconds: float = 10.0
    """Length of each live measurement."""
    rounds: int = 3
    """How often each is made, in turn; ratios are medians over the rounds."""
    outrun_seconds: float = 60.0
    """Length of the measurement with a model that is slower than the camera."""


def main(options: Bench) -> int:
    """Measures, prints the table, writes the JSON files; 1 if a bound is missed."""
    console = Console()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)

    def live(title: str, *arguments: object, **keywords: object) -> Live:
        with console.status(f"measuring {title}"):
            result = measure(*arguments, **keywords)  # type: ignore[arg-type]
        (out / f"{title.replace(' ', '_')}.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
        return result

    goal = {"goal": "success.mp4", "providers": ["cpu"]}
    node, naive, echo = "v2r_ros.reward_node", "benchmarks.naive_node", "benchmarks.echo_node"
    logs = out / "logs"
    rounds = []
    for number in range(options.rounds):
        transport = live(f"transport {number}", echo, logs / "echo", 30.0, options.seconds)
        encoder = live(f"encoder alone {number}", "benchmarks.encoder_node", logs / "encoder", 30.0, options.seconds)
        ours = live(f"reward node {number}", node, logs / "ours", 30.0, options.seconds, goal, lifecycle=True)
        theirs = live(f"naive node {number}", naive, logs / "naive", 30.0, options.seconds)
        single = live(f"naive node one thread {number}", naive, logs / "single", 30.0, options.seconds, {"threads": 1})
        rounds.append((transport, encoder, ours, theirs, single))
    transport, encoder, ours, theirs, single = rounds[-1]
    slow = _slow_bundle(out)
    ours_slow = live(
        "reward node outrun",
        node,
        logs / "ours_slow",
        30.0,
        options.outrun_seconds,
        {**goal, "model": str(slow)},
        lifecycle=True,
    )
    theirs_slow = live(
        "naive node outrun", naive, logs / "naive_slow", 30.0, options.outrun_seconds, {"encoder": SLOW_ENCODER}
    )
    with console.status("training learned rewards for one step each"):
        learned = tiny_bundles(out / "learned")
    ours_learned = {
        method: live(
            f"reward node {method}",
            node,
            logs / method,
            30.0,
            options.seconds,
            {**(goal if method == "vip" else {}), "model": str(bundle), "providers": ["cpu"]},
            lifecycle=True,
        )
        for method, bundle in learned.items()
    }
    with console.status("measuring Diffusion Reward with fewer calls"):
        diffusion = learned["diffusion-reward"]
        costs = learned_rewards.measure(diffusion, learned_rewards.Bench((diffusion,), rounds=options.rounds))
    one_call = next(cost for cost in costs if cost.reward == "diffusion one_call")
    with console.status("measuring v2r score on 1,000 frames"):
        offline = score_against_encoder(out)
    (out / "score.json").write_text(json.dumps(offline, indent=2) + "\n")

    shown = Table(
        title="Live, 640x480 rgb8 at 30 Hz, last round",
        caption="p50, p95, max: ms from stamp to arrival. CPU: ms a reward. RSS: MB. drop: replaced by newer frames.",
    )
    for heading in ("node", "reward/s", "p50", "p95", "max", "CPU", "RSS", "drop"):
        shown.add_column(heading, justify="left" if heading == "node" else "right", no_wrap=True)
    for title, row in (
        ("transport alone", transport),
        ("encoder alone", encoder),
        ("reward_node", ours),
        ("torch in the callback", theirs),
        ("  with one thread", single),
        ("reward_node, slow model", ours_slow),
        ("torch, slow model", theirs_slow),
        *((f"{method} tiny", row) for method, row in ours_learned.items()),
    ):
        numbers = (row.latency_p50_ms, row.latency_p95_ms, row.latency_max_ms, row.cpu_ms_per_reward, row.rss_mb)
        shown.add_row(title, f"{row.rate_hz:.1f}", *(f"{x:.1f}" for x in numbers), str(row.dropped))
    console.print(shown)

    def over_rounds(ratio: Callable[[Live, Live, Live, Live, Live], float]) -> float:
        return statistics.median(ratio(*each) for each in rounds)

    def over_budget(transport: Live, encoder: Live, ours: Live, *_: Live) -> float:
        return ours.latency_p50_ms / (1.25 * encoder.inference_p50_ms + transport.latency_p50_ms)

    checks = [
        ("p50 over (1.25 x encoder + transport)", over_rounds(over_budget), "<=", 1.0),
        ("accepted frames without a reward", 1.0 - ours.rewards / ours.scored, "<=", 0.01),
        (
            "slow model: p50 second half over first half",
            ours_slow.second_half_p50_ms / ours_slow.first_half_p50_ms,
            "<=",
            1.1,
        ),
        (
            "p50 of torch in the callback over ours",
            over_rounds(lambda _, __, o, t, s: t.latency_p50_ms / o.latency_p50_ms),
            ">=",
            2.0,
        ),
        (
            "p50 of torch with one thread over ours",
            over_rounds(lambda _, __, o, t, s: s.latency_p50_ms / o.latency_p50_ms),
            ">=",
            2.0,
        ),
        (
            "CPU a reward, torch in the callback over ours",
            over_rounds(lambda _, __, o, t, s: t.cpu_ms_per_reward / o.cpu_ms_per_reward),
            ">=",
            2.0,
        ),
        (
            "CPU a reward, torch with one thread over ours",
            over_rounds(lambda _, __, o, t, s: s.cpu_ms_per_reward / o.cpu_ms_per_reward),
            ">=",
            2.0,
        ),
        ("seconds from process start to active", ours.start_to_ready_s, "<=", 3.0),
        ("resident memory, MB", ours.rss_mb, "<=", 300.0),
        ("torch in the node's process", float(ours.torch_loaded), "<=", 0.0),
        ("v2r score over bare encoder, frames/s", offline["ratio"], ">=", 0.9),
        ("VIP tiny in the node, rewards a camera frame", ours_learned["vip"].good_hz / 30.0, ">=", 0.95),
        ("VIPER tiny in the node, rewards/s", ours_learned["viper"].good_hz, ">=", 5.0),
        ("Diffusion Reward tiny in the node, rewards/s", ours_learned["diffusion-reward"].good_hz, ">=", 5.0),
        ("Diffusion Reward, one call over 11, speed", one_call.faster_reward or 0.0, ">=", 5.0),
    ]
    table = Table(title="What was promised")
    for heading in ("what", "measured", "bound", ""):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    met = []
    for what, value, sign, bound in checks:
        met.append(value <= bound if sign == "<=" else value >= bound)
        table.add_row(
            what, f"{value:.3f}", f"{sign} {bound:g}", "[green]met[/green]" if met[-1] else "[red]MISSED[/red]"
        )
    console.print(table)
    host = {"machine": platform.machine(), "cores": os.cpu_count(), "onnxruntime": onnxruntime.__version__}
    summary = {
        "host": host,
        "encoder_ms": encoder.inference_p50_ms,
        "checks": [
            {"what": w, "value": v, "bound": f"{s} {b:g}", "met": m}
            for (w, v, s, b), m in zip(checks, met, strict=True)
        ],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return int(not all(met))


def _slow_bundle(out: Path) -> Path:
    """A ResNet-50 with random weights: about three camera periods an inference on one CPU thread."""
    from v2r_core.cli.main import main as v2r  # noqa: PLC0415 (torch only where it is used)

    folder = out / "slow_bundle"
    if not (folder / "bundle.json").exists() and v2r(["export", SLOW_ENCODER, "--out", str(folder)]):
        raise SystemExit("exporting the slow bundle failed")
    return folder


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Bench, description=__doc__)))
