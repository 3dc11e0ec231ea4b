"""`v2r doctor`: looks at this machine and says what to do about each problem."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.gpu import gpu_name, tensorrt_version
from v2r_core.deploy.runtime import PROVIDERS, Session, providers_here

Level = Literal["ok", "note", "problem"]
COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}
SHM = Path("/dev/shm")
SHM_NEEDED = 64 * 2**20


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and the remedy (empty if none is needed)."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Doctor:
    """Checks interpreter, ROS, middleware, providers, GPU, shared memory and the shipped model."""

    json: bool = False
    """Print the findings as JSON instead of a table."""

    def run(self) -> int:
        """Prints the findings; 1 if one of them is a problem."""
        findings = list(examine())
        if self.json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            table = Table("what", "found", "what to do")
            for finding in findings:
                colour = COLOURS[finding.level]
                table.add_row(finding.subject, f"[{colour}]{finding.found}[/{colour}]", finding.remedy)
            Console().print(table)
        return int(any(finding.level == "problem" for finding in findings))


def examine() -> Iterator[Finding]:
    """All findings about this process's machine and environment."""
    yield _interpreter()
    yield from _ros()
    yield _profile()
    yield _shared_memory()
    yield from _providers()
    yield from _model()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _interpreter() -> Finding:
    found = f"Python {sys.version.split()[0]}, {sys.executable}"
    if not (3, 11) <= sys.version_info < (3, 14):
        return Finding("interpreter", "problem", found, "use Python 3.11 to 3.13")
    return Finding("interpreter", "ok", found)


def _ros() -> Iterator[Finding]:
    distribution, wheels = os.environ.get("ROS_DISTRO"), _version("ros-jazzy-rclpy") or _version("ros-rclpy")
    if distribution and wheels:
        remedy = "remove the virtual environment and run make again with ROS sourced, or use a shell without ROS"
        yield Finding("ROS 2", "problem", f"both {distribution} and the wheels ({wheels})", remedy)
    elif distribution:
        yield Finding("ROS 2", "ok", f"{distribution}, installed")
    elif wheels:
        yield Finding("ROS 2", "ok", f"Jazzy wheels, {wheels}")
    else:
        yield Finding("ROS 2", "problem", "none", "source /opt/ros/jazzy/setup.bash, or run make to get the wheels")
    if importlib.util.find_spec("v2r_msgs") is None:
        remedy = "make (wheels), or colcon build --base-paths . v2r_msgs and source install/setup.bash (robot)"
        yield Finding("v2r_msgs", "problem", "not built", remedy)
    else:
        yield Finding("v2r_msgs", "ok", "built")
    middleware = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp (default)")
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    if not domain.isdigit() or int(domain) > 101:
        yield Finding("DDS domain", "problem", f"ROS_DOMAIN_ID={domain}", "use 0 to 101")
    else:
        yield Finding("middleware", "ok", f"{middleware}, domain {domain}")


def _profile() -> Finding:
    subject = "shared memory profile"
    if "fastrtps" not in os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        return Finding(subject, "note", "not Fast DDS", "see that your middleware carries 1 MB messages at camera rate")
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        if name := os.environ.get(variable):
            file = Path(name)
            if not file.is_file():
                return Finding(
                    subject, "problem", f"{variable}={name} does not exist", "point it at config/fastdds.xml"
                )
            if "segment_size" in file.read_text(errors="replace"):
                return Finding(subject, "ok", f"{name}")
            remedy = "use config/fastdds.xml, or add a shared memory transport with a segment of 32 MB to yours"
            return Finding(subject, "note", f"{name} sets no segment size", remedy)
    remedy = (
        "the launch files set it; for other camera processes: export FASTRTPS_DEFAULT_PROFILES_FILE=config/fastdds.xml"
    )
    return Finding(subject, "note", "default: most best-effort camera frames between two processes are lost", remedy)


def _shared_memory() -> Finding:
    if not SHM.is_dir():
        return Finding("/dev/shm", "problem", "not there", "mount a tmpfs on /dev/shm (docker: --shm-size=256m)")
    usage = shutil.disk_usage(SHM)
    stale = len(list(SHM.glob("fastrtps_*")))
    found = f"{usage.free >> 20} MB free of {usage.total >> 20} MB, {stale} Fast DDS files"
    if usage.free < SHM_NEEDED:
        remedy = (
            "fastdds shm clean (processes that were killed leave segments), or enlarge it (docker: --shm-size=256m)"
        )
        return Finding("/dev/shm", "problem", found, remedy)
    return Finding("/dev/shm", "ok", found)


def _providers() -> Iterator[Finding]:
    import onnxruntime  # noqa: PLC0415 (the rest of the report is useful without it)

    available = onnxruntime.get_available_providers()
    names = [name for name, full in PROVIDERS.items() if full in available]
    yield Finding("onnxruntime", "ok", f"{onnxruntime.__version__} with {', '.join(names)}")
    gpu, tensorrt = gpu_name(), tensorrt_version()
    if not gpu:
        yield Finding("GPU", "note", "no NVIDIA GPU seen", "the encoder runs on the CPU; on a Jetson check nvidia-smi")
    elif "cuda" not in names:
        yield Finding("GPU", "problem", gpu, "pip install onnxruntime-gpu instead of onnxruntime")
    else:
        yield Finding("GPU", "ok", gpu)
    if gpu and not tensorrt:
        yield Finding("TensorRT", "note", "libnvinfer not found", "install tensorrt; CUDA is used until then")
    elif tensorrt:
        yield Finding("TensorRT", "ok", tensorrt)


def _model() -> Iterator[Finding]:
    try:
        bundle = load_bundle(DEFAULT_BUNDLE)
        session = Session(bundle, providers=["cpu"])
        yield Finding("shipped model", "ok", f"self-check passed, {session.warm_up():.1f} ms a frame on one CPU thread")
        if gpu_name() and PROVIDERS["cuda"] in providers_here(["auto"]):
            session = Session(bundle, providers=["cuda"])
            found = f"{session.warm_up():.2f} ms a frame in {session.precision} by {session.provider}"
            if session.provider == PROVIDERS["cuda"]:
                yield Finding("shipped model on the GPU", "ok", f"self-check passed, {found}")
            else:
                remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]', or CUDA and cuDNN of the version it was built for"
                yield Finding("shipped model on the GPU", "problem", f"CUDA's libraries do not load: {found}", remedy)
    except (ValueError, RuntimeError, OSError) as error:
        yield Finding("shipped model", "problem", str(error), "install the package again")
