"""The environment that camera-sized messages need, in one place for the launch files, the demo and the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Fresh pages for every image cost more than the copy itself; these keep freed memory in the process.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "67108864",
}
# The few small products of a node are done before a second BLAS thread has woken up.
BLAS = {"OPENBLAS_NUM_THREADS": "1"}


def share_folder(name: str) -> Path:
    """`launch` or `config`, in the source tree or where the package was installed.

    Raises:
        FileNotFoundError: neither is there.
    """
    source = Path(__file__).resolve().parents[1] / name
    if source.is_dir() and (source.parent / "package.xml").is_file():
        return source
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    for prefix in prefixes:
        folder = Path(prefix) / "share" / "v2r_ros" / name
        if prefix and folder.is_dir():
            return folder
    raise FileNotFoundError(f"no share/v2r_ros/{name} below {prefixes}; install the package or source its setup.bash")


def node_environment() -> dict[str, str]:
    """Variables to add to a node's environment; what the user has set already wins."""
    result = {
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(share_folder("config") / "fastdds.xml"),
        "PYTHONUNBUFFERED": "1",
        **MALLOC,
        **BLAS,
    }
    if "ROS_DISTRO" not in os.environ:  # the wheels know their own place but do not say so
        result["AMENT_PREFIX_PATH"] = sys.prefix
    return {name: value for name, value in result.items() if name not in os.environ}
