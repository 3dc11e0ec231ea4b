"""Goals: what they refuse, what they keep on disk, and what a demonstration calibrates."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file
from synthetic import execution, way_points

from v2r_core.rewards.goal import adapt_goal, goal_from_demonstration, goal_from_images, load_goal
from v2r_core.rewards.goal_distance import nearest_frames
from v2r_core.rewards.staged_reward import stage_parts


def demonstration(frames=120, noise=0.0, **kwargs):
    return execution(way_points(legs=1), frames, noise, **kwargs)


def progress_of(goal, frames):
    """Progress of frames (T, D), on the whole demonstration."""
    search = nearest_frames(goal, "mean")
    return np.array([search.progress(search.distances(frame[None])) for frame in frames])


def test_several_goal_images_become_their_mean():
    images = demonstration(5)
    goal = goal_from_images(images, "cup on shelf")
    np.testing.assert_allclose(goal.milestones[0, 0], images.mean(axis=0), atol=1e-6)
    assert np.isnan(progress_of(goal, images)).all()
    assert np.isnan(goal.uncertainty_threshold)
    assert goal.spreads.tolist() == [0]


def test_cameras_keep_their_axis():
    two = np.stack([demonstration(), demonstration(seed=5)], axis=1)
    assert goal_from_images(two, "g").milestones.shape == (1, 2, 256)
    assert goal_from_demonstration(two, "g").demonstration.shape == (120, 2, 256)


def test_progress_is_the_time_of_the_demonstration():
    frames = demonstration()
    goal = goal_from_demonstration(frames, "g")
    progress = progress_of(goal, frames)
    times = np.linspace(0, 1, len(frames))
    assert np.abs(progress - times).max() < 0.08
    assert progress[-1] == pytest.approx(1)
    assert (np.diff(progress) >= -1e-6).all()


def test_a_way_there_and_back_is_not_confused():
    points = way_points(legs=2)
    frames = execution(np.stack([points[0], points[1], points[2]]), 120)
    goal = goal_from_demonstration(frames, "g")
    values = -np.linalg.norm(frames - frames[-1], axis=1)
    assert (np.diff(values) < 0).mean() > 0.2
    assert (np.diff(progress_of(goal, frames)) >= -1e-6).all()


def test_a_demonstration_that_rests_at_the_end_is_done_when_the_rest_begins():
    moving = demonstration(80)
    frames = np.concatenate([moving, np.repeat(moving[-1:], 40, axis=0)])
    goal = goal_from_demonstration(frames, "g")
    assert (goal.demonstration_progress[80:] == 1).all()
    assert goal.demonstration_progress[40] == pytest.approx(0.5, abs=0.05)


def test_each_stage_searches_the_frames_that_lead_to_it():
    frames = execution(way_points(), 101)
    goal = goal_from_demonstration(frames, "g", [25, 50, 75, 100])
    parts = stage_parts(goal)
    assert [(part.start, part.stop) for part in parts] == [(0, 26), (25, 51), (50, 76), (75, 101)]
    search = nearest_frames(goal, "mean")
    for part, (low, high) in zip(parts, [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)], strict=True):
        for frame in frames[::10]:
            assert low - 0.01 <= search.progress(search.distances(frame[None]), part) <= high + 0.06


@pytest.mark.parametrize(("noise", "offset"), [(0.1, 0.1), (0.3, 0.3), (0.6, 0.0), (0.6, 0.3)])
def test_another_execution_arrives(noise, offset):
    points = way_points(legs=1)
    goal = goal_from_demonstration(execution(points, 120, noise), "g")
    again = execution(points, 200, noise, offset, seed=2)
    progress = progress_of(goal, again)
    assert progress[-5:].mean() > 0.98
    assert progress[:5].mean() < 0.2
    # With noise the demonstration arrives early, by as much as its frames cannot be told from its last one.
    assert np.abs(progress - np.linspace(0, 1, 200)).mean() < 0.18


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_short_and_constant_demonstrations(frames):
    for embeddings in (demonstration(max(frames, 2))[:frames], np.ones((frames, 4), np.float32)):
        goal = goal_from_demonstration(embeddings, "g")
        assert goal.demonstration_progress[-1] == 1
        assert progress_of(goal, embeddings)[-1] > 0.5
        assert np.isnan(goal.uncertainty_threshold)


def test_a_still_demonstration_has_a_threshold_above_zero():
    assert goal_from_demonstration(np.ones((50, 4), np.float32), "g").uncertainty_threshold > 0


def test_threshold_is_that_of_the_demonstration():
    frames = demonstration(100, noise=0.2)
    threshold = goal_from_demonstration(frames, "g").uncertainty_threshold
    apart = np.linalg.norm(frames[:, None] - frames[None], axis=2)
    apart[np.abs(np.subtract.outer(np.arange(100), np.arange(100))) <= 2] = np.inf
    assert threshold == pytest.approx(1.5 * apart.min(axis=1).max(), rel=1e-5)


def test_long_demonstrations_are_thinned():
    goal = goal_from_demonstration(demonstration(2000, noise=0.1), "g", [40, 90, 1999])
    assert len(goal.demonstration) == 128
    assert goal.demonstration_frames[[0, -1]].tolist() == [0, 1999]
    assert goal.milestone_frames.tolist() == [40, 90, 1999]


def test_dropping_subgoals_calibrates_on_the_whole():
    frames = demonstration(120)
    staged = goal_from_demonstration(frames, "g", [40, 80, 119])
    whole = goal_from_demonstration(frames, "g")
    dropped = adapt_goal(staged, "mean", subgoals=False)
    np.testing.assert_allclose(dropped.demonstration_progress, whole.demonstration_progress, atol=1e-6)
    np.testing.assert_array_equal(dropped.milestones, whole.milestones)
    assert adapt_goal(staged, "mean", subgoals=True) is staged
    assert adapt_goal(staged, "min", subgoals=True).cameras == "min"


def test_saved_and_loaded(tmp_path):
    goal = goal_from_demonstration(demonstration(noise=0.1), "cup, 3rd try", [30, 119], cameras="min")
    goal.save(tmp_path / "goal.safetensors")
    loaded = load_goal(tmp_path / "goal.safetensors")
    for field in dataclasses.fields(goal):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(goal, field.name), err_msg=field.name)
    images = goal_from_images(demonstration(2), "no demonstration")
    images.save(tmp_path / "images.safetensors")
    assert np.isnan(load_goal(tmp_path / "images.safetensors").uncertainty_threshold)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def rewrite(path, tensors=None, **head):
    stored = load_file(path)
    stored.update(tensors or {})
    header = {"format": 1, "name": "g", "cameras": "mean"} | head
    save_file(
        {key: value for key, value in stored.items() if value is not None}, path, {"v2r_goal": json.dumps(header)}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "printable"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "x" * 101}, "printable"),
        ({"name": 3}, "printable"),
        ({"cameras": "max"}, "cameras"),
        ({"format": 2}, "format 1 expected"),
        ({"tensors": {"milestones": np.full((1, 1, 256), np.nan, np.float32)}}, "not finite"),
        ({"tensors": {"milestones": np.zeros((1, 256), np.float32)}}, "milestones is float32 with 2 axes"),
        ({"tensors": {"milestones": np.zeros((1, 1, 256))}}, "float64"),
        ({"tensors": {"milestones": np.zeros((1, 1, 8), np.float32)}}, "demonstration: the C and D"),
        ({"tensors": {"milestone_frames": np.array([1, 2])}}, "milestone_frames"),
        ({"tensors": {"spreads": np.ones(3, np.float32)}}, "spreads: one a milestone"),
        ({"tensors": {"demonstration_progress": np.ones(3, np.float32)}}, "one a frame"),
        ({"tensors": {"demonstration_progress": np.full(120, 2, np.float32)}}, "within"),
        ({"tensors": {"uncertainty_threshold": np.array([-1.0])}}, "uncertainty_threshold"),
        ({"tensors": {"uncertainty_threshold": np.array([np.inf])}}, "uncertainty_threshold"),
        ({"tensors": {"uncertainty_threshold": np.array([1.0, 2.0])}}, "uncertainty_threshold"),
        ({"tensors": {"demonstration": None}}, "tensors"),
        ({"tensors": {"more": np.zeros(1)}}, "tensors"),
    ],
)
def test_changed_files_are_refused(tmp_path, change, message):
    path = tmp_path / "goal.safetensors"
    goal_from_demonstration(demonstration(), "g").save(path)
    rewrite(path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        load_goal(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_goals(tmp_path):
    with pytest.raises(FileNotFoundError, match="make one"):
        load_goal(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a goal file"):
        load_goal(tmp_path / "text")
    save_file({"a": np.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not a goal file"):
        load_goal(tmp_path / "other")


@pytest.mark.parametrize("frames", [[], [5, 5, 9], [5, 3, 9], [-1, 9], [3, 8], [3, 10]])
def test_milestones_out_of_order_are_refused(frames):
    with pytest.raises(ValueError, match="milestone_frames = "):
        goal_from_demonstration(demonstration(10), "g", frames)


def test_embeddings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expected, none of them 0"):
        goal_from_images(np.zeros((0, 8), np.float32), "g")
    bad = demonstration(10)
    bad[7, 3] = np.nan
    with pytest.raises(ValueError, match="frame 7"):
        goal_from_demonstration(bad, "g")


finite = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 2), st.integers(1, 4)), elements=finite),
    st.data(),
)
def test_any_demonstration_calibrates(embeddings, data):
    count = len(embeddings)
    inner = data.draw(st.sets(st.integers(0, max(count - 2, 0)), max_size=4)) if count > 1 else set()
    goal = goal_from_demonstration(embeddings, "g", [*sorted(inner), count - 1])
    assert (np.diff(goal.demonstration_progress) >= 0).all()
    assert goal.demonstration_progress[-1] == 1
    search = nearest_frames(goal, "mean")
    for part in stage_parts(goal):
        progress = [search.progress(search.distances(embedding), part) for embedding in embeddings]
        assert goal.demonstration_progress[part].min() <= min(progress)
        assert max(progress) <= goal.demonstration_progress[part].max() + 1e-6
