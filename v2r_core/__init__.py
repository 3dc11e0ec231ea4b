"""Video2Reward without ROS: read video, learn, score, export."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
CLIPS = ASSETS / "clips"
DEFAULT_BUNDLE = ASSETS / "bundles" / "efficientnet_lite0"
DEMO_POLICY = ASSETS / "policies" / "door_close"
DEMO_GOAL = ASSETS / "policies" / "door_close.safetensors"
