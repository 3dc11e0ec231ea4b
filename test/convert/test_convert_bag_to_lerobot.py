from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from clip_writer import number_of
from robot_bags import SECOND, START, array, episode, image, joints, jpeg, reward, state_at, text, twist, write_bag
from rosbags.rosbag2 import StoragePlugin

from v2r_core.convert.parts import ConvertError, Wishes
from v2r_core.convert.run import Converted, ConvertTask, convert
from v2r_core.video.lerobot import LeRobotFolder
from v2r_core.video.video import VideoError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
BOTH = Wishes(states=("/joint_states",), actions=("/command",), task="pick")
STEP = SECOND // 20


def converted(bag: Path, wishes: Wishes = BOTH, **options: bool) -> tuple[LeRobotFolder, Converted]:
    out = bag.parent / f"{bag.name}_dataset"
    result = convert(ConvertTask(bag, out, "lerobot", wishes, **options))
    return LeRobotFolder.open(out), result


def numbers(folder: LeRobotFolder, episode: int, camera: str = FRONT) -> list[int]:
    with folder.video(episode, camera) as video:
        return [number_of(frame) for frame in video]


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_frames_states_actions_and_episodes(tmp_path: Path, storage: StoragePlugin):
    bag = write_bag(tmp_path / "bag", episode() + episode(START + 9 * SECOND, 15, number=1), storage)
    folder, result = converted(bag)
    assert (folder.fps, folder.episodes, folder.cameras) == (20, 2, (FRONT, WRIST))
    assert (result.episodes, result.frames, result.left_out.cuts) == (2, 35, 0)
    assert [folder.tasks(number) for number in (0, 1)] == [("pick",), ("pick",)]
    assert numbers(folder, 0) == list(range(20))
    assert numbers(folder, 1) == [10 + index for index in range(15)]
    assert numbers(folder, 1, WRIST) == [110 + index for index in range(15)]
    for number, start, frames in ((0, START, 20), (1, START + 9 * SECOND, 15)):
        stamps = [start + index * STEP for index in range(frames)]
        expected = np.array([state_at(stamp) for stamp in stamps], np.float32)
        assert np.array_equal(folder.column(number, "observation.state"), expected)
        # Commands come without a stamp, every 20 ms: the newest one that was recorded by then.
        commands = np.array([[(stamp - start) // (SECOND // 50), number] for stamp in stamps], np.float32)
        assert np.array_equal(folder.column(number, "action"), commands)
        assert np.allclose(folder.column(number, "timestamp"), np.arange(frames) / 20)
    assert folder.features["observation.state"].names == ["shoulder", "elbow", "wrist"]
    origins = json.loads((folder.path / "meta/v2r_convert.json").read_text())["episodes"]
    assert [each["start_ns"] for each in origins] == [START, START + 9 * SECOND]
    assert "bag, episode 1" in origins[1]["name"]


def test_an_image_is_matched_by_its_stamp_and_not_by_when_it_arrived(tmp_path: Path):
    rows = [image(index, START + index * STEP, delay=170_000_000) for index in range(10)]
    rows += [joints(state_at(at), at) for at in range(START - STEP, START + SECOND, SECOND // 100)]
    folder, _ = converted(write_bag(tmp_path / "bag", rows), Wishes(states=("/joint_states",)))
    expected = [state_at(START + index * STEP) for index in range(10)]
    assert np.array_equal(folder.column(0, "observation.state"), np.array(expected, np.float32))
    recorded, _ = converted(write_bag(tmp_path / "bag2", rows), Wishes(states=("/joint_states",), clock="recorded"))
    late = recorded.column(0, "observation.state") - np.array(expected, np.float32)
    assert np.allclose(late[:, 0], 0.16, atol=0.011)


def test_two_topics_make_one_state_and_paths_name_other_numbers(tmp_path: Path):
    rows = episode(mark=False)
    rows += [twist([1, 2, 3, 4, 5, 6], START + index * STEP) for index in range(20)]
    wishes = Wishes(
        images=("/wrist/image_raw/compressed=hand",),
        states=("/joint_states", "/command", "/cmd_vel=base"),
        features=("observation.turn=/cmd_vel:angular.z",),
    )
    folder, result = converted(write_bag(tmp_path / "bag", rows), wishes)
    assert folder.cameras == ("observation.images.hand",)
    state = folder.features["observation.state"]
    assert state.shape == (5,)
    assert state.names[0] == "joint_states.shoulder"
    assert folder.column(0, "observation.state").shape == (20, 5)
    assert folder.column(0, "observation.base")[3].tolist() == [1, 2, 3, 4, 5, 6]
    assert folder.column(0, "observation.turn").tolist() == [6] * 20
    assert result.left_out.topics == {}


def test_topics_that_could_be_taken_are_named(tmp_path: Path):
    rows = episode(frames=5) + [image(index, START + index * STEP, "/wrist/image_raw") for index in range(5)]
    _, result = converted(write_bag(tmp_path / "bag", rows), Wishes())
    assert "--state" in result.left_out.topics["/joint_states"]
    assert "the same camera as /wrist/image_raw" in result.left_out.topics["/wrist/image_raw/compressed"]


def test_where_a_topic_is_silent_the_episode_is_cut_and_no_old_state_is_taken(tmp_path: Path):
    rows = episode(frames=40, mark=False)
    gap = range(START + 15 * STEP, START + 27 * STEP)
    rows = [row for row in rows if row[1] != "/joint_states" or row[0] not in gap]
    folder, result = converted(write_bag(tmp_path / "bag", rows))
    # Joints come at 100 Hz, so 0.2 s hold: the last one comes right before frame 15.
    assert [folder.length(number) for number in range(folder.episodes)] == [19, 13]
    assert (result.left_out.cuts, result.left_out.frames["/joint_states older than 0.2 s"]) == (1, 8)
    assert numbers(folder, 0) == list(range(19))
    assert numbers(folder, 1) == list(range(27, 40))
    longer, _ = converted(
        write_bag(tmp_path / "bag2", rows), Wishes(states=("/joint_states",), actions=("/command",), max_age=0.7)
    )
    assert longer.episodes == 1


def test_frames_before_the_first_state_are_left_out_and_counted(tmp_path: Path):
    rows = [row for row in episode(mark=False) if row[1] != "/joint_states" or row[0] > START + 3 * STEP]
    folder, result = converted(write_bag(tmp_path / "bag", rows))
    assert numbers(folder, 0) == list(range(3, 20))
    assert result.left_out.frames["no message of /joint_states yet"] == 3


def test_what_was_said_before_a_mark_does_not_count_after_it(tmp_path: Path):
    second = START + 21 * STEP
    rows = episode(mark=True)
    # The next episode begins at once; its first command comes with its third frame.
    rows += [row for row in episode(second, number=1) if row[1] != "/command" or row[0] >= second + 2 * STEP]
    rows = [row for row in rows if not (row[1] == "/joint_states" and row[0] < START - STEP)]
    mark = next(row for row in rows if row[1] == "/episode")
    rows.remove(mark)
    folder, result = converted(write_bag(tmp_path / "bag", [*rows, (second - 1_000_000, *mark[1:])]))
    assert folder.episodes == 2
    assert folder.column(1, "action")[:, 1].tolist() == [1] * 18
    assert result.left_out.frames["no message of /command yet"] == 2


def test_a_slower_rate_sums_the_rewards_and_next_reward_is_that_of_the_next_frame(tmp_path: Path):
    rows = episode(mark=False) + [reward(float(index), START + index * STEP) for index in range(20) if index != 7]
    bag = write_bag(tmp_path / "bag", rows)
    folder, result = converted(bag, Wishes(images=("/front/image_raw",), fps=10))
    assert numbers(folder, 0) == list(range(0, 20, 2))
    expected = np.array([0, 1 + 2, 3 + 4, 5 + 6, np.nan, 9 + 10, 11 + 12, 27, 31, 35], np.float32)
    assert np.array_equal(folder.column(0, "v2r.reward"), expected, equal_nan=True)
    assert np.array_equal(folder.column(0, "next.reward"), [*expected[1:], np.nan], equal_nan=True)
    assert folder.column(0, "v2r.value")[3] == 12
    assert np.array_equal(folder.column(0, "v2r.raw_reward"), expected / 4, equal_nan=True)
    assert folder.column(0, "v2r.subgoal_index").tolist() == [index // 8 for index in range(0, 20, 2)]
    assert folder.column(0, "v2r.status").tolist() == [0] * 10
    head = json.loads((folder.path / "meta/v2r_labels.json").read_text())
    progress = pq.read_table(folder.path / "sarm_progress.parquet")
    assert progress["index"].to_pylist() == progress["frame_index"].to_pylist() == list(range(10))
    assert progress["progress_sparse"].to_pylist() == folder.column(0, "v2r.progress").tolist()
    assert (head["camera"], head["reward_kind"], head["model"]) == (FRONT, "value", "unknown")
    assert result.layout is not None and result.layout.head is not None


def test_rewards_belong_to_the_camera_with_their_stamps_and_a_missing_one_is_nan(tmp_path: Path):
    late = 7_000_000
    rows = [image(index, START + index * STEP) for index in range(10)]
    rows += [jpeg(100 + index, START + index * STEP - late) for index in range(10)]
    rows += [reward(1.0, START + index * STEP - late) for index in range(10) if index != 4]
    folder, _ = converted(write_bag(tmp_path / "bag", rows), Wishes())
    assert json.loads((folder.path / "meta/v2r_labels.json").read_text())["camera"] == WRIST
    found = folder.column(0, "v2r.reward")
    assert np.isnan(found[4])
    assert np.isfinite(np.delete(found, 4)).all()
    assert folder.column(0, "v2r.status")[4] == 1
    assert np.isnan(folder.column(0, "v2r.raw_reward")[4])
    assert folder.column(0, "v2r.subgoal_count")[3:6].tolist() == [5, 0, 5]


def test_tasks_come_from_a_topic(tmp_path: Path):
    rows = episode() + episode(START + 9 * SECOND, number=1) + [text("put", START - SECOND)]
    rows += [text("take", START + 8 * SECOND)]
    folder, _ = converted(write_bag(tmp_path / "bag", rows), Wishes(task_topic="/task"))
    assert [folder.tasks(number) for number in (0, 1)] == [("put",), ("take",)]


def test_a_restart_of_the_clock_begins_an_episode_with_messages_of_its_own(tmp_path: Path):
    def run(number: int, recorded: int) -> list[tuple[int, str, str, bytes]]:
        rows = episode(frames=30, number=number, mark=False)
        return [(time - START + recorded, *rest) for time, *rest in rows]

    rows = run(0, START) + run(1, START + 4 * SECOND)
    rows = [row for row in rows if row[1] != "/command"]
    folder, _ = converted(write_bag(tmp_path / "bag", rows), Wishes(states=("/joint_states",)))
    assert [numbers(folder, number) for number in (0, 1)] == [list(range(30)), list(range(10, 40))]
    expected = np.array([state_at(START + index * STEP) for index in range(30)], np.float32)
    assert np.array_equal(folder.column(1, "observation.state"), expected)


def test_a_folder_of_bags_in_natural_order_and_a_bad_one_is_named(tmp_path: Path):
    bags = tmp_path / "bags"
    for name, number in (("run10", 3), ("run2", 2), ("run1", 1)):
        write_bag(bags / name, episode(START + number * 20 * SECOND, 10, number=number))
    broken = write_bag(bags / "run3", episode(START, 10, number=9))
    file = next(broken.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:20_000])
    write_bag(bags / "run4", [row for row in episode(START, 10) if row[1] != "/command"])
    before = _contents(bags)
    folder, result = converted(bags)
    assert [numbers(folder, number)[0] for number in range(3)] == [10, 20, 30]
    assert set(result.failed) == {"run3", "run4"}
    assert "no topic '/command'" in result.failed["run4"]
    assert _contents(bags) == before
    with pytest.raises((ConvertError, VideoError), match="run3"):
        convert(ConvertTask(bags, tmp_path / "other", "lerobot", BOTH, strict=True))
    assert not (tmp_path / "other").exists()
    # What was finished before stays for the next try.
    assert sorted(path.name for path in (tmp_path / "other.partial").iterdir()) == ["journal", "lock"]
    shutil.rmtree(bags / "run3")
    again = convert(ConvertTask(bags, tmp_path / "other", "lerobot", BOTH))
    assert (again.resumed, again.episodes) == (2, 3)
    assert not (tmp_path / "other.partial").exists()


def test_an_episode_in_which_an_image_changes_its_size_is_taken_back(tmp_path: Path):
    bags = tmp_path / "bags"
    bad = episode(number=1) + episode(START + 9 * SECOND, mark=False, number=2)
    bad = [row for row in bad if row[0] < START + 9 * SECOND + 10 * STEP]
    bad += [image(0, START + 9 * SECOND + 10 * STEP + index * STEP, height=96, width=96) for index in range(5)]
    write_bag(bags / "a", bad)
    write_bag(bags / "b", episode(number=4))
    folder, result = converted(bags, Wishes(images=("/front/image_raw",)))
    assert [numbers(folder, number)[0] for number in range(folder.episodes)] == [10, 40]
    assert [len(numbers(folder, number)) for number in range(2)] == [20, 20]
    assert "image 30 of /front/image_raw is 96x96, the first one 96x48; split" in result.failed["a"]
    assert "1 episodes before that stay" in result.failed["a"]
    assert (result.episodes, result.frames) == (2, 40)
    alone = bags / "a"
    with pytest.raises(ConvertError, match="split the recording"):
        convert(ConvertTask(alone, tmp_path / "one", "lerobot", Wishes(images=("/front/image_raw",))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bags", "bags_dataset"]


@pytest.mark.parametrize("topic", ["/reward_node/reward", "/task", "/front/image_raw", "/joint_states"])
def test_a_damaged_message_stops_no_other_bag(tmp_path: Path, topic: str):
    bags = tmp_path / "bags"
    rows = [*episode(), text("put", START - SECOND), reward(1.0, START)]
    write_bag(bags / "a", [(*row[:3], row[3][:-7] if row[1] == topic else row[3]) for row in rows])
    write_bag(bags / "b", rows)
    wishes = Wishes(images=("/front/image_raw",), states=("/joint_states",), task_topic="/task")
    _, result = converted(bags, wishes)
    assert list(result.failed) == ["a"]
    assert topic in result.failed["a"] and "record it again" in result.failed["a"]
    assert (result.episodes, result.frames) == (1, 20)


def test_bags_of_different_make_do_not_go_into_one_dataset(tmp_path: Path):
    bags = tmp_path / "bags"
    write_bag(bags / "a", episode(frames=5))
    write_bag(bags / "b", [image(i, START + i * STEP, height=96, width=96) for i in range(5)])
    _, result = converted(bags, Wishes(images=("/front/image_raw",)))
    assert "(48, 96)" in result.failed["b"] and "(96, 96)" in result.failed["b"]


def test_errors_name_the_thing_and_the_remedy(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", episode(frames=5))
    blind = write_bag(tmp_path / "blind", [array([1], START)])
    out = tmp_path / "out"
    for source, wishes, words in (
        (blind, Wishes(), r"no topic with images; topics: /command \(std_msgs"),
        (bag, Wishes(images=("/nothing",)), "no topic '/nothing'; topics: "),
        (bag, Wishes(images=("/command",)), "no images; topics with images: /front/image_raw"),
        (bag, Wishes(states=("/nothing",)), "no topic '/nothing'"),
        (bag, Wishes(features=("x",)), "NAME=TOPIC:field.path expected"),
        (bag, Wishes(task_topic="/command"), "std_msgs/msg/String expected"),
        (bag, Wishes(episode_topic="/nothing"), "mark episodes"),
        (bag, Wishes(reward_topic="/nothing"), "no rewards on"),
        (bag, Wishes(states=("/command",), max_age=1e-6), "no frame has a message of every topic.*--max-age"),
    ):
        with pytest.raises(ConvertError, match=words):
            convert(ConvertTask(source, out, "lerobot", wishes))
    with pytest.raises(FileNotFoundError):
        convert(ConvertTask(tmp_path / "nothing", out, "lerobot"))
    with pytest.raises(ConvertError, match="overlap"):
        convert(ConvertTask(bag, bag / "out", "lerobot"))
    with pytest.raises(ConvertError, match="is a bag already"):
        convert(ConvertTask(bag, out, "bag"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "blind"]


def test_what_is_there_is_replaced_only_if_told_and_only_by_its_like(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", episode(frames=5))
    converted(bag)
    with pytest.raises(FileExistsError, match="--force"):
        converted(bag)
    converted(bag, force=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    for kind in ("lerobot", "videos"):
        with pytest.raises(FileExistsError, match="not replaced"):
            convert(ConvertTask(bag, precious, kind, BOTH, force=True))
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_few_messages_wait_however_long_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from v2r_core.convert import bag_source

    most = []
    original = bag_source._Feed.next_frame

    def watched(self):
        found = original(self)
        most.append(self._bytes)
        return found

    monkeypatch.setattr(bag_source._Feed, "next_frame", watched)
    size = 48 * 96 * 3
    converted(write_bag(tmp_path / "bag", episode(frames=100)))
    assert len(most) == 100
    assert max(most) < 4 * size
    assert most[-1] == 0
    monkeypatch.setattr(bag_source, "MAX_WAITING", 10 * size)
    rows = [image(index, START + index * STEP) for index in range(40)]
    rows += [joints(state_at(at), at) for at in range(START - STEP, START + 2 * SECOND, SECOND // 100)]
    late = [(time + 5 * SECOND, *rest) if rest[0] == "/joint_states" else (time, *rest) for time, *rest in rows]
    bag = write_bag(tmp_path / "late", late)
    with pytest.raises(ConvertError, match=r"/joint_states was recorded so late.*--clock recorded"):
        converted(bag, Wishes(states=("/joint_states",)))


@pytest.mark.slow
def test_the_real_package_reads_it(tmp_path: Path):
    python = os.environ.get("V2R_LEROBOT_PYTHON")
    if not python:
        pytest.skip("V2R_LEROBOT_PYTHON does not name a Python with lerobot")
    rows = episode() + episode(START + 9 * SECOND, 15, number=1)
    rows += [reward(float(index), START + index * STEP) for index in range(20)]
    folder, _ = converted(write_bag(tmp_path / "bag", rows))
    script = (
        "import sys; from lerobot.datasets.lerobot_dataset import LeRobotDataset\n"
        "d = LeRobotDataset('a/b', root=sys.argv[1], video_backend='pyav')\n"
        "rows = [d[i] for i in range(len(d))]\n"
        "print(len(rows), d.num_episodes, rows[25]['task'], *rows[25]['observation.state'].tolist(),\n"
        "      rows[3]['next.reward'].item(), float(rows[25]['observation.images.front'][0, 0, :12].mean() > 0.5))\n"
    )
    done = subprocess.run([python, "-c", script, str(folder.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, episodes, task, *state, next_reward, lit = done.stdout.split()[-8:]
    assert (count, episodes, task, float(next_reward)) == ("35", "2", "pick", 4.0)
    assert np.allclose([float(each) for each in state], state_at(START + 9 * SECOND + 5 * STEP))
    assert float(lit) == 15 & 1


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
