"""Several cameras at one moment: which images belong together, and what is said of each camera.

No message types in here, so that the node and `v2r label` share it and agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2r_core.deploy.stream import Scorer
    from v2r_core.rewards.reward import RewardSample

MAX_SKEW = 0.1
"""Seconds; what a live node takes where nothing else is configured (a test holds it to its parameters)."""
PLACEHOLDER = "{camera}"
"""Stands for a camera's name in the name of a goal's files."""


class UnpairedError(RuntimeError):
    """One of several cameras is silent or too far behind."""


def check_pair(camera: str, stamp_ns: int | None, first: str, first_ns: int, max_skew: float) -> None:
    """Checks that the newest image of a camera belongs to an image of the first one.

    Args:
        camera: its name.
        stamp_ns: of its newest image, nanoseconds; None: there has been none.
        first: name of the camera that sets the pace.
        first_ns: stamp of its image, nanoseconds.
        max_skew: seconds that the two may lie apart.

    Raises:
        UnpairedError: it does not.
    """
    if stamp_ns is None:
        raise UnpairedError(f"camera {camera!r} has sent nothing yet; is it running?")
    skew = abs(stamp_ns - first_ns) * 1e-9
    if skew > max_skew:
        raise UnpairedError(f"camera {camera!r} is {skew:.3f} s apart from {first!r}; see max_camera_skew")


def component_fields(scorer: Scorer, cameras: Sequence[str], sample: RewardSample | None) -> dict[str, Any]:
    """Fields of v2r_msgs/Reward that say what each camera has to do with it: minus its distance to the goal.

    Args:
        scorer: has just scored one image of each camera.
        cameras: their names; a single one has no components.
        sample: what came of it; None: it was not scored, so there are none.
    """
    if len(cameras) < 2 or sample is None:
        return {"component_names": [], "component_values": []}
    return {"component_names": list(cameras), "component_values": (-scorer.distances_to_goal()).tolist()}
