"""What GPU and TensorRT there are, found without loading either."""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import subprocess


def gpu_name() -> str:
    """Name and compute capability of the first NVIDIA GPU, e.g. "Orin sm87"; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode or not done.stdout.strip():
        return ""
    name, _, capability = done.stdout.splitlines()[0].rpartition(",")
    return f"{name.strip()} sm{capability.strip().replace('.', '')}"


def tensorrt_version() -> str:
    """Version number of libnvinfer, e.g. "101300"; empty without it."""
    library = ctypes.util.find_library("nvinfer")
    if library is None:
        return ""
    try:
        return str(ctypes.CDLL(library).getInferLibVersion())
    except (OSError, AttributeError):
        return ""
