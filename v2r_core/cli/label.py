"""`v2r label`: rewards for data that is already recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal

import tyro

from v2r_core.cli.label_options import LOCAL, LabelOptions
from v2r_core.label.set_writer import find_shared
from v2r_core.label.video_sources import FoundSources, is_bag, is_dataset

Kind = Literal["bag", "bags", "videos", "dataset"]
_WORDS: Mapping[Kind, str] = {
    "bag": "a rosbag",
    "bags": "a folder of rosbags",
    "videos": "videos",
    "dataset": "a LeRobotDataset",
}
_FOR: Mapping[str, tuple[Kind, ...]] = {
    "image_topic": ("bag", "bags"),
    "camera_rule": ("bag", "bags"),
    "max_camera_skew": ("bag", "bags"),
    "camera_progress": ("bag", "bags"),
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
class Label(LabelOptions):
    """Adds dense rewards to what is already recorded; the original is not touched.

    A rosbag2: writes a copy with a reward behind every image. A folder of rosbags: copies of all of them. Videos, or
    folders of videos: writes a table for each. A LeRobotDataset (v3): writes a copy with the labels as features.

    What is written has its name only when it is complete. A run that was interrupted goes on when it is started again.
    """

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
            0; 1 if a video, bag or episode of many failed; 130 if it was interrupted.

        Raises:
            ValueError, RuntimeError, OSError: source, goal or model cannot be used; the message says which and why.
        """
        try:
            return self._label()
        except KeyboardInterrupt:
            print("v2r label: interrupted; the same command goes on from here", file=sys.stderr)
            return 130

    def _label(self) -> int:
        kind, found = self._kind()
        self._check(kind)
        # Each kind imports what it needs and no more.
        if kind == "bag":
            from v2r_core.cli.label_bag import run_bag  # noqa: PLC0415

            return run_bag(self)
        if kind == "bags":
            from v2r_core.cli.label_bag import run_bags  # noqa: PLC0415

            return run_bags(self, found)
        if kind == "videos":
            from v2r_core.cli.label_videos import run_videos  # noqa: PLC0415

            return run_videos(self, found)
        from v2r_core.cli.label_dataset import run_dataset  # noqa: PLC0415

        return run_dataset(self)

    def _kind(self) -> tuple[Kind, FoundSources | None]:
        """What there is to label; for many videos or bags also which."""
        if not self.sources and self.ray is not None and Path(self.ray).exists():
            raise ValueError(f"--ray took {self.ray} for an address; write --ray {LOCAL} {self.ray}")
        if not self.sources and self.image_topic and Path(self.image_topic[-1]).exists():
            took = self.image_topic[-1]
            raise ValueError(f"--image-topic took {took} for a topic; write it before --image-topic")
        if not self.sources:
            raise ValueError("nothing to label; give a rosbag, a LeRobotDataset, or videos")
        if len(self.sources) == 1:
            source = self.sources[0].expanduser()
            if is_bag(source):
                return "bag", None
            if is_dataset(source):
                return "dataset", None
        found = find_shared(self.sources, self.out)
        return "bags" if all(source.is_bag for source in found.sources) else "videos", found

    def _check(self, kind: Kind) -> None:
        for field in fields(self):
            if kind not in _FOR.get(field.name, (kind,)) and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"--{field.name.replace('_', '-')} means nothing for {_WORDS[kind]}; leave it away (it is for "
                    f"{' and '.join(_WORDS[each] for each in _FOR[field.name])})"
                )
        if self.gap is not None and not self.gap > 0:
            raise ValueError(f"--gap {self.gap}: seconds above 0 expected")
        if not self.max_camera_skew > 0:
            raise ValueError(f"--max-camera-skew {self.max_camera_skew}: seconds above 0 expected")
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: 0 or more expected")
        if self.threads < 0:
            raise ValueError(f"--threads {self.threads}: 0 (all cores) or more expected")
