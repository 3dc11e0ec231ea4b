"""Options of `v2r label`, for all kinds of sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.cameras import MAX_SKEW

LOCAL = "local"


@dataclass(frozen=True)
class LabelOptions:
    """What the kinds of `v2r label` are told."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A rosbag2 (its folder, or one of its files), the folder of a LeRobotDataset, or any number of videos and folders.
    Folders are searched to their last corner for video files, folders that hold nothing but images, and rosbags; if
    there are only rosbags, each gets a labelled copy, else all of them are taken for videos. Bag files in a folder
    without metadata.yaml are bags of their own."""
    out: Path
    """What to write: a labelled bag, a folder of labelled bags, a dataset, or for videos a folder with tables
    (labels/NAME.parquet) and a list of what is done (manifest.jsonl)."""
    model: Path = DEFAULT_BUNDLE
    """Folder of the bundle; `v2r models` lists those that are installed."""
    goal: str | None = None
    """What to compare with: `last` (each episode's own end; progress is then calibrated on this episode itself), an
    image, a demonstration (any video), a saved goal (.safetensors), or a table (.csv) with the columns `episode` (from
    0, or * for all others) and `goal`; for videos with the columns `video` (path or pattern, or *) and `goal`. By
    default the goal of the model, or `last` if it has none."""
    reward: Literal["vip", "uvd", "pixel"] | None = None
    """See `v2r score`. By default the reward of the model."""
    workers: int = 0
    """Videos or bags that are labelled at the same time, each in a process of its own; 0: one, in this process. With
    --ray: at most so many actors; 0: as many as the cluster has GPUs, or CPUs if it has no GPU."""
    ray: str | None = None
    """Label on a Ray cluster: its address (`auto`, `ray://HOST:10001`); without an address, or with `local`, on a Ray
    that is started on this machine. Model, goals, videos and OUT have the same paths on every node."""
    threads: int = 1
    """CPU threads of the encoder of each worker; 0 takes all cores. Decoding and writing have threads of their own."""
    overlay: bool = False
    """Videos: also write overlays/NAME.mp4 (NAME.overlay.mp4 of what is no mp4), the video with progress and
    subgoals on it."""
    camera: str | None = None
    """LeRobotDataset: the camera that the model looks through, e.g. observation.images.top; by default the only one."""
    replace_reward: bool = False
    """LeRobotDataset: replace the feature next.reward if there is one; by default it stays as it is."""
    image_topic: tuple[str, ...] = ()
    """Rosbag: topic with the images (sensor_msgs/Image or CompressedImage); by default the only one. Several are those
    of several cameras, the one that sets the pace first: they make one reward, as with `cameras` of the live node. A
    camera is called after its topic (/left/image_raw is left's), or as in TOPIC=NAME; images and demonstrations given
    as --goal have {camera} where that name belongs."""
    camera_rule: Literal["mean", "min"] = "mean"
    """Rosbag, several cameras: how their distances to the goal become one."""
    max_camera_skew: float = MAX_SKEW
    """Rosbag, several cameras: seconds that their stamps may lie apart; else the reward is of status stale_image."""
    camera_progress: bool = False
    """Rosbag, several cameras: also write the progress of each, as it sees the task alone, to
    NAMESPACE/progress/CAMERA (std_msgs/Float64, behind each reward)."""
    episode_topic: str | None = None
    """Rosbag: an episode ends with each message on this topic, whatever its type; by default the one of
    v2r_msgs/Episode, if there is one."""
    gap: float | None = None
    """Rosbag: an episode also ends where no image comes for so many seconds. By default the episode goes on, as with a
    live node, which only leaves out the reward of a step of more than 1 s."""
    namespace: str = "/reward_node"
    """Rosbag: rewards go to NAMESPACE/reward, what stands behind them to NAMESPACE/info."""
    force: bool = False
    """Replace `out` if it is there. For folders of videos or bags: throw away labels of another model, goal or original
    that it holds, and keep the rest."""
    json: bool = False
    """Print the summary as JSON instead of a table."""

    def ray_address(self) -> str | None:
        """As `label_all` takes it."""
        return "" if self.ray == LOCAL else self.ray
