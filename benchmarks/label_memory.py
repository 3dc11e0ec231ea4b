"""Most memory that `v2r label` and `v2r convert` take for a large bag of raw images, which is written for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from v2r_core import CLIPS
from v2r_core.video.bag import RAW

HEIGHT, WIDTH, HZ = 480, 640, 30
BOUND_MB = 500
CAMERAS = ("/camera/image", "/wrist/image")
_JOINTS = "sensor_msgs/msg/JointState"
_JOINTS_AN_IMAGE = 3
_POLL_S = 0.05


@dataclass(frozen=True)
class Options:
    """What is measured."""

    gb: float = 1.0
    """Size of the bag, in 10^9 bytes; so much room and as much again is needed in the folder."""
    cameras: int = 2
    """1 or 2. `v2r label` scores the first one, `v2r convert` takes all."""
    folder: Path | None = None
    """Where the bag is written and removed again; by default where temporary files go."""
    out: Path = Path("out/bench/label_memory.json")
    """File for the numbers."""


@dataclass(frozen=True)
class Run:
    """What a command took.

    Attributes:
        peak_mb: most memory of its process (VmHWM), in 10^6 bytes.
        seconds: wall time.
    """

    peak_mb: float
    seconds: float


def write_bag(bag: Path, size: float, cameras: int) -> int:
    """Writes an MCAP of raw images at 30 Hz and joints at 90 Hz, one episode, a message at a time.

    Args:
        bag: the folder to be made.
        size: of all images, in bytes.
        cameras: how many have images.

    Returns:
        Images of each camera.
    """
    types = get_typestore(Stores.ROS2_JAZZY)
    image, joints, header, time_ = (
        types.types[name] for name in (RAW, _JOINTS, "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    )
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([rows // 2, columns // 3, (rows // 40 + columns // 40) % 2 * 200], axis=2).astype(np.uint8)
    count = max(int(size / cameras / picture.nbytes), 2)
    names, none = ["shoulder", "elbow", "wrist"], np.empty(0)
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = [writer.add_connection(topic, RAW, typestore=types) for topic in CAMERAS[:cameras]]
        states = writer.add_connection("/joint_states", _JOINTS, typestore=types)
        for number in range(count):
            begin = 10**18 + number * 10**9 // HZ
            stamp = header(time_(*divmod(begin, 10**9)), "camera")
            for place, topic in enumerate(topics):
                pixels = np.roll(picture, 3 * number * (place + 1), axis=1).reshape(-1)
                message = image(stamp, HEIGHT, WIDTH, "rgb8", 0, 3 * WIDTH, pixels)
                writer.write(topic, begin, types.serialize_cdr(message, RAW))
            for part in range(_JOINTS_AN_IMAGE):
                moment = begin + part * 10**9 // HZ // _JOINTS_AN_IMAGE
                angles = np.sin(np.arange(3) + number / HZ)
                state = joints(header(time_(*divmod(moment, 10**9)), ""), names, angles, none, none)
                writer.write(states, moment, types.serialize_cdr(state, _JOINTS))
    return count


def run(*words: str | Path) -> Run:
    """Runs a verb in a process of its own.

    Raises:
        RuntimeError: it has failed.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "v2r_core.cli", *map(str, words)]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        # The kernel keeps the highest mark of the program itself; resource usage would count this process too.
        while process.poll() is None:
            peak = max(peak, _highest_mark(process.pid))
            time.sleep(_POLL_S)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(peak, time.perf_counter() - start)


def _highest_mark(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def main(options: Options) -> int:
    """Measures, prints, writes the JSON; 1 if the bound is missed."""
    if options.cameras not in (1, 2) or options.gb <= 0:
        raise SystemExit("--cameras 1 or 2, and --gb above 0 expected")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        bag = Path(scratch) / "bag"
        images = write_bag(bag, options.gb * 1e9, options.cameras)
        size = sum(file.stat().st_size for file in bag.iterdir())
        label = ("label", bag, "--image-topic", CAMERAS[0], "--goal", CLIPS / "success.mp4")
        labelled = run(*label, "--out", Path(scratch) / "labelled")
        shutil.rmtree(Path(scratch) / "labelled")
        converted = run("convert", bag, Path(scratch) / "dataset", "--to", "lerobot", "--state", "/joint_states")
    found = {
        "bag_gb": size / 1e9,
        "images_a_camera": images,
        "cameras": options.cameras,
        "label": asdict(labelled),
        "convert": asdict(converted),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(
        f"a bag of {size / 1e9:.2f} GB, {options.cameras} x {images} raw images of {WIDTH}x{HEIGHT}: v2r label took at "
        f"most {labelled.peak_mb:.0f} MB ({labelled.seconds:.0f} s), v2r convert {converted.peak_mb:.0f} MB "
        f"({converted.seconds:.0f} s); {BOUND_MB} MB allowed"
    )
    return int(max(labelled.peak_mb, converted.peak_mb) >= BOUND_MB)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
