"""What can be wrong with a bag, a disk or a name: said in one clear sentence, and nothing half is left."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from recordings import (
    COMPRESSED,
    IMAGE_TOPIC,
    RAW,
    SECOND,
    START,
    STEP,
    TYPES,
    clutter,
    compressed,
    images,
    raw,
    read_bag,
    square_frames,
    string,
    write_bag,
)
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Status
from v2r_core.label.rosbag import BagTask, label_bag
from v2r_core.video import VideoError

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
REWARD, INFO = "/reward_node/reward", "/reward_node/info"
STORAGES = [MCAP, SQLITE]


def label(bag: Path, bundle: Path, out: Path | None = None, **options):
    return label_bag(BagTask(bag, out or bag.with_name("labelled"), **options), load_bundle(bundle))


def assert_nothing_left(folder: Path) -> None:
    assert not [path.name for path in folder.iterdir() if path.name.startswith("labelled")]


def noise(count: int, size: int = 64) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


# --- bags ---


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_bag(tmp_path: Path, tiny_bundle: Path, storage, share: float) -> None:
    bag = write_bag(tmp_path / "run", images(noise(200)), storage)
    (file,) = bag.glob("run.*")
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(VideoError, match=r"ros2 bag reindex"):
        label(bag, tiny_bundle)
    assert not (tmp_path / "labelled").exists()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_bag_damaged_in_its_middle(tmp_path: Path, tiny_bundle: Path, storage) -> None:
    """Opening it goes well; the fault is found when half of it is copied."""
    mode = CompressionMode.STORAGE if storage is MCAP else CompressionMode.MESSAGE
    bag = write_bag(tmp_path / "run", images(noise(200)), storage, mode)
    (file,) = bag.glob("run.*")
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        handle.write(b"\xff" * 60_000)
    with pytest.raises(VideoError, match=r"message \d+ cannot be read .*truncated or damaged"):
        label(bag, tiny_bundle)
    assert not (tmp_path / "labelled").exists()
    left = sorted(path.name for path in (tmp_path / "labelled.partial").iterdir())
    assert left == ["journal", "lock"], "what was scored is kept, what was copied is not"


def test_no_metadata(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    (bag / "metadata.yaml").unlink()
    with pytest.raises(VideoError, match=r"metadata.*ros2 bag reindex"):
        label(bag, tiny_bundle)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("text", ["", "nonsense", "rosbag2_bagfile_information: {version: 9}", "a: [", "\x00"])
def test_metadata_that_is_none(tmp_path: Path, tiny_bundle: Path, text: str) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    (bag / "metadata.yaml").write_text(text)
    with pytest.raises(VideoError, match="cannot be read as a rosbag2"):
        label(bag, tiny_bundle)
    assert_nothing_left(tmp_path)


def test_a_missing_file_of_a_bag(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    (bag / "run.mcap").unlink()
    with pytest.raises(VideoError, match=r"missing.*run\.mcap"):
        label(bag, tiny_bundle)
    with pytest.raises(VideoError, match="does not exist"):
        label(tmp_path / "nothing", tiny_bundle)


def test_an_mcap_file_without_an_index(tmp_path: Path, tiny_bundle: Path) -> None:
    """A recorder that was stopped hard and whose file was closed afterwards leaves no summary."""
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter())
    whole, file = read_bag(bag), bag / "run.mcap"
    data = file.read_bytes()
    summary = int.from_bytes(data[-28:-20], "little")
    footer = b"\x02" + (20).to_bytes(8, "little") + bytes(20) + data[-8:]
    file.write_bytes(data[:summary] + footer)
    label(bag, tiny_bundle)
    assert read_bag(tmp_path / "labelled").without(REWARD, INFO).rows == whole.rows


def test_a_database_without_an_index(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()) + clutter(), SQLITE)
    before = read_bag(bag)
    with sqlite3.connect(bag / "run.db3") as database:
        database.execute("DROP INDEX timestamp_idx")
    database.close()
    label(bag, tiny_bundle)
    assert read_bag(tmp_path / "labelled").without(REWARD, INFO).rows == before.rows


def test_no_topic_with_images(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", clutter())
    with pytest.raises(VideoError, match=r"no topic with images; topics: /notes \(std_msgs/msg/String\), /probe"):
        label(bag, tiny_bundle)
    assert_nothing_left(tmp_path)


def test_another_topic_and_several(tmp_path: Path, tiny_bundle: Path) -> None:
    rows = images(square_frames()) + images(square_frames(), kind=COMPRESSED, topic="/wrist/compressed") + clutter()
    bag = write_bag(tmp_path / "run", rows)
    with pytest.raises(VideoError, match=r"'/front'; topics with images: /camera/image, /wrist/compressed"):
        label(bag, tiny_bundle, image_topics=("/front",))
    with pytest.raises(VideoError, match=r"'/notes' has type std_msgs/msg/String"):
        label(bag, tiny_bundle, image_topics=("/notes",))
    with pytest.raises(VideoError, match=r"several topics with images"):
        label(bag, tiny_bundle)
    assert_nothing_left(tmp_path)
    done = label(bag, tiny_bundle, image_topics=("/wrist/compressed",))
    assert (done.topics, done.counts.images, done.messages) == (("/wrist/compressed",), 40, 160)


def test_a_topic_without_messages(tmp_path: Path, tiny_bundle: Path) -> None:
    with Writer(tmp_path / "run", version=9, storage_plugin=MCAP) as writer:
        writer.add_connection(IMAGE_TOPIC, RAW, typestore=TYPES)
        notes = writer.add_connection("/notes", "std_msgs/msg/String", typestore=TYPES)
        writer.write(notes, START, string("alone", START)[3])
    with pytest.raises(VideoError, match=r"/camera/image: no message"):
        label(tmp_path / "run", tiny_bundle)
    assert_nothing_left(tmp_path)


def test_labels_that_are_there_already(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    label(bag, tiny_bundle)
    with pytest.raises(ValueError, match=r"/reward_node/info, /reward_node/reward already; choose another --namespace"):
        label(tmp_path / "labelled", tiny_bundle, tmp_path / "again")
    label(tmp_path / "labelled", tiny_bundle, tmp_path / "again", namespace="/second")
    contents = read_bag(tmp_path / "again")
    assert contents.without("/second/reward", "/second/info") == read_bag(tmp_path / "labelled")


# --- images ---


def test_images_that_change_their_size(tmp_path: Path, tiny_bundle: Path) -> None:
    small, large = square_frames(20), [frame.repeat(2, 0).repeat(2, 1) for frame in square_frames(20)]
    rows = images([*small[:10], *large[10:]])
    done = label(write_bag(tmp_path / "run", rows), tiny_bundle)
    assert done.counts.sizes == [(48, 64), (96, 128)]
    found = read_bag(tmp_path / "labelled").messages(REWARD)
    assert [message.status for message in found] == [Status.WARMING_UP] + [Status.OK] * 19
    values = [message.value for message in found]
    assert values == sorted(values), "the square walks on, whatever its size"


def test_images_that_are_none(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = square_frames(12)
    rows = images(frames)

    def put(index: int, data: bytes) -> None:
        rows[index] = (*rows[index][:3], data)

    put(2, raw(frames[2], START + 2 * STEP, step=3))
    put(4, rows[4][3][:60])
    put(6, b"\x00\x01")
    put(8, raw(frames[8], START + 8 * STEP).replace(b"rgb8", b"yuv8"))
    put(10, raw(frames[10], START + 10 * STEP + 5 * SECOND))
    done = label(write_bag(tmp_path / "run", rows), tiny_bundle)
    contents = read_bag(tmp_path / "labelled")
    assert contents.without(REWARD, INFO).rows == rows
    found = contents.messages(REWARD)
    bad = [index for index, message in enumerate(found) if message.status == Status.BAD_IMAGE]
    assert bad == [2, 4, 6, 8, 10]
    assert all(np.isnan([found[i].reward, found[i].value, found[i].progress]).all() for i in bad)
    assert [message.frame_count for message in found] == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert done.counts.problems[Status.BAD_IMAGE].startswith("image 2: step is 3")
    steps = [message.reward for message in found if message.status == Status.OK]
    assert sum(steps) == pytest.approx(found[-1].value - found[0].value, abs=1e-5)


def test_a_damaged_jpeg_or_png(tmp_path: Path, tiny_bundle: Path) -> None:
    frames = square_frames(6)
    rows = images(frames, kind=COMPRESSED)
    whole = compressed(frames[3], START + 3 * STEP)
    rows[3] = (*rows[3][:3], whole[:80] + bytes(len(whole) - 80))
    done = label(write_bag(tmp_path / "run", rows), tiny_bundle)
    assert done.counts.statuses[Status.BAD_IMAGE] == 1
    assert "no whole JPEG or PNG" in done.counts.problems[Status.BAD_IMAGE]


# --- names ---


def test_a_name_that_is_taken(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(square_frames()))
    out = tmp_path / "labelled"
    out.mkdir()
    (out / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="--force"):
        label(bag, tiny_bundle)
    with pytest.raises(FileExistsError, match="no bag, so it is not replaced"):
        label(bag, tiny_bundle, force=True)
    assert (out / "precious").read_text() == "data"
    shutil.rmtree(out)
    write_bag(out, clutter())
    with pytest.raises(FileExistsError, match="--force"):
        label(bag, tiny_bundle)
    assert len(read_bag(out).rows) == 80
    label(bag, tiny_bundle, force=True)
    assert len(read_bag(out).messages(REWARD)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled", "run", "tiny"]


def test_what_was_to_be_replaced_is_back_after_a_failure(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", images(noise(200)))
    out = write_bag(tmp_path / "labelled", clutter())
    with (bag / "run.mcap").open("r+b") as handle:
        handle.seek(1_200_000)
        handle.write(b"\xff" * 100_000)
    with pytest.raises(VideoError):
        label(bag, tiny_bundle, force=True)
    assert len(read_bag(out).rows) == 80


@pytest.mark.parametrize("place", ["run", "run/below", "."])
def test_the_original_is_never_written_to(tmp_path: Path, tiny_bundle: Path, place: str) -> None:
    bag = write_bag(tmp_path / "data" / "run", images(square_frames()))
    shutil.copy(bag / "metadata.yaml", tmp_path / "data")  # so that it looks like a bag that may be replaced
    before = read_bag(bag)
    with pytest.raises(ValueError, match="overlap"):
        label(bag, tiny_bundle, tmp_path / "data" / place, force=True)
    assert read_bag(bag) == before


# --- disks ---


@contextmanager
def largest_file(size: int):
    """No file may grow beyond this: the kernel refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [1 << 20, 100])
