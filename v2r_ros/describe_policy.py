"""What policy_node says about itself on /diagnostics."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus

from v2r_ros.policy_parts import Parts
from v2r_ros.telemetry import Telemetry, diagnostic


def policy_diagnostics(
    name: str,
    state: str,
    parts: Parts | None,
    telemetry: Telemetry,
    dropped: int,
    reason: str,
    *,
    episode: int,
    now: float,
    image_age: float,
    max_latency: float,
    too_slow: bool,
) -> DiagnosticStatus:
    """One status line of /diagnostics.

    Args:
        name: the node's name.
        state: of the node, in a word.
        parts: what acts, guards and records; None while unconfigured.
        telemetry: rates and latencies.
        dropped: images since activation that a newer one replaced before they were acted on.
        reason: why it stands still now; empty if it does not.
        episode: number of the newest episode; -1 before the first.
        now: node time in seconds.
        image_age: seconds since the newest image arrived; NaN before the first.
        max_latency: latency p95 in seconds above which to warn.
        too_slow: whether the camera is slower than the policy's rate.
    """
    p50, p95, inference = telemetry.percentiles()
    values: dict[str, object] = {
        "state": state,
        "standing still": reason,
        "episode": episode,
        "action rate [Hz]": telemetry.rate(now),
        "latency p50 [s]": p50,
        "latency p95 [s]": p95,
        "inference p50 [ms]": inference,
        "image age [s]": image_age,
        "images acted on": telemetry.answered,
        "images dropped": dropped,
        "images without action": telemetry.internal_errors,
    }
    problems: list[tuple[bytes, str]] = []
    if reason:
        problems.append((DiagnosticStatus.ERROR, f"standing still: {reason}"))
    if p95 > max_latency:
        problems.append((DiagnosticStatus.WARN, f"latency p95 is {p95:.3f} s"))
    if parts is not None:
        policy, recorder = parts.policy, parts.recorder
        values |= {
            "provider": policy.provider,
            "policy": policy.bundle.manifest.name,
            "policy sha256": policy.bundle.sha256,
        }
        values |= {f"stops: {cause}": count for cause, count in sorted(parts.guard.stops.items())}
        if too_slow:
            problems.append((DiagnosticStatus.WARN, f"the camera is slower than the policy's {policy.rate:.4g} Hz"))
        if recorder is not None:
            values |= {"episodes recorded": recorder.episodes, "episodes not recorded": recorder.lost}
            if recorder.problem:
                problems.append((DiagnosticStatus.ERROR, recorder.problem))
    return diagnostic(name, "v2r", problems, values)
