"""What is to be done with a rosbag2, and what scores its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from v2r_core.deploy.bundle import Bundle
from v2r_core.deploy.cameras import MAX_SKEW
from v2r_core.deploy.stream import Scorer
from v2r_core.label.cameras import Camera, name_cameras
from v2r_core.rewards.calibration import CameraRule
from v2r_core.rewards.reward import Network


@dataclass(frozen=True)
class BagTask:
    """What is to be labelled, and how.

    Attributes:
        bag: folder of a rosbag2, or one of its files.
        out: the labelled bag.
        image_topics: of sensor_msgs/Image or CompressedImage, one a camera, see `name_cameras`; none: the only one.
        goal: see `plan_goals`.
        episode_topic: see `mark_topic`.
        gap: see `EpisodeCutter`.
        namespace: of the topics of the labels.
        force: replace `out` if it is there.
        camera_rule: how the distances of several cameras become one.
        max_camera_skew: see `check_pair`.
        camera_progress: also write the progress of each of several cameras.
    """

    bag: Path
    out: Path
    image_topics: tuple[str, ...] = ()
    goal: str | None = None
    episode_topic: str | None = None
    gap: float | None = None
    namespace: str = "/reward_node"
    force: bool = False
    camera_rule: CameraRule = "mean"
    max_camera_skew: float = MAX_SKEW
    camera_progress: bool = False

    def cameras(self) -> tuple[Camera, ...]:
        """See `name_cameras`.

        Raises:
            ValueError: see there; or the progress of each camera is asked for and there is only one.
        """
        cameras = name_cameras(self.image_topics)
        if self.camera_progress and len(cameras) < 2:
            raise ValueError("--camera-progress: of one camera it is that of the reward; give several --image-topic")
        return cameras


def make_scorer(
    task: BagTask,
    bundle: Bundle,
    reward: str | None,
    threads: int,
    providers: Sequence[str],
    through: Callable[[str, Network], Network] | None = None,
) -> Scorer:
    """What scores the images of a bag, made as a live node makes it; see `Scorer` for what is not said here.

    Args:
        task: has the cameras.
        bundle: the model.
        reward: see `Scorer`.
        threads: CPU threads of the encoder.
        providers: see `choose_providers`.
        through: see `Scorer`.

    Raises:
        ValueError: the reward cannot look through these cameras, or has no progress that each of them could have.
    """
    count = len(task.cameras())
    rule = {"cameras": task.camera_rule} if count > 1 else {}
    scorer = Scorer(
        bundle, reward, rule, providers=providers, threads=threads, cameras=count, paced=True, through=through
    )
    if task.camera_progress and not scorer.reward.needs_goal:
        raise ValueError(
            f"--camera-progress: the reward {scorer.reward_name!r} compares with no goal, on which the progress of a "
            "camera could be calibrated; leave it away, or take --reward vip"
        )
    return scorer
