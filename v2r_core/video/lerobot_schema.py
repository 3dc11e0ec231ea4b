"""What stands in `meta/info.json` of a LeRobotDataset v3. It comes from outside, so it is checked."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from v2r_core.video.video import VideoError

INFO = "meta/info.json"
CODEBASE_VERSION = "v3.0"
CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CAMERA_DTYPES = ("video", "image")


class Feature(BaseModel):
    """What every frame has under one name.

    Attributes:
        dtype: "video", "image", "string", or a number type of numpy.
        shape: of one frame's value; (H, W, 3) for cameras.
        names: of the entries.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    dtype: str
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    names: list[Any] | dict[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        """True if its values are pictures."""
        return self.dtype in CAMERA_DTYPES


class Info(BaseModel):
    """`meta/info.json`; what is not listed is kept by whoever copies the file, and not looked at.

    Attributes:
        codebase_version: "v3.0".
        fps: frames a second.
        total_episodes: number of episodes.
        total_frames: of all episodes.
        features: by name.
        data_path: template of the Parquet files' names.
        video_path: template of the videos' names; None without videos.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    codebase_version: str
    fps: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    total_episodes: int = Field(ge=0)
    total_frames: int = Field(ge=0)
    features: dict[str, Feature]
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH

    @field_validator("data_path", "video_path")
    @classmethod
    def _stays_inside(cls, template: str | None) -> str | None:
        """A template may hold the fields that are known, plainly, and must not lead out of the dataset."""
        if template is None:
            return None
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if unknown := fields - {"video_key", "chunk_index", "file_index"}:
            raise ValueError(f"{template!r} has unknown fields {sorted(unknown)}")
        path = PurePosixPath(template)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{template!r} leads out of the dataset")
        return template

    @field_validator("features")
    @classmethod
    def _are_names(cls, features: dict[str, Feature]) -> dict[str, Feature]:
        if wrong := [name for name in features if "/" in name or name in ("", ".", "..")]:
            raise ValueError(f"{wrong} cannot be names of features")
        return features


def read_info(folder: Path) -> Info:
    """Reads the record of a dataset.

    Raises:
        VideoError: there is none, it is not understood, or it is of another version than 3.
    """
    path = folder / INFO
    if not path.is_file():
        raise VideoError(f"{folder}: no {INFO} there; give the folder of a LeRobotDataset")
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise VideoError(f"{path}: no JSON ({error}); copy the dataset again") from error
    version = raw.get("codebase_version") if isinstance(raw, dict) else None
    if not isinstance(version, str) or not version.startswith("v3."):
        old = isinstance(version, str) and version.startswith(("v1.", "v2."))
        remedy = f"convert it: {CONVERTER}" if old else "write it with a version of lerobot that writes v3"
        raise VideoError(f"{path}: codebase_version is {version!r}, v3.x expected; {remedy}")
    try:
        return Info.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VideoError(f"{path}: {where}: {first['msg']}; write the dataset again") from error
