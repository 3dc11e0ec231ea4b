"""policy_node whose actor hangs for good on a blue frame; for a test."""

from __future__ import annotations

import threading

import numpy as np

from v2r_core.deploy.policy import Policy
from v2r_core.video.resize import Frame
from v2r_ros import policy_node

act = Policy.act


def hang(policy: Policy, frame: Frame) -> np.ndarray:
    """`Policy.act`, which does not come back from a blue frame."""
    if frame[..., 2].mean() > 200:
        threading.Event().wait()
    return act(policy, frame)


if __name__ == "__main__":
    Policy.act = hang
    raise SystemExit(policy_node.main())
