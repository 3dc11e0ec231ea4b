"""A goal out of a file: a saved goal, an image, or a demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.executions import MARGIN, widened
from v2r_core.rewards.goal import Goal, goal_name, load_goal
from v2r_core.video.resize import Frame
from v2r_core.video.source import open_video
from v2r_core.video.video import IMAGE_SUFFIXES

GOAL_SUFFIX = ".safetensors"


def read_goal(scorer: Scorer, path: str | Path) -> Goal:
    """The goal that a file holds, for a scorer of one camera.

    Args:
        scorer: embeds frames.
        path: what `Goal.save` wrote, an image, or whatever `open_video` opens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither goal, image nor video.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() == GOAL_SUFFIX:
        return load_goal(file)
    if is_image(file):
        return scorer.goal_from_frames([read_goal_image(file)], goal_name(file.name))
    with open_video(path) as demonstration:
        return scorer.goal_from_video(demonstration, goal_name(demonstration.name))


def with_executions(scorer: Scorer, goal: Goal, executions: Sequence[str | Path], margin: float = MARGIN) -> Goal:
    """A goal that knows from further executions what else still belongs to the task, see `rewards.executions`.

    Args:
        scorer: embeds frames, one camera.
        goal: made with it, out of a demonstration.
        executions: videos of the task done again, say with objects elsewhere.
        margin: see `widened`.

    Raises:
        ValueError: the goal has no demonstration or a very short one, or a video cannot be read.
    """
    embeddings = []
    for path in executions:
        with open_video(path) as video:
            embeddings.append(scorer.embed(video))
    return widened(goal, embeddings, margin)


def is_image(file: Path) -> bool:
    """True if the name says that it is an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()


def read_goal_image(file: Path) -> Frame:
    """A goal image, upright: uint8 RGB (H, W, 3).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such goal image")
    try:
        with Image.open(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise ValueError(f"{file}: not an image ({error}); give a PNG or JPEG") from error
