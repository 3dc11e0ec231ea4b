"""A labelled LeRobotDataset: per-frame features of rewards, and the camera that they were computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from v2r_core.label.lerobot_copy import RECORD
from v2r_core.label.table import LabelOrigin, Labels
from v2r_core.look.labelled_set import LabelledEpisode, LabelledSet, NotLabelledError
from v2r_core.rewards.reward import RewardCurve, RewardKind

PREFIX = "v2r."


class DatasetHead(BaseModel):
    """What stands behind the labels of a dataset: meta/v2r_labels.json."""

    schema_version: Literal[1]
    camera: str
    model: str
    model_sha256: str
    reward: str
    reward_kind: RewardKind
    goal_source: str = ""


def read_head(path: Path) -> DatasetHead:
    """What stands behind the labels of the dataset at `path`.

    Raises:
        NotLabelledError: the file is missing or damaged.
    """
    file = path / RECORD
    try:
        return DatasetHead.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise NotLabelledError(f"{file} is damaged ({error}); label the dataset again, or remove the file") from error


def lerobot_set(path: Path) -> LabelledSet:
    """The episodes of a labelled LeRobotDataset v3; one is read at a time.

    Raises:
        NotLabelledError: what says how it was labelled is damaged, or features are missing.
        ValueError: the dataset cannot be read.
    """
    from v2r_core.video.lerobot import LeRobotFolder  # noqa: PLC0415 (pyarrow)

    head = read_head(path)
    folder = LeRobotFolder.open(path)
    missing = [
        name for name in ("reward", "value", "progress", "uncertainty", "status") if _name(name) not in folder.features
    ]
    if missing:
        raise NotLabelledError(f"{path} lacks the features {', '.join(map(_name, missing))}; label the dataset again")

    def read(place: int) -> LabelledEpisode:
        def column(name: str) -> NDArray[np.float64]:
            return np.asarray(folder.column(place, name), np.float64).reshape(folder.length(place))

        def known(name: str, otherwise: float) -> NDArray[np.float64]:
            """A feature that not every labelled dataset has."""
            there = _name(name) in folder.features
            return column(_name(name)) if there else np.full(folder.length(place), otherwise)

        curve = RewardCurve(
            reward=column(_name("reward")),
            raw_reward=known("raw_reward", np.nan),
            value=column(_name("value")),
            progress=column(_name("progress")),
            subgoal_index=known("subgoal_index", 0).astype(np.int64),
            subgoal_count=known("subgoal_count", 0).astype(np.int64),
            uncertainty=column(_name("uncertainty")),
        )
        origin = LabelOrigin(
            source=f"{path}#{place}/{head.camera}",
            name=_episode(place),
            reward=head.reward,
            kind=head.reward_kind,
            goal="; ".join(folder.tasks(place)),
            goal_source=head.goal_source,
            model=head.model,
            model_sha256=head.model_sha256,
        )
        labels = Labels(origin, column("timestamp"), curve, column(_name("status")).astype(np.int64))
        return LabelledEpisode(_episode(place), labels, lambda: folder.video(place, head.camera))

    about = {
        "camera": head.camera,
        "model": head.model,
        "sha256 of the model": head.model_sha256,
        "reward": f"{head.reward} ({head.reward_kind.replace('_', ' ')})",
    }
    return LabelledSet(path, "lerobot", tuple(map(_episode, range(folder.episodes))), about, read)


def _name(field: str) -> str:
    return PREFIX + field


def _episode(place: int) -> str:
    return f"episode {place}"
