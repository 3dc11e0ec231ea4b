"""Several publishers of joint states on one topic: every joint has its newest value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from robot_bags import JOINTS, SECOND, START, TYPES, Row, header, image, joints, write_bag

from v2r_core.convert.joints import MOST_SETS, Streams, joint_names
from v2r_core.convert.parts import ConvertError, Wishes
from v2r_core.convert.run import Converted, ConvertTask, convert
from v2r_core.video.lerobot import LeRobotFolder

STEP = SECOND // 20
STATE = Wishes(states=("/joint_states",))
names_of = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9), max_size=6)


def cameras(frames: int = 20) -> list[Row]:
    return [image(index, START + index * STEP) for index in range(frames)]


def said(names: tuple[str, ...], times: list[int], first: float) -> list[Row]:
    """Messages that count from `first` on; the joints of one differ by 0.25."""
    return [
        joints([first + number + 0.25 * place for place in range(len(names))], at, names)
        for number, at in enumerate(times)
    ]


def every(seconds: float, start: float = -0.1, stop: float = 1.0) -> list[int]:
    return [START + round(at * SECOND) for at in np.arange(start, stop, seconds)]


def states(bag: Path, wishes: Wishes = STATE) -> tuple[list[str], np.ndarray, Converted]:
    out = bag.parent / f"{bag.name}_dataset"
    result = convert(ConvertTask(bag, out, "lerobot", wishes))
    folder = LeRobotFolder.open(out)
    names = folder.features["observation.state"].names
    assert isinstance(names, list)
    return names, np.concatenate([folder.column(n, "observation.state") for n in range(folder.episodes)]), result


def newest(rows: list[Row], names: list[str], frames: int = 20) -> np.ndarray:
    """What each joint said last at or before each image, by a plain search through all messages."""
    messages = [TYPES.deserialize_cdr(data, JOINTS) for _, _, kind, data in rows if kind == JOINTS]
    stamps = [each.header.stamp.sec * SECOND + each.header.stamp.nanosec for each in messages]
    order = np.argsort(stamps, kind="stable")
    found = np.full((frames, len(names)), np.nan, np.float32)
    for frame in range(frames):
        for number in order:
            if stamps[number] <= START + frame * STEP:
                for name, value in zip(messages[number].name, messages[number].position, strict=True):
                    found[frame, names.index(name)] = value
    return found


def test_an_arm_and_a_slower_gripper_are_one_state(tmp_path: Path):
    # The gripper comes first, and four of its steps are more than 0.2 s.
    arm, gripper = said(("b", "a"), every(0.01), 0), said(("grip",), every(0.4, -0.25), 1000)
    rows = [*cameras(), *gripper, *arm]
    names, found, result = states(write_bag(tmp_path / "bag", rows))
    assert names == ["b", "a", "grip"]
    assert found.shape == (20, 3)
    assert np.array_equal(found, newest(rows, names))
    assert len(np.unique(found[:, 2])) == 4
    assert not result.left_out.topics and not any(result.left_out.frames.values())


def test_of_a_joint_that_several_have_the_newest_value_counts(tmp_path: Path):
    rows = [*cameras(), *said(("a", "b"), every(0.07), 0), *said(("c", "b"), every(0.05, -0.08), 1000)]
    names, found, _ = states(write_bag(tmp_path / "bag", rows))
    assert names == ["a", "b", "c"]
    assert np.array_equal(found, newest(rows, names))
    assert (found[:, 1] < 500).any() and (found[:, 1] > 500).any()


def test_the_order_of_joints_does_not_depend_on_who_was_first(tmp_path: Path):
    bags = tmp_path / "bags"
    for name, first in (("1", ("x", "y")), ("2", ("z",))):
        second = ("z",) if first == ("x", "y") else ("x", "y")
        write_bag(bags / name, [*cameras(), *said(first, every(0.02, -0.2), 0), *said(second, every(0.02), 9)])
    names, found, result = states(bags)
    assert names == ["x", "y", "z"]
    assert (result.episodes, result.failed, found.shape) == (2, {}, (40, 3))


def test_where_one_publisher_is_silent_the_episode_is_cut_and_it_is_named(tmp_path: Path):
    gripper = [*said(("grip",), every(0.05, -0.1, 0.3), 0), *said(("grip",), every(0.05, 0.7, 1.0), 0)]
    bag = write_bag(tmp_path / "bag", [*cameras(), *said(("a", "b"), every(0.01, -0.3), 0), *gripper])
    _, found, result = states(bag)
    # The last value before the silence, at 0.25 s, is too old after 0.45 s.
    assert (result.episodes, len(found)) == (2, 16)
    assert result.left_out.frames["/joint_states (grip) older than 0.2 s"] == 4


def test_a_publisher_that_stops_cuts_nothing_that_others_still_say(tmp_path: Path):
    rows = [*cameras(), *said(("a",), every(0.02, -0.3, 0.1), 0), *said(("a", "b"), every(0.05), 1000)]
    names, found, result = states(write_bag(tmp_path / "bag", rows))
    assert (result.episodes, len(found)) == (1, 20)
    assert np.array_equal(found, newest(rows, names))


def test_a_joint_that_was_not_heard_of_yet_is_not_made_up(tmp_path: Path):
    rows = [*cameras(), *said(("a", "b"), every(0.05), 0), *said(("b", "c"), every(0.05, 0.26), 1000)]
    _, found, result = states(write_bag(tmp_path / "bag", rows))
    assert len(found) == 14
    assert np.isfinite(found).all()
    assert result.left_out.frames["no message of /joint_states (b, c) yet"] == 6


def test_messages_without_a_joint_do_not_count_beside_others(tmp_path: Path):
    names, found, _ = states(
        write_bag(tmp_path / "bag", [*cameras(), *said((), every(0.3), 0), *said(("a",), every(0.01), 5)])
    )
    assert names == ["a"]
    assert len(found) == 20
    with pytest.raises(ConvertError, match="has no numbers in it"):
        states(write_bag(tmp_path / "none", [*cameras(), *said((), every(0.3), 0)]))


def test_sets_of_joints_without_end_are_refused(tmp_path: Path):
    streams = Streams(tmp_path / "bag", {"/joint_states"})
    with pytest.raises(ConvertError, match=r"bag: /joint_states: more than 64 different sets of joints"):
        for number in range(MOST_SETS + 1):
            streams.of("/joint_states", joints([0.0], START, (f"joint {number}",))[3])
    assert streams.of("/other", b"whatever") == "/other"
    with pytest.raises(ConvertError, match=r"bag: /joint_states: 6 bytes are too few.*record it again"):
        streams.of("/joint_states", b"\0\1\0\0ab")


@given(names_of, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9), st.booleans())
def test_names_are_read_as_the_types_read_them(names: list[str], frame: str, little: bool):
    stamp = header(START)
    stamp.frame_id = frame  # type: ignore[attr-defined]
    none = np.empty(0)
    message = TYPES.types[JOINTS](header=stamp, name=names, position=none, velocity=none, effort=none)
    data = bytes(TYPES.serialize_cdr(message, JOINTS, little_endian=little))
    assert joint_names(data) == tuple(names)
    for length in range(0, len(data) // 2):
        try:
            found = joint_names(data[:length])
        except ValueError:
            continue
        assert len(found) == len(names)
