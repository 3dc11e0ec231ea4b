"""Reading video, and bringing frames to an encoder's size. PyAV and rosbags are loaded when a source needs them."""

from v2r_core.video.resize import Preprocess, resize_frame
from v2r_core.video.source import open_video
from v2r_core.video.video import Video, VideoError

__all__ = ["Preprocess", "Video", "VideoError", "open_video", "resize_frame"]
