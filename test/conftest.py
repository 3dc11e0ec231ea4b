"""What all tests share: an own DDS domain, logs out of the way, a tiny bundle, synthetic videos."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

# Set before anything imports rclpy: no test may reach a robot, or another test run, on the same network.
os.environ["ROS_DOMAIN_ID"] = str(os.getpid() % 100 + 1)
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if importlib.util.find_spec("rclpy") is not None:
    from v2r_ros.environment import node_environment

    os.environ.update(node_environment())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under test/ros needs ROS; without it those tests are skipped, with that reason."""
    missing = [name for name in ("rclpy", "v2r_msgs") if importlib.util.find_spec(name) is None]
    for item in items:
        if "ros" in Path(item.fspath).relative_to(Path(__file__).parent).parts[:1]:
            item.add_marker(pytest.mark.ros)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"{', '.join(missing)} not installed: make sets them up"))


@pytest.fixture(autouse=True)
def _ros_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "ros_logs"))


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """A bundle that loads in milliseconds; see tiny_bundle.py."""
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def square_video() -> list[np.ndarray]:
    """Forty frames of `moving_square`."""
    return moving_square()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """`moving_square` as an mp4 at 30 frames a second."""
    path = tmp_path / "square.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in moving_square():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
