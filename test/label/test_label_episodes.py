"""Where episodes begin, and which goal each of them has."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import (
    EMPTY,
    IMAGE_TOPIC,
    RAW,
    SECOND,
    START,
    STEP,
    TYPES,
    episode_end,
    images,
    raw,
    read_bag,
    square_frames,
    write_bag,
)

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.goals import file_goal_name
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.label.episodes import EpisodeCutter, mark_topic
from v2r_core.label.goals import GoalTable, read_table
from v2r_core.label.rosbag import BagTask, label_bag

REWARD, INFO = "/reward_node/reward", "/reward_node/info"
MINUTE = 60 * SECOND


def label(bag: Path, bundle: Path, reward: str | None = None, **options):
    """Rewards, infos and counts of a bag."""
    out = bag.with_name("labelled")
    done = label_bag(BagTask(bag, out, force=True, **options), load_bundle(bundle), reward)
    contents = read_bag(out)
    return contents.messages(REWARD), contents.messages(INFO), done.counts


def three_episodes(path: Path, marks=()) -> Path:
    """The square walks to the right, then back, then to the right again, with half a second between."""
    frames = square_frames()
    rows = [
        row
        for number, each in enumerate((frames, frames[::-1], frames))
        for row in images(each, START + number * 2 * SECOND)
    ]
    return write_bag(path, [*rows, *marks])


def numbers(rewards, name: str) -> np.ndarray:
    return np.array([getattr(message, name) for message in rewards])


def assert_three_ends(rewards, infos, name: str) -> None:
    assert numbers(rewards, "episode").tolist() == [0] * 40 + [1] * 40 + [2] * 40
    progress, value = (numbers(rewards, key).reshape(3, 40) for key in ("progress", "value"))
    np.testing.assert_allclose(value[:, -1], 0, atol=1e-6)
    np.testing.assert_allclose(progress[:, -1], 1)
    assert (progress[:, 0] < 0.1).all() and (value[:, 0] < -0.5).all()
    assert np.flatnonzero(np.isnan(numbers(rewards, "reward"))).tolist() == [0, 40, 80]
    names = [f"{name}, end of episode {number}" for number in range(3)]
    assert [info.goal_id for info in infos] == names
    assert [reward.goal_id for reward in rewards[::40]] == names


def test_a_gap_ends_an_episode_if_asked(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = three_episodes(tmp_path / "run")
    rewards, infos, counts = label(bag, tiny_bundle, gap=0.5)
    assert counts.episodes == 3
    assert_three_ends(rewards, infos, "run")
    assert [info.header.stamp.sec for info in infos] == [START // SECOND + seconds for seconds in (0, 2, 4)]
    rewards, infos, counts = label(bag, tiny_bundle, gap=1.0)
    assert counts.episodes == 1 and len(infos) == 1
    assert {message.goal_id for message in rewards} == {"run, end of episode 0"}


def test_episode_messages(tmp_path: Path, tiny_bundle: Path) -> None:
    ends = [episode_end(START + number * 2 * SECOND + 3 * SECOND // 2, number) for number in range(3)]
    bag = three_episodes(tmp_path / "run", ends)
    rewards, infos, counts = label(bag, tiny_bundle)
    assert counts.episodes == 3
    assert_three_ends(rewards, infos, "run")


def test_any_topic_marks_episodes(tmp_path: Path, tiny_bundle: Path) -> None:
    """Also one that says at its beginning that an episode begins."""
    empty = bytes(TYPES.serialize_cdr(TYPES.types[EMPTY](), EMPTY))
    starts = [(START + number * 2 * SECOND, "/begin", EMPTY, empty) for number in range(3)]
    bag = three_episodes(tmp_path / "run", [*starts, *starts[1:]])
    rewards, infos, _ = label(bag, tiny_bundle, episode_topic="/begin")
    assert_three_ends(rewards, infos, "run")
    assert label(bag, tiny_bundle)[2].episodes == 1
    with pytest.raises(ValueError, match=r"'/end'.*/begin, /camera/image"):
        label(bag, tiny_bundle, episode_topic="/end")


def test_several_topics_of_episodes_have_to_be_told_apart(tmp_path: Path, tiny_bundle: Path) -> None:
    ends = [episode_end(START + SECOND, topic=topic) for topic in ("/left/episode", "/right/episode")]
    with pytest.raises(ValueError, match=r"/left/episode, /right/episode.*--episode-topic"):
        label(three_episodes(tmp_path / "run", ends), tiny_bundle)
    assert mark_topic([], None) is None


def test_a_stream_that_starts_again(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = square_frames()
    again = [(time + 2 * SECOND, topic, kind, data) for time, topic, kind, data in images(frames, START)]
    rewards, infos, counts = label(write_bag(tmp_path / "run", images(frames) + again), tiny_bundle)
    assert counts.episodes == 2
    assert numbers(rewards, "episode").tolist() == [0] * 40 + [1] * 40
    assert len(infos) == 2


def test_an_episode_of_one_frame(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = square_frames()
    rows = [*images(frames[:1]), *images(frames, START + MINUTE), *images(frames[-1:], START + 2 * MINUTE)]
    bag = write_bag(tmp_path / "run", rows)
    for reward in ("vip", "uvd"):
        rewards, infos, counts = label(bag, tiny_bundle, reward, gap=1.0)
        assert counts.episodes == 3 and len(infos) == 3
        for single in (rewards[0], rewards[-1]):
            assert single.status == Status.WARMING_UP
            assert np.isnan(single.reward) and single.value == pytest.approx(0, abs=1e-6)
        assert counts.statuses == {Status.OK: 39, Status.WARMING_UP: 3}


def test_a_bag_of_one_frame(tmp_path: Path, tiny_bundle: Path) -> None:
    rewards, _, counts = label(write_bag(tmp_path / "run", images(square_frames()[:1])), tiny_bundle)
    assert counts.episodes == counts.images == len(rewards) == 1


def test_an_episode_without_a_usable_image_has_no_goal(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = square_frames()
    broken = [(START + i * STEP, IMAGE_TOPIC, RAW, raw(frames[i], START + i * STEP, step=3)) for i in range(5)]
    rewards, infos, _ = label(write_bag(tmp_path / "run", broken), tiny_bundle)
    assert {message.status for message in rewards} == {Status.BAD_IMAGE}
    assert [info.goal_id for info in infos] == [""]


def test_late_frames_begin_nothing() -> None:
    cutter = EpisodeCutter(gap=0.5)
    stamps = [10.0, 10.1, 10.05, 10.2, 10.9, 10.95, 9.94, 9.96]
    begins = [cutter.begins(round(stamp * SECOND)) for stamp in stamps]
    assert begins == [False, False, False, False, True, False, True, False]
    cutter.mark()
    assert cutter.begins(round(9.97 * SECOND))
    assert not cutter.begins(round(9.98 * SECOND))


def test_marks_before_the_first_image_and_after_the_last_one_count_for_nothing() -> None:
    cutter = EpisodeCutter()
    cutter.mark()
    assert not cutter.begins(SECOND)
    cutter.mark()
    cutter.mark()
    assert cutter.begins(MINUTE)
    assert not cutter.begins(2 * MINUTE), "without a gap no pause ends an episode"


# --- goals ---


@pytest.fixture
def goal_files(tmp_path: Path, tiny_bundle: Path, clip: Path) -> dict[str, str]:
    Image.fromarray(square_frames()[-1]).save(tmp_path / "goal.png")
    scorer = Scorer(load_bundle(tiny_bundle))

    class Video(list):
        pass

    scorer.goal_from_video(Video(square_frames()), "saved").save(tmp_path / "goal.safetensors")
    return {
        "image": str(tmp_path / "goal.png"),
        "demonstration": str(clip),
        "saved": str(tmp_path / "goal.safetensors"),
        "bag": f"{write_bag(tmp_path / 'demonstration', images(square_frames()))}:{IMAGE_TOPIC}",
    }


@pytest.mark.parametrize("kind", ["image", "demonstration", "saved", "bag"])
def test_one_goal_for_all(tmp_path: Path, tiny_bundle: Path, goal_files: dict[str, str], kind: str) -> None:
    bag = three_episodes(tmp_path / "run")
    rewards, infos, counts = label(bag, tiny_bundle, goal=goal_files[kind])
    assert [info.goal_source for info in infos] == [goal_files[kind]]
    assert counts.episodes == 1
    value, progress = numbers(rewards, "value").reshape(3, 40), numbers(rewards, "progress")
    np.testing.assert_allclose(value[[0, 2], -1], 0, atol=0.05)
    np.testing.assert_allclose(value[0], value[1][::-1], atol=1e-5)
    assert np.isnan(progress).all() == (kind == "image")


def test_one_goal_and_several_episodes(tmp_path: Path, tiny_bundle: Path, goal_files: dict[str, str]) -> None:
    rewards, infos, counts = label(three_episodes(tmp_path / "run"), tiny_bundle, goal=goal_files["saved"], gap=0.5)
    assert counts.episodes == 3
    assert numbers(rewards, "episode").tolist() == [0] * 40 + [1] * 40 + [2] * 40
    assert np.flatnonzero(np.isnan(numbers(rewards, "reward"))).tolist() == [0, 40, 80]
    assert len(infos) == 1, "nothing that stands in it has changed"


def test_a_table_of_goals(tmp_path: Path, tiny_bundle: Path, goal_files: dict[str, str]) -> None:
    Image.fromarray(square_frames()[0]).save(tmp_path / "start.png")
    (tmp_path / "goals.csv").write_text(f"episode, goal\n1, start.png\n0, {goal_files['saved']}\n")
    rewards, infos, counts = label(
        three_episodes(tmp_path / "run"), tiny_bundle, goal=str(tmp_path / "goals.csv"), gap=0.5
    )
    names = [file_goal_name([file]) for file in (Path(goal_files["saved"]), tmp_path / "start.png")]
    assert [info.goal_id for info in infos] == [*names, ""]
    assert [message.goal_id for message in rewards[::40]] == [*names, ""]
    value = numbers(rewards, "value").reshape(3, 40)
    np.testing.assert_allclose(value[:2, -1], 0, atol=1e-6)
    assert np.isnan(value[2]).all()
    assert numbers(rewards, "status")[80:].tolist() == [Status.NO_GOAL] * 40
    assert "set_goal" in counts.problems[Status.NO_GOAL]


def test_a_table_with_a_goal_for_all_others(tmp_path: Path, tiny_bundle: Path, goal_files: dict[str, str]) -> None:
    table = tmp_path / "goals.csv"
    table.write_text(f"goal,episode\n{goal_files['demonstration']},*\n{goal_files['bag']},2\n")
    rewards, infos, _ = label(three_episodes(tmp_path / "run"), tiny_bundle, goal=str(table), gap=0.5)
    name = file_goal_name([Path(goal_files["demonstration"])])
    assert [info.goal_id for info in infos] == [name, name, f"demonstration:{IMAGE_TOPIC}"]
    value = numbers(rewards, "value").reshape(3, 40)
    np.testing.assert_allclose(value[[0, 1, 2], [-1, 0, -1]], 0, atol=0.05)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("number,goal\n", "columns"),
        ("", "columns"),
        ("episode,goal\n0,here.png\n0,here.png\n", "line 3.*already"),
        ("episode,goal\n*,here.png\n*,here.png\n", "line 3.*already"),
        ("episode,goal\n-1,here.png\n", "'-1'"),
        ("episode,goal\nlast,here.png\n", "'last'"),
        ("episode,goal\n0,\n", "line 2.*no goal"),
        ("episode,goal\n0\n", "line 2.*no goal"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "here.png").touch()
    (tmp_path / "goals.csv").write_text(text)
    with pytest.raises(ValueError, match=word):
        read_table(tmp_path / "goals.csv")


def test_a_goal_of_a_table_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "goals.csv").write_text("episode,goal\n3,gone.png\n")
    with pytest.raises(FileNotFoundError, match=r"line 2.*gone\.png"):
        read_table(tmp_path / "goals.csv")
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_table(tmp_path / "other.csv")
    assert GoalTable({1: "a"}, None).source(2) is None


def test_the_goal_of_the_episode_is_that_of_its_video(tmp_path: Path, tiny_bundle: Path) -> None:
    """`last` calibrates on an episode just as on a demonstration of the same frames, subgoals included."""
    frames = square_frames() + [np.ascontiguousarray(np.rot90(frame, 2)) for frame in square_frames()]
    bag = write_bag(tmp_path / "run", images(frames))
    for reward in ("vip", "uvd"):
        own, _, _ = label(bag, tiny_bundle, reward)
        given, _, _ = label(bag, tiny_bundle, reward, goal=f"{bag}:{IMAGE_TOPIC}")
        for name in ("reward", "value", "progress", "uncertainty", "subgoal_index", "status"):
            np.testing.assert_array_equal(numbers(own, name), numbers(given, name), err_msg=name)
    assert own[-1].subgoal_count > 1
    assert list(itertools.islice(dict.fromkeys(numbers(own, "subgoal_index").tolist()), 2)) == [0, 1]
