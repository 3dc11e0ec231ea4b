"""Which goal files may be opened; a refusal has a result code, a reason, and leaves everything as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic_video import moving_square

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.goals import read_goal
from v2r_core.deploy.stream import Scorer
from v2r_core.overlay import TARGET_SIDE
from v2r_core.rewards.goal import goal_from_demonstration
from v2r_msgs.srv import SetGoal
from v2r_ros.goals import GoalError, bundle_targets, goal_from_files, goal_targets, resolve_goal
from v2r_ros.images import message_to_rgb, rgb_to_message
from v2r_ros.scoring import MessageScorer

Result = SetGoal.Response
MEGA = 1 << 20


@pytest.fixture
def goals(tmp_path: Path) -> Path:
    folder = tmp_path / "goals"
    (folder / "frames").mkdir(parents=True)
    Image.fromarray(moving_square()[-1]).save(folder / "goal.png")
    (folder / "text.png").write_text("no image at all")
    (folder / "notes.txt").write_text("notes")
    (tmp_path / "secret.png").write_bytes((folder / "goal.png").read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.fixture
def scorer(tiny_bundle: Path) -> Scorer:
    return Scorer(load_bundle(tiny_bundle), providers=["cpu"])


@pytest.mark.parametrize(
    ("uri", "result"),
    [
        ("", Result.RESULT_INVALID_REQUEST),
        ("a\0b.png", Result.RESULT_INVALID_REQUEST),
        ("../secret.png", Result.RESULT_PATH_NOT_ALLOWED),
        ("frames/../../secret.png", Result.RESULT_PATH_NOT_ALLOWED),
        ("/etc/passwd", Result.RESULT_PATH_NOT_ALLOWED),
        ("link.png", Result.RESULT_PATH_NOT_ALLOWED),
        ("notes.txt", Result.RESULT_INVALID_IMAGE),
        ("frames", Result.RESULT_INVALID_IMAGE),
        ("missing.png", Result.RESULT_NOT_FOUND),
        ("package://no_such_package_anywhere/goal.png", Result.RESULT_NOT_FOUND),
        ("package://v2r_msgs/../../../../secret.png", Result.RESULT_PATH_NOT_ALLOWED),
    ],
)
def test_refused_names(goals: Path, uri: str, result: int) -> None:
    with pytest.raises(GoalError) as caught:
        resolve_goal(uri, goals)
    assert caught.value.result == result


@given(name=st.text(max_size=40))
def test_no_name_ever_leaves_the_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "only_here"
    folder.mkdir(exist_ok=True)
    try:
        file = resolve_goal(name, folder)
    except GoalError:
        return
    assert file.is_relative_to(folder.resolve())


def test_an_image_becomes_a_goal(goals: Path, scorer: Scorer) -> None:
    goal = goal_from_files(scorer, [resolve_goal("goal.png", goals)], MEGA, MEGA, 10, False)
    assert goal.name == f"goal.png {hashlib.sha256((goals / 'goal.png').read_bytes()).hexdigest()[:8]}"
    assert goal.milestones.shape[0] == 1


@pytest.mark.parametrize(("max_bytes", "max_pixels"), [(10, MEGA), (MEGA, 100)])
def test_an_image_over_a_limit(goals: Path, scorer: Scorer, max_bytes: int, max_pixels: int) -> None:
    with pytest.raises(GoalError) as caught:
        goal_from_files(scorer, [goals / "goal.png"], max_bytes, max_pixels, 10, False)
    assert caught.value.result == Result.RESULT_INVALID_IMAGE


def test_a_file_that_only_looks_like_an_image(goals: Path, scorer: Scorer) -> None:
    with pytest.raises(GoalError) as caught:
        goal_from_files(scorer, [resolve_goal("text.png", goals)], MEGA, MEGA, 10, False)
    assert caught.value.result == Result.RESULT_INVALID_IMAGE


def test_an_image_has_no_subgoals(goals: Path, scorer: Scorer) -> None:
    with pytest.raises(GoalError) as caught:
        goal_from_files(scorer, [goals / "goal.png"], MEGA, MEGA, 10, True)
    assert caught.value.result == Result.RESULT_INVALID_REQUEST


def test_a_video_becomes_a_calibrated_goal(clip: Path, scorer: Scorer) -> None:
    goal = goal_from_files(scorer, [resolve_goal(clip.name, clip.parent)], MEGA, MEGA, 1000, False)
    assert goal.has_demonstration
    assert np.isfinite(goal.uncertainty_threshold)


def test_a_video_that_is_too_long(clip: Path, scorer: Scorer) -> None:
    with pytest.raises(GoalError, match="max_goal_frames") as caught:
        goal_from_files(scorer, [clip], MEGA, MEGA, 3, False)
    assert caught.value.result == Result.RESULT_INVALID_IMAGE


def test_a_saved_goal_is_taken_as_it_is(clip: Path, goals: Path, scorer: Scorer) -> None:
    made = goal_from_files(scorer, [clip], MEGA, MEGA, 1000, True)
    made.save(goals / "saved.safetensors")
    file = resolve_goal("saved.safetensors", goals)
    for subgoals in (False, True):
        goal = goal_from_files(scorer, [file], MEGA, MEGA, 10, subgoals)
        np.testing.assert_array_equal(goal.milestones, made.milestones)
        assert goal.uncertainty_threshold == made.uncertainty_threshold
    scorer.set_goal(goal)


def test_saved_goals_that_are_none(clip: Path, goals: Path, scorer: Scorer) -> None:
    plain, broken = goals / "plain.safetensors", goals / "broken.safetensors"
    goal_from_files(scorer, [clip], MEGA, MEGA, 1000, False).save(plain)
    broken.write_bytes(b"half a goal")
    for file, limit, message in ((plain, 100, "100 are accepted"), (broken, MEGA, "not a goal file")):
        with pytest.raises(GoalError, match=message) as caught:
            goal_from_files(scorer, [file], limit, MEGA, 10, False)
        assert caught.value.result == Result.RESULT_INVALID_IMAGE


def test_pictures_of_goals(goals: Path, scorer: Scorer, clip: Path, tmp_path: Path) -> None:
    """One for each subgoal, small, in their order; a saved goal has none."""
    frames = moving_square()
    image = goals / "goal.png"
    (shown,) = goal_targets(goal_from_files(scorer, [image], MEGA, MEGA, 10, False), image, MEGA, MEGA)
    np.testing.assert_array_equal(shown, frames[-1])
    split = goal_from_demonstration(scorer.embed(frames), "split", [10, 25, 39])
    targets = goal_targets(split, clip, MEGA, MEGA)
    for number, target in zip(split.milestone_frames, targets, strict=True):
        assert np.abs(target.astype(int) - frames[number]).mean() < 6
    split.save(tmp_path / "saved.safetensors")
    assert goal_targets(split, tmp_path / "saved.safetensors", MEGA, MEGA) == ()
    Image.fromarray(np.zeros((900, 1200, 3), np.uint8)).save(goals / "large.png")
    (large,) = goal_targets(split, goals / "large.png", MEGA, 2 * MEGA)
    assert goal_targets(split, goals / "gone.mp4", MEGA, MEGA) == ()
    assert large.shape == (round(TARGET_SIDE * 0.75), TARGET_SIDE, 3)


def test_pictures_in_a_bundle(goals: Path, scorer: Scorer, tmp_path: Path) -> None:
    goal = goal_from_files(scorer, [goals / "goal.png"], MEGA, MEGA, 10, False)
    assert bundle_targets(tmp_path, goal) == ()
    Image.fromarray(moving_square()[-1]).save(tmp_path / "goal.png")
    (shown,) = bundle_targets(tmp_path, goal)
    np.testing.assert_array_equal(shown, moving_square()[-1])
    (tmp_path / "goal.png").write_text("no image at all")
    assert bundle_targets(tmp_path, goal) == ()


def test_pictures_of_a_bundle_are_in_the_order_of_their_numbers(scorer: Scorer, tmp_path: Path) -> None:
    frames = moving_square()
    goal = goal_from_demonstration(scorer.embed(frames), "split", [*range(2, 22, 2), 30, 39])
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"goal_{number}.png")
    assert [int(target[0, 0, 0]) for target in bundle_targets(tmp_path, goal)] == list(range(12))


def test_a_goal_has_the_same_name_here_and_offline(goals: Path, scorer: Scorer, clip: Path, tmp_path: Path) -> None:
    """Wherever its file lies; and all of these differ."""
    for folder, frame in (("open", 0), ("close", -1)):
        (goals / folder).mkdir()
        Image.fromarray(moving_square()[frame]).save(goals / folder / "0.png")
    scorer.goal_from_video(moving_square(), "saved").save(goals / "saved.safetensors")
    names = []
    for file in (goals / "open" / "0.png", goals / "close" / "0.png", goals / "saved.safetensors", clip):
        live = goal_from_files(scorer, [file], MEGA, MEGA, 1000, False).name
        assert live == read_goal(scorer, file).name
        elsewhere = tmp_path / "elsewhere" / file.name
        elsewhere.parent.mkdir(exist_ok=True)
        elsewhere.write_bytes(file.read_bytes())
        assert live == read_goal(scorer, elsewhere).name
        assert live.startswith(f"{file.name} ")
        names.append(live)
    assert len(set(names)) == 4


def test_a_goal_of_several_cameras_has_the_same_name_here_and_offline(
    goals: Path, tiny_bundle: Path, clip: Path
) -> None:
    pair, cameras = Scorer(load_bundle(tiny_bundle), providers=["cpu"], cameras=2), ("left", "right")
    files = [goals / f"demo_{camera}.mp4" for camera in cameras]
    for file in files:
        file.write_bytes(clip.read_bytes())
    before = goal_from_files(pair, files, MEGA, MEGA, 1000, False).name
    assert before == read_goal(pair, goals / "demo_{camera}.mp4", cameras).name
    pictures = [goals / f"shot_{camera}.png" for camera in cameras]
    for picture in pictures:
        Image.fromarray(moving_square()[0]).save(picture)
    first = goal_from_files(pair, pictures, MEGA, MEGA, 1000, False).name
    assert first == read_goal(pair, goals / "shot_{camera}.png", cameras).name
    Image.fromarray(moving_square()[9]).save(pictures[1])
    assert goal_from_files(pair, pictures, MEGA, MEGA, 1000, False).name != first, "the second camera counts"


def test_a_video_with_and_without_its_subgoals_are_two_goals(tiny_bundle: Path, clip: Path) -> None:
    staged = Scorer(load_bundle(tiny_bundle), "uvd", providers=["cpu"])
    split, whole = (goal_from_files(staged, [clip], MEGA, MEGA, 1000, subgoals).name for subgoals in (True, False))
    assert split == read_goal(staged, clip).name
    assert whole != split


def test_a_video_that_nobody_wants_any_more(scorer: Scorer, clip: Path) -> None:
    read: list[int] = []

    def check() -> None:
        read.append(0)
        if len(read) == 5:
            raise GoalError(Result.RESULT_WRONG_STATE, "gone")

    with pytest.raises(GoalError, match="gone"):
        goal_from_files(scorer, [clip], MEGA, MEGA, 1000, False, check)
    assert len(read) == 5
    split = goal_from_demonstration(scorer.embed(moving_square()), "split", [10, 25, 39])
    read.clear()
    read += [0] * 3
    assert goal_targets(split, clip, MEGA, MEGA, check) == ()


@pytest.mark.parametrize(("reward", "shown"), [("vip", 2), ("uvd", 0)])
def test_a_reward_without_subgoals_works_towards_the_last_picture(tiny_bundle: Path, reward: str, shown: int) -> None:
    inner, frames = Scorer(load_bundle(tiny_bundle), reward, providers=["cpu"]), moving_square()
    holder = MessageScorer(inner, lambda message: message_to_rgb(message, MEGA))
    targets = [np.full((4, 4, 3), number, np.uint8) for number in range(3)]
    holder.set_goal(goal_from_demonstration(inner.embed(frames), "split", [10, 25, 39]), "split", targets=targets)
    scored = holder.score(rgb_to_message(frames[0]), 0)
    assert scored.target is targets[shown]
    assert scored.message.subgoal_count == (1 if reward == "vip" else 3)
