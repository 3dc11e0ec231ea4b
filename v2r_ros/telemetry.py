"""What the node knows about itself, for /diagnostics: rates, latencies, counts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

WINDOW = 300


@dataclass
class Telemetry:
    """Rolling measurements; written by the worker thread, read by the diagnostics timer.

    Attributes:
        left_out: images that came before their turn; written by the thread that hears the camera.
        answered: frames that got a reward message since activation.
        bad_images: frames that could not be used.
        internal_errors: frames for which inference failed.
    """

    left_out: int = 0
    answered: int = 0
    bad_images: int = 0
    internal_errors: int = 0
    _latency: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _inference: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, now: float, latency: float, inference_ms: float) -> None:
        """Notes one scored frame: node time and latency in seconds (NaN: unknown), inference in milliseconds."""
        with self._lock:
            self.answered += 1
            self._times.append(now)
            self._inference.append(inference_ms)
            if np.isfinite(latency):
                self._latency.append(latency)

    def rate(self, now: float, window: float = 5.0) -> float:
        """Rewards per second over the last seconds of node time."""
        with self._lock:
            recent = [t for t in self._times if 0.0 <= now - t <= window]
        if len(recent) < 2 or recent[-1] <= recent[0]:
            return 0.0
        return (len(recent) - 1) / (recent[-1] - recent[0])

    def percentiles(self) -> tuple[float, float, float]:
        """Latency p50 and p95 in seconds, inference p50 in milliseconds; NaN without data."""
        with self._lock:
            latency, inference = list(self._latency), list(self._inference)
        nan = float("nan")
        p50, p95 = np.percentile(latency, [50, 95]) if latency else (nan, nan)
        return float(p50), float(p95), float(np.median(inference)) if inference else nan


def diagnostic(
    name: str, hardware_id: str, problems: list[tuple[bytes, str]], values: Mapping[str, object]
) -> DiagnosticStatus:
    """One status: the worst of the problems is its level and, with the others, its message."""
    status = DiagnosticStatus(name=name, hardware_id=hardware_id, level=DiagnosticStatus.OK, message="OK")
    if problems:
        status.level = max(level for level, _ in problems)
        status.message = "; ".join(text for _, text in sorted(problems, key=lambda problem: problem[0], reverse=True))
    for key, value in values.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        status.values.append(KeyValue(key=key, value=shown))
    return status
