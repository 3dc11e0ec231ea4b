"""A labelled bag is the same bag with rewards in it, in every way that a bag can be stored."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from recordings import (
    ALIEN,
    COMPRESSED,
    IMAGE_TOPIC,
    QOS,
    RAW,
    START,
    STEP,
    STRING,
    TYPES,
    clutter,
    images,
    read_bag,
    square_frames,
    string,
    write_bag,
)
from rosbags.highlevel import AnyReader
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat, QosDurability, QosReliability
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter, Schema
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from v2r_core import ASSETS
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.label.bag_writer import bag_format
from v2r_core.label.messages import Header, Messages, read_header
from v2r_core.label.rosbag import BagTask, LabelledBag, label_bag

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
REWARD, INFO = "/reward_node/reward", "/reward_node/info"


def label(bag: Path, out: Path, bundle: Path, **options) -> LabelledBag:
    reward = options.pop("reward", None)
    return label_bag(BagTask(bag, out, **options), load_bundle(bundle), reward)


def checksums(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file.relative_to(folder)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def assert_is_labelled(bag: Path, out: Path) -> None:
    """All that was there is there, byte for byte and in its order, and a reward comes right behind each image."""
    before, after = read_bag(bag), read_bag(out)
    rest = after.without(REWARD, INFO)
    assert rest.rows == before.rows
    assert rest.topics == before.topics
    labels = [row for row in after.rows if row[1] != INFO]
    behind = [row for previous, row in itertools.pairwise(labels) if previous[1] == IMAGE_TOPIC]
    pictures = [row for row in labels if row[1] == IMAGE_TOPIC]
    assert [row[1] for row in behind] == [REWARD] * len(pictures)
    assert [row[0] for row in behind] == [row[0] for row in pictures]
    assert [read_header(row[3]) for row in behind] == [read_header(row[3]) for row in pictures]
    first, *others = [index for index, row in enumerate(after.rows) if row[1] == INFO]
    assert first == 0 and not others
    assert after.rows[0][0] == before.rows[0][0]
    assert not out.with_name(out.name + ".partial").exists()


STORED = [
    (MCAP, CompressionMode.NONE),
    (MCAP, CompressionMode.STORAGE),
    (MCAP, CompressionMode.FILE),
    (MCAP, CompressionMode.MESSAGE),
    (SQLITE, CompressionMode.NONE),
    (SQLITE, CompressionMode.FILE),
    (SQLITE, CompressionMode.MESSAGE),
]


@pytest.mark.parametrize(("storage", "mode"), STORED)
def test_every_storage_and_compression(tmp_path: Path, tiny_bundle: Path, storage, mode) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter(), storage, mode)
    before = checksums(bag)
    done = label(bag, tmp_path / "labelled", tiny_bundle)
    assert done.counts.statuses == {Status.OK: 39, Status.WARMING_UP: 1}
    assert (done.messages, done.counts.images, done.counts.episodes) == (120, 40, 1)
    assert_is_labelled(bag, tmp_path / "labelled")
    assert checksums(bag) == before
    assert bag_format(tmp_path / "labelled") == bag_format(bag)
    assert bag_format(bag).compression is mode
    suffix = (".mcap" if storage is MCAP else ".db3") + (".zstd" if mode is CompressionMode.FILE else "")
    names = sorted(path.name for path in (tmp_path / "labelled").iterdir())
    assert names == [f"labelled_0{suffix}", "metadata.yaml"]


@pytest.mark.parametrize("kind", [RAW, COMPRESSED])
def test_the_labels_are_those_of_the_scorer(tmp_path: Path, tiny_bundle: Path, kind: str) -> None:
    frames = square_frames()
    bag = write_bag(tmp_path / "run", images(frames, kind=kind))
    label(bag, tmp_path / "labelled", tiny_bundle)
    found = read_bag(tmp_path / "labelled").messages(REWARD)

    class Video(list):
        stamps = np.arange(len(frames)) / 30

    scorer = Scorer(load_bundle(tiny_bundle))
    scorer.set_goal(scorer.goal_from_video(Video(frames), "end"))
    curve = scorer.score(Video(frames)).curve
    for name in ("reward", "raw_reward", "value", "progress", "uncertainty"):
        np.testing.assert_allclose([getattr(m, name) for m in found], getattr(curve, name), atol=1e-5, err_msg=name)
    assert found[-1].value == pytest.approx(0, abs=1e-6) and found[-1].progress == 1
    assert [m.frame_count for m in found] == list(range(1, 41))
    assert {(m.status, m.episode, m.goal_id, m.subgoal_count) for m in found[1:]} == {
        (0, 0, "run, end of episode 0", 1)
    }
    assert all(math.isnan(m.inference_ms) and math.isnan(m.success_probability) for m in found)
    assert {(m.latency.sec, m.latency.nanosec, m.dropped_frames) for m in found} == {(0, 0, 0)}
    assert found[3].header.frame_id == "camera_optical_frame"


def test_what_stands_behind_the_rewards(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", [*images(square_frames()), string("first", START - STEP)])
    label(bag, tmp_path / "labelled", tiny_bundle, namespace="/arm/reward")
    contents = read_bag(tmp_path / "labelled")
    (info,) = contents.messages("/arm/reward/info")
    assert info.model_sha256 == load_bundle(tiny_bundle).sha256
    assert (info.goal_id, info.goal_source, info.reward_name) == ("run, end of episode 0", "last", "vip")
    assert (info.reward_scale, info.reward_clip, info.kind) == (1.0, math.inf, info.KIND_VALUE)
    assert info.header.stamp.sec * 10**9 + info.header.stamp.nanosec == START - STEP
    assert len(contents.messages("/arm/reward/reward")) == 40
    offered = {
        topic: contents.topics[f"/arm/reward/{topic}"][3].offered_qos_profiles[0] for topic in ("info", "reward")
    }
    assert offered["info"].durability is QosDurability.TRANSIENT_LOCAL
    assert offered["reward"].durability is QosDurability.VOLATILE
    assert {qos.reliability for qos in offered.values()} == {QosReliability.RELIABLE}


def split(path: Path, parts: list[list], storage: StoragePlugin) -> Path:
    """A bag of several files, put together by hand."""
    whole: dict = {}
    path.mkdir()
    for number, rows in enumerate(parts):
        part = write_bag(path.with_name(f"{path.name}_{number}"), rows, storage)
        metadata = yaml.safe_load((part / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        for file in part.glob(f"{part.name}.*"):
            file.rename(path / file.name)
        shutil.rmtree(part)
        if not whole:
            whole = metadata
            continue
        for key in ("relative_file_paths", "files"):
            whole[key] += metadata[key]
        whole["message_count"] += metadata["message_count"]
        counts = {t["topic_metadata"]["name"]: t["message_count"] for t in metadata["topics_with_message_count"]}
        for topic in whole["topics_with_message_count"]:
            topic["message_count"] += counts.get(topic["topic_metadata"]["name"], 0)
        end = metadata["starting_time"]["nanoseconds_since_epoch"] + metadata["duration"]["nanoseconds"]
        whole["duration"]["nanoseconds"] = end - whole["starting_time"]["nanoseconds_since_epoch"]
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": whole}))
    return path


@pytest.mark.parametrize("storage", [MCAP, SQLITE])
def test_a_split_bag_stays_split(tmp_path: Path, tiny_bundle: Path, storage) -> None:
    rows = sorted(images(square_frames()) + clutter(), key=lambda row: row[0])
    bag = split(tmp_path / "run", [rows[:50], rows[50:53], rows[53:]], storage)
    label(bag, tmp_path / "labelled", tiny_bundle)
    assert_is_labelled(bag, tmp_path / "labelled")
    before, after = (
        yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        for folder in (bag, tmp_path / "labelled")
    )
    suffix = "mcap" if storage is MCAP else "db3"
    assert after["relative_file_paths"] == [f"labelled_{number}.{suffix}" for number in range(3)]
    assert [file["starting_time"] for file in after["files"]] == [file["starting_time"] for file in before["files"]]
    assert [file["duration"] for file in after["files"]] == [file["duration"] for file in before["files"]]
    pictures = [sum(row[1] == IMAGE_TOPIC for row in part) for part in (rows[:50], rows[50:53], rows[53:])]
    counts = [50 + pictures[0] + 1, 3 + pictures[1], 67 + pictures[2]]
    assert [file["message_count"] for file in after["files"]] == counts
    assert sum(counts) == after["message_count"] == 161
    assert after["custom_data"] == {"robot": "number five"}


@pytest.mark.parametrize("storage", [MCAP, SQLITE])
def test_a_single_file_without_metadata(tmp_path: Path, tiny_bundle: Path, storage) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter(), storage)
    (bag / "metadata.yaml").unlink()
    (file,) = bag.iterdir()
    label(file, tmp_path / "labelled", tiny_bundle)
    before, after = read_bag(file), read_bag(tmp_path / "labelled")
    assert after.without(REWARD, INFO).rows == before.rows
    assert len(after.messages(REWARD)) == 40


@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.FILE])
def test_a_bag_from_before_types_had_hashes(tmp_path: Path, tiny_bundle: Path, mode) -> None:
    """Galactic and Humble: metadata without hashes, and no definitions in the file."""
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter(), SQLITE, CompressionMode.NONE, version=8)
    file = bag / "run.db3"
    with sqlite3.connect(file) as database:
        database.executescript(
            "DROP TABLE message_definitions; DROP TABLE schema; DROP TABLE metadata;"
            "ALTER TABLE topics DROP COLUMN type_description_hash;"
        )
    database.close()
    whole = yaml.safe_load((bag / "metadata.yaml").read_text())
    information = whole["rosbag2_bagfile_information"]
    information["version"] = 4
    for key in ("files", "custom_data", "ros_distro"):
        del information[key]
    for topic in information["topics_with_message_count"]:
        del topic["topic_metadata"]["type_description_hash"]
    if mode is CompressionMode.FILE:
        from backports import zstd

        (bag / "run.db3.zstd").write_bytes(zstd.compress(file.read_bytes()))
        file.unlink()
        information |= {"compression_mode": "FILE", "compression_format": "zstd"}
        information["relative_file_paths"] = ["run.db3.zstd"]
    (bag / "metadata.yaml").write_text(yaml.safe_dump(whole))
    before = read_bag(bag)
    assert before.topics["/notes"][1:3] == (MessageDefinition(MessageDefinitionFormat.NONE, ""), "")
    label(bag, tmp_path / "labelled", tiny_bundle)
    found = read_bag(tmp_path / "labelled")
    assert found.without(REWARD, INFO).rows == before.rows
    assert found.topics["/probe"] == before.topics["/probe"]
    # Readers look up what ROS itself has only for bags without any definition; the labels bring some.
    with AnyReader([tmp_path / "labelled"]) as reader:
        read = {c.topic: reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages() if c.topic != "/probe"}
    assert read[IMAGE_TOPIC].encoding == "rgb8" and read["/notes"].data == "note 39" and read[REWARD].progress == 1
    after = yaml.safe_load((tmp_path / "labelled" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert after["version"] == 8
    hashes = {
        t["topic_metadata"]["name"]: t["topic_metadata"]["type_description_hash"]
        for t in after["topics_with_message_count"]
    }
    assert hashes["/notes"] == hashes["/probe"] == ""
    assert hashes[REWARD].startswith("RIHS01_")


def test_messages_recorded_at_the_same_time_keep_their_order(tmp_path: Path, tiny_bundle: Path) -> None:
    rows = [
        row
        for index, frame in enumerate(square_frames(12))
        for row in (
            string(f"before {index}", START),
            (START, IMAGE_TOPIC, RAW, images([frame], START + index * STEP)[0][3]),
            string(f"after {index}", START),
        )
    ]
    for storage in (MCAP, SQLITE):
        bag = write_bag(tmp_path / f"run_{storage.name}", rows, storage)
        out = tmp_path / f"labelled_{storage.name}"
        label(bag, out, tiny_bundle)
        assert_is_labelled(bag, out)


def test_one_topic_on_two_channels(tmp_path: Path, tiny_bundle: Path) -> None:
    """Merged MCAP files have them; the writer would refuse the second one."""
    bag = tmp_path / "run"
    bag.mkdir()
    writer = McapWriter(bag, CompressionMode.NONE)
    with Writer(tmp_path / "scratch", version=9, storage_plugin=MCAP) as scratch:
        picture = scratch.add_connection(IMAGE_TOPIC, RAW, typestore=TYPES, offered_qos_profiles=[QOS])
        note = scratch.add_connection("/notes", STRING, typestore=TYPES)
        scratch.write(picture, START, b"")
    twin = picture._replace(id=7)
    for connection in (picture, note):
        writer.add_msgtype(connection)
    for connection in (picture, note, twin):
        writer.add_connection(connection, "")
    for index, (time, _, _, data) in enumerate(images(square_frames())):
        writer.write(twin if index % 3 else picture, time, data)
    writer.close(9, "")
    label(bag / "run.mcap", tmp_path / "labelled", tiny_bundle)
    after = read_bag(tmp_path / "labelled")
    assert after.without(REWARD, INFO).rows == [row for row in images(square_frames())]
    assert len(after.messages(REWARD)) == 40


def test_an_mcap_type_without_a_definition_stays_one(tmp_path: Path, tiny_bundle: Path) -> None:
    """What rosbag2 records of a type whose definition it does not find; an empty one would not fit its hash."""
    bag = tmp_path / "run"
    with Writer(bag, version=9, storage_plugin=MCAP) as writer:
        picture = writer.add_connection(IMAGE_TOPIC, RAW, typestore=TYPES, offered_qos_profiles=[QOS])
        writer.added_types.add(ALIEN)
        writer.storage.schemas.append(Schema(2, ALIEN, "", ""))
        probe = writer.add_connection("/probe", ALIEN, msgdef="", rihs01="RIHS01_" + 64 * "a")
        for time, _, _, data in images(square_frames()):
            writer.write(picture, time, data)
            writer.write(probe, time, b"12345")
    assert read_bag(bag).topics["/probe"][1].format is MessageDefinitionFormat.NONE
    label(bag, tmp_path / "labelled", tiny_bundle)
    assert_is_labelled(bag, tmp_path / "labelled")
    with AnyReader([tmp_path / "labelled"]) as reader:
        assert sum(connection.topic == "/probe" for connection, _, _ in reader.messages()) == 40


def test_definitions_are_those_that_were_built() -> None:
    """The copies that travel with v2r_core are the originals, and their hashes those of the built types."""
    originals = Path(__file__).parents[2] / "v2r_msgs" / "msg"
    assert {file.stem for file in (ASSETS / "msg").iterdir()} == {"Reward", "RewardInfo", "Episode"}
    for file in (ASSETS / "msg").iterdir():
        assert file.read_text() == (originals / file.name).read_text()
    built = pytest.importorskip("ament_index_python.packages", reason="v2r_msgs is not built")
    share = Path(built.get_package_share_directory("v2r_msgs"))
    for name in ("Reward", "RewardInfo", "Episode"):
        hashes = json.loads((share / "msg" / f"{name}.json").read_text())["type_hashes"]
        wanted = {entry["type_name"]: entry["hash_string"] for entry in hashes}
        assert TYPES.hash_rihs01(f"v2r_msgs/msg/{name}") == wanted[f"v2r_msgs/msg/{name}"]


def test_the_definition_in_the_bag_is_enough_to_read_it(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    label(bag, tmp_path / "labelled", tiny_bundle)
    contents = read_bag(tmp_path / "labelled")
    types = get_typestore(Stores.EMPTY)
    for topic in (REWARD, INFO):
        types.register(get_types_from_msg(contents.topics[topic][1].data, contents.topics[topic][0]))
    rewards = [types.deserialize_cdr(data, kind) for _, topic, kind, data in contents.rows if topic == REWARD]
    assert [message.status for message in rewards] == [5] + [0] * 39


def test_headers(tmp_path: Path) -> None:
    for stamp in (0, START, START + 999_999_999, -1):
        data = Messages("/x").info(stamp, reward_info())
        assert read_header(data) == Header(stamp, "")
    big = bytearray(images([square_frames()[0]])[0][3])
    assert read_header(bytes(big)) == Header(START, "camera_optical_frame")
    for length in (0, 3, 15):
        with pytest.raises(ValueError, match="too few"):
            read_header(bytes(length))
    for name in ("", "reward", "/", "/reward/", "/a b", "/1"):
        with pytest.raises(ValueError, match="/reward_node"):
            Messages(name)


def reward_info() -> dict:
    info = TYPES.types["v2r_msgs/msg/RewardInfo"]
    fields = dict.fromkeys((f for f in info.__dataclass_fields__ if f.islower() and f not in ("header", "kind")), "")
    numbers = ("reward_scale", "reward_clip", "discount", "uncertainty_threshold")
    whole = ("embedding_dim", "image_size", "subgoal_count")
    del fields["__msgtype__"]
    return (
        fields
        | dict.fromkeys(numbers, 0.0)
        | dict.fromkeys(whole, 0)
        | {
            "kind": 0,
            "component_names": [],
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
        }
    )


@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.STORAGE])
def test_with_the_mcap_library(tmp_path: Path, tiny_bundle: Path, mode) -> None:
    reader = pytest.importorskip("mcap.reader", reason="mcap is not installed: pip install mcap")
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter(), MCAP, mode)
    label(bag, tmp_path / "labelled", tiny_bundle)
    with (tmp_path / "labelled" / "labelled_0.mcap").open("rb") as file:
        found = [
            (message.log_time, channel.topic, schema.name, message.data)
            for schema, channel, message in reader.make_reader(file, validate_crcs=True).iter_messages()
        ]
    assert found == read_bag(tmp_path / "labelled").rows


@pytest.mark.skipif(shutil.which("ros2") is None, reason="ros2 bag is not installed")
@pytest.mark.parametrize("storage", [MCAP, SQLITE])
def test_with_ros2_bag(tmp_path: Path, tiny_bundle: Path, storage) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter(), storage)
    label(bag, tmp_path / "labelled", tiny_bundle)
    done = subprocess.run(["ros2", "bag", "info", tmp_path / "labelled"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Messages:          161" in done.stdout
