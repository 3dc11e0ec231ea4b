"""`v2r label`: rewards for data that is already recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import tyro

from v2r_core import DEFAULT_BUNDLE
from v2r_core.label.video_sources import find_sources, is_bag, is_dataset

LOCAL = "local"

Kind = Literal["bag", "bags", "videos", "dataset"]
_WORDS: Mapping[Kind, str] = {
    "bag": "a rosbag",
    "bags": "a folder of rosbags",
    "videos": "videos",
    "dataset": "a LeRobotDataset",
}
_FOR: Mapping[str, tuple[Kind, ...]] = {
    "image_topic": ("bag", "bags"),
    "episode_topic": ("bag", "bags"),
    "gap": ("bag", "bags"),
    "namespace": ("bag", "bags"),
    "workers": ("bags", "videos", "dataset"),
    "ray": ("videos", "dataset"),
    "overlay": ("videos",),
    "camera": ("dataset",),
    "replace_reward": ("dataset",),
}
"""For which kinds of source an option means something; those that are not here do for all."""


@dataclass(frozen=True)
class Label:
    """Adds dense rewards to what is already recorded; the original is not touched.

    A rosbag2: writes a copy with a reward behind every image. A folder of rosbags: copies of all of them. Videos, or
    folders of videos: writes a table for each. A LeRobotDataset (v3): writes a copy with the labels as features.

    What is written has its name only when it is complete. A run that was interrupted goes on when it is started again.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A rosbag2 (its folder, or one of its files), the folder of a LeRobotDataset, or any number of videos and folders.
    Folders are searched to their last corner for video files, folders that hold nothing but images, and rosbags; if
    there are only rosbags, each gets a labelled copy, else all of them are taken for videos."""
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
    """Videos: also write overlays/NAME.mp4, the video with progress and subgoals on it."""
    camera: str | None = None
    """LeRobotDataset: the camera that the model looks through, e.g. observation.images.top; by default the only one."""
    replace_reward: bool = False
    """LeRobotDataset: replace the feature next.reward if there is one; by default it stays as it is."""
    image_topic: str | None = None
    """Rosbag: topic with the images (sensor_msgs/Image or CompressedImage); by default the only one."""
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

    @staticmethod
    def parse(words: Sequence[str]) -> Label:
        """Reads a command line; `--ray` may stand without an address."""
        complete: list[str] = []
        for word, after in pairwise((*words, "--")):
            complete += [word, LOCAL] if word == "--ray" and after.startswith("-") else [word]
        return tyro.cli(Label, args=complete, prog="v2r label")

    def run(self) -> int:
        """Labels and reports.

        Returns:
            0; 1 if a video or bag of many failed.

        Raises:
            ValueError, RuntimeError, OSError: source, goal or model cannot be used; the message says which and why.
        """
        kind = self._kind()
        self._check(kind)
        # Each kind imports what it needs and no more.
        if kind == "bag":
            from v2r_core.cli.label_bag import run_bag  # noqa: PLC0415

            return run_bag(self)
        if kind == "bags":
            from v2r_core.cli.label_bag import run_bags  # noqa: PLC0415

            return run_bags(self)
        if kind == "videos":
            from v2r_core.cli.label_videos import run_videos  # noqa: PLC0415

            return run_videos(self)
        from v2r_core.cli.label_dataset import run_dataset  # noqa: PLC0415

        return run_dataset(self)

    def ray_address(self) -> str | None:
        """As `label_all` takes it."""
        return "" if self.ray == LOCAL else self.ray

    def _kind(self) -> Kind:
        if not self.sources:
            raise ValueError("nothing to label; give a rosbag, a LeRobotDataset, or videos")
        if len(self.sources) == 1:
            source = self.sources[0].expanduser()
            if is_bag(source):
                return "bag"
            if is_dataset(source):
                return "dataset"
        found = find_sources(self.sources, self.out)
        return "bags" if all(source.is_bag for source in found.sources) else "videos"

    def _check(self, kind: Kind) -> None:
        for field in fields(self):
            if kind not in _FOR.get(field.name, (kind,)) and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"--{field.name.replace('_', '-')} means nothing for {_WORDS[kind]}; leave it away (it is for "
                    f"{' and '.join(_WORDS[each] for each in _FOR[field.name])})"
                )
        if self.gap is not None and not self.gap > 0:
            raise ValueError(f"--gap {self.gap}: seconds above 0 expected")
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: 0 or more expected")
        if self.threads < 0:
            raise ValueError(f"--threads {self.threads}: 0 (all cores) or more expected")
