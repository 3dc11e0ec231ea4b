"""Where the episodes of a converted LeRobotDataset come from, beside what LeRobot itself has a place for."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from v2r_core.convert.parts import ConvertError
from v2r_core.deploy.folder import Strict

FILE = Path("meta/v2r_convert.json")


class EpisodeOrigin(Strict):
    """One episode.

    Attributes:
        name: recording, and which part of it.
        start_ns: when it began, in nanoseconds since 1970; 0: not known.
    """

    name: str
    start_ns: int


class Provenance(Strict):
    """The content of `meta/v2r_convert.json`.

    Attributes:
        episodes: by their number.
    """

    schema_version: int = 1
    episodes: list[EpisodeOrigin]


def read_starts(dataset: Path) -> dict[int, int]:
    """When each episode of a dataset began, in nanoseconds; empty for one that was not converted.

    Raises:
        ConvertError: the file is damaged.
    """
    file = dataset / FILE
    if not file.is_file():
        return {}
    try:
        found = Provenance.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ConvertError(f"{file} is damaged ({error.errors()[0]['msg']}); remove it") from error
    return {number: episode.start_ns for number, episode in enumerate(found.episodes)}
