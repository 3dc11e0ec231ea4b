"""What the node says about itself: RewardInfo and diagnostics."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus

from v2r_core.deploy.description import reward_info_fields
from v2r_msgs.msg import RewardInfo
from v2r_ros.mailbox import Mailbox
from v2r_ros.scoring import MessageScorer
from v2r_ros.telemetry import Telemetry, diagnostic


def reward_info(holder: MessageScorer, scale: float, clip: float) -> RewardInfo:
    """The latched description of model, provider, reward and goal; the stamp is left to the caller.

    Args:
        holder: what scores.
        scale: factor on the raw reward.
        clip: its bound; 0 means none.
    """
    return RewardInfo(**reward_info_fields(holder.scorer, holder.goal_source, scale, clip, holder.cameras))


def diagnostics(
    name: str,
    holder: MessageScorer | None,
    active: bool,
    telemetry: Telemetry,
    mailbox: Mailbox,
    now: float,
    image_age: float,
    busy_for: float,
    image_timeout: float,
    max_latency: float,
) -> DiagnosticStatus:
    """One status line of /diagnostics.

    Args:
        name: the node's name.
        holder: what scores; None while unconfigured.
        active: lifecycle state.
        telemetry: rates and latencies.
        mailbox: counts.
        now: node time in seconds.
        image_age: seconds since the newest image arrived; NaN before the first.
        busy_for: seconds that the running inference has taken so far; 0 if none runs.
        image_timeout: age in seconds from which the camera counts as lost.
        max_latency: latency p95 in seconds above which to warn.
    """
    p50, p95, inference = telemetry.percentiles()
    values: dict[str, object] = {
        "state": "active" if active else "inactive" if holder else "unconfigured",
        "reward rate [Hz]": telemetry.rate(now),
        "latency p50 [s]": p50,
        "latency p95 [s]": p95,
        "inference p50 [ms]": inference,
        "image age [s]": image_age,
        "images received": telemetry.left_out + mailbox.received,
        "images left out": telemetry.left_out,
        "frames answered": telemetry.answered,
        "frames dropped": mailbox.dropped,
        "bad images": telemetry.bad_images,
        "internal errors": telemetry.internal_errors,
    }
    problems: list[tuple[bytes, str]] = []
    if active:
        if not image_age <= image_timeout:
            problems.append((DiagnosticStatus.ERROR, "no image"))
        if p95 > max_latency:
            problems.append((DiagnosticStatus.WARN, f"latency p95 is {p95:.3f} s"))
        if busy_for > max(1.0, image_timeout):
            problems.append((DiagnosticStatus.ERROR, f"inference has been running for {busy_for:.1f} s"))
    if holder is not None:
        scorer = holder.scorer
        values |= {
            "provider": scorer.session.provider,
            "model": scorer.bundle.manifest.name,
            "model sha256": scorer.bundle.sha256,
            "goal": scorer.goal.name if scorer.goal else "",
        }
        if active and holder.too_slow and scorer.period is not None:
            rate = f"{1 / scorer.period:.4g} Hz"
            problems.append((DiagnosticStatus.WARN, f"the camera is slower than the {rate} of the reward's window"))
        if scorer.goal is None and scorer.reward.needs_goal:
            problems.append((DiagnosticStatus.WARN, "no goal"))
    return diagnostic(name, "v2r", problems, values)
