"""Builds v2r_msgs and installs it into the virtual environment that runs this script.

Run by `make`. On a robot, colcon does this job (see the README).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUILD_MACHINE_PATHS = re.compile(
    r"/opt/python/cp\d+-cp\d+/(include/python[\d.]+|lib/python[\d.]+/site-packages/\S+?/include)"
)


def repair_wheel_targets(prefix: Path) -> int:
    """Points the wheels' exported CMake targets at this interpreter; they still name the machine that built them."""
    python_include, numpy_include = sysconfig.get_path("include"), np.get_include()

    def here(match: re.Match[str]) -> str:
        return numpy_include if "numpy" in match.group(0) else python_include

    changed = 0
    for file in prefix.glob("share/*/cmake/*.cmake"):
        text = file.read_text()
        repaired = BUILD_MACHINE_PATHS.sub(here, text)
        if repaired != text:
            file.write_text(repaired)
            changed += 1
    return changed


def build(prefix: Path) -> None:
    """Configures, builds and installs the package with CMake; shows the output only when it fails."""
    environment = dict(os.environ)
    roots = [str(prefix), *filter(None, [environment.get("AMENT_PREFIX_PATH")])]
    environment["AMENT_PREFIX_PATH"] = environment["CMAKE_PREFIX_PATH"] = os.pathsep.join(roots)
    environment["PATH"] = f"{prefix / 'bin'}{os.pathsep}{environment['PATH']}"
    folder = ROOT / "build" / f"v2r_msgs-py{sys.version_info.major}.{sys.version_info.minor}"
    commands = [
        [
            *("cmake", "-S", str(ROOT / "v2r_msgs"), "-B", str(folder)),
            *(f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DPython3_EXECUTABLE={sys.executable}"),
            *("-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release"),
        ],
        ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
        ["cmake", "--install", str(folder)],
    ]
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
            raise SystemExit(f"building v2r_msgs failed: {' '.join(command)} exited with {done.returncode}")


def main() -> None:
    """Entry point; refuses to install anywhere but into a virtual environment."""
    prefix = Path(sys.prefix)
    if sys.prefix == sys.base_prefix:
        raise SystemExit("run this with the Python of a virtual environment, e.g. .venv/bin/python tools/build_msgs.py")
    if "ROS_DISTRO" not in os.environ:
        repair_wheel_targets(prefix)
    build(prefix)
    print(f"v2r_msgs installed into {prefix}")


if __name__ == "__main__":
    main()