def test_a_file_that_cannot_grow(tmp_path: Path, tiny_bundle: Path, storage, size: int) -> None:
    """Within the copy, and within the journal."""
    bag = write_bag(tmp_path / "run", images(noise(200)), storage)
    with largest_file(size), pytest.raises(OSError, match="free space and start again") as caught:
        label(bag, tiny_bundle)
    assert str(tmp_path / "labelled") in str(caught.value)
    assert not (tmp_path / "labelled").exists()
    partial = tmp_path / "labelled.partial"
    assert {path.name for path in partial.iterdir()} <= {"journal", "lock"}
    done = label(bag, tiny_bundle)
    assert (done.resumed[0] > 0) == (size > 100), "within 100 bytes there was no room for an answer"
    assert read_bag(tmp_path / "labelled").without(REWARD, INFO).rows == read_bag(bag).rows


FULL_DISK = """
import sys
from pathlib import Path
from v2r_core.cli.main import main
bag, model, disk = sys.argv[1:]
sys.exit(main(["label", bag, "--out", disk + "/labelled", "--model", model]))
"""


@pytest.mark.parametrize("storage", STORAGES)
def test_a_disk_that_is_really_full(tmp_path: Path, tiny_bundle: Path, storage) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1m tmpfs "$1" && shift && "$@"; ls -R "$0"',
        disk,
        disk,
    ]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    bag = write_bag(tmp_path / "run", images(noise(200)), storage)
    done = subprocess.run(
        [*inside, sys.executable, "-c", FULL_DISK, bag, tiny_bundle, disk], capture_output=True, text=True, check=False
    )
    assert "labelled cannot be written" in done.stderr, done.stderr
    assert "full" in done.stderr or "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    names = done.stdout.replace("labelled.partial", "").split()
    assert "labelled" not in names and "metadata.yaml" not in names
