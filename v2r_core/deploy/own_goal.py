"""The goal inside a bundle, and the pictures of its subgoals, which the overlay shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from v2r_core.deploy.bundle import Bundle, Manifest, load_bundle, write_manifest
from v2r_core.deploy.card import CARD, write_card
from v2r_core.deploy.folder import describe_files
from v2r_core.deploy.goals import GOAL_SUFFIX, read_goal_image
from v2r_core.rewards.goal import Goal
from v2r_core.video.resize import Frame

GOAL_FILE = f"goal{GOAL_SUFFIX}"
_PICTURES = "goal*.png"


def write_goal_pictures(folder: Path, pictures: Sequence[Frame]) -> list[str]:
    """Writes the pictures of a goal's subgoals into the folder of a bundle, where `read_goal_pictures` finds them.

    Args:
        folder: of the bundle.
        pictures: uint8 RGB (H, W, 3), one a subgoal in their order; or none at all.

    Returns:
        Names of the files, for the bundle's record.
    """
    names = ["goal.png"] if len(pictures) == 1 else [f"goal_{number}.png" for number in range(1, len(pictures) + 1)]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(folder / name)
    return names


def read_goal_pictures(folder: Path, goal: Goal) -> list[Frame]:
    """Pictures of the subgoals of a bundle's own goal, uint8 RGB (H, W, 3), if there is one for each; else none."""
    # goal_2.png comes before goal_10.png.
    files = sorted(folder.glob(_PICTURES), key=lambda file: (len(file.name), file.name))
    if len(files) != len(goal.milestones):
        return []
    try:
        return [read_goal_image(file) for file in files]
    except (OSError, ValueError):  # pictures for the eye; the goal does not need them
        return []


def embed_goal(bundle: Bundle, goal: Goal, pictures: Sequence[Frame] = (), force: bool = False) -> Bundle:
    """Puts a goal into a bundle, as its own.

    The folder holds a bundle at every moment: with the old goal, with none, or with the new one.

    Args:
        bundle: gets it.
        goal: made with this bundle.
        pictures: see `write_goal_pictures`.
        force: replace the goal that it has.

    Raises:
        ValueError: the goal is one of another encoder.
        FileExistsError: it has a goal already.
        OSError: the folder cannot be written.
    """
    folder, manifest = bundle.path, bundle.manifest
    length, expected = goal.milestones.shape[-1], manifest.encoder.embedding_dim
    if length != expected:
        # A bundle that no scorer could load any more.
        raise ValueError(
            f"goal {goal.name!r} has embeddings of length {length}, those of {folder} have {expected}; make the goal "
            "again with this bundle"
        )
    if manifest.goal and not force:
        raise FileExistsError(f"{folder} has the goal {manifest.goal} already; --force replaces it")
    files = {name: spec for name, spec in manifest.files.items() if name != CARD and not _is_of_goal(name, manifest)}
    # First the record lets go of all that is about to change.
    write_manifest(folder, manifest.model_copy(update={"goal": None, "files": files}))
    if manifest.goal:
        (folder / manifest.goal).unlink(missing_ok=True)
    for path in folder.glob(_PICTURES):
        path.unlink()
    goal.save(folder / GOAL_FILE)
    manifest = manifest.model_copy(update={"goal": GOAL_FILE})
    write_card(folder, manifest)
    names = [GOAL_FILE, *write_goal_pictures(folder, pictures), CARD]
    write_manifest(folder, manifest.model_copy(update={"files": files | describe_files(folder, names)}))
    return load_bundle(folder)


def _is_of_goal(name: str, manifest: Manifest) -> bool:
    return name == manifest.goal or Path(name).match(_PICTURES)
