"""The one table of parameters of each node. A test holds config/*.yaml and the README to it."""

from __future__ import annotations

from v2r_ros.parameter_specs import Spec, check_change, declare, markdown

__all__ = [
    "GAZEBO_RESET",
    "POLICY_NODE",
    "RECORDER",
    "REWARD_NODE",
    "SIM_NODE",
    "VIDEO_NODE",
    "Spec",
    "check_change",
    "declare",
    "markdown",
]

REWARD_NODE = (
    Spec("model", "", "folder of the bundle; empty: the shipped EfficientNet-Lite0"),
    Spec(
        "reward",
        "",
        "which reward to compute; empty: the bundle's; time, viper and diffusion only if it has learned them",
        choices=("", "vip", "uvd", "pixel", "time", "viper", "diffusion"),
    ),
    Spec("precision", "auto", "graph to run; auto: fp16 on a GPU, fp32 on a CPU", choices=("auto", "fp32", "fp16")),
    Spec("providers", ("auto",), "ONNX Runtime providers in order of preference, out of tensorrt, cuda, cpu; or auto"),
    Spec("threads", 1, "CPU threads of the encoder", low=1, high=64),
    Spec("image_transport", "raw", "subscribe to image, or to image/compressed", choices=("raw", "compressed")),
    Spec(
        "cameras",
        ("",),
        "names of several cameras, whose topics are NAME/image; the first one sets the pace",
        when="start",
    ),
    Spec("camera_rule", "mean", "how the distances of several cameras become one", choices=("mean", "min")),
    Spec(
        "max_camera_skew",
        0.1,
        "seconds that the stamps of several cameras may lie apart",
        when="start",
        low=0.001,
        high=60.0,
    ),
    Spec(
        "image_qos",
        "sensor_data",
        "reliability of the image subscription; sensor_data is best effort and matches every camera",
        choices=("sensor_data", "reliable"),
    ),
    Spec(
        "goal",
        "",
        "goal at configuration: image, video or saved goal, relative to goals_dir or package://; {camera} is replaced "
        "by each camera's name; empty: the bundle's",
    ),
    Spec("goals_dir", "", "folder below which goal files must lie; empty: the shipped clips", when="start"),
    Spec("goal_services", True, "offer ~/set_goal and ~/goal_image", when="start"),
    Spec("reward_scale", 1.0, "factor on the raw reward", when="always", low=1.0e-6, high=1.0e6),
    Spec(
        "reward_clip", 0.0, "bound on the scaled reward's absolute value; 0: none", when="always", low=0.0, high=1.0e6
    ),
    Spec(
        "image_timeout",
        1.0,
        "seconds without an image after which the status is stale",
        when="start",
        low=0.05,
        high=3600.0,
    ),
    Spec(
        "max_stamp_future",
        1.0,
        "seconds that a stamp may lie ahead of the node's clock",
        when="always",
        low=0.0,
        high=3600.0,
    ),
    Spec(
        "max_latency",
        0.25,
        "seconds of latency (p95) above which diagnostics warn",
        when="always",
        low=0.001,
        high=60.0,
    ),
    Spec("max_pixels", 16777216, "largest image that is accepted, in pixels", when="start", low=1024, high=268435456),
    Spec("max_compressed_bytes", 8388608, "largest compressed image, in bytes", when="start", low=1024, high=268435456),
    Spec("max_goal_frames", 3000, "longest demonstration video, in frames", when="always", low=1, high=100000),
    Spec("diagnostics_period", 1.0, "seconds between two messages on /diagnostics", when="start", low=0.1, high=60.0),
)

VIDEO_NODE = (
    Spec("video", "", "file, folder of images or bag to play; empty: the shipped demonstration", when="start"),
    Spec("rate", 0.0, "frames per second; 0: the video's own", when="start", low=0.0, high=1000.0),
    Spec("loop", False, "start again at the end; otherwise the node ends", when="start"),
    Spec(
        "wait_for_subscribers",
        0,
        "number of subscribers to wait for before the first frame",
        when="start",
        low=0,
        high=100,
    ),
    Spec("frame_id", "camera_optical_frame", "frame_id of every header", when="start"),
    Spec("compressed", False, "publish JPEG on image/compressed instead of raw images", when="start"),
)

POLICY_NODE = (
    Spec("model", "", "folder of the policy; has to be given"),
    Spec("providers", ("auto",), "ONNX Runtime providers in order of preference, out of cuda, cpu; or auto"),
    Spec("threads", 1, "CPU threads of the actor and its encoder", low=1, high=64),
    Spec("image_transport", "raw", "subscribe to image, or to image/compressed", choices=("raw", "compressed")),
    Spec(
        "image_qos",
        "sensor_data",
        "reliability of the image subscription; sensor_data is best effort and matches every camera",
        choices=("sensor_data", "reliable"),
    ),
    Spec("max_pixels", 16777216, "largest image that is accepted, in pixels", when="start", low=1024, high=268435456),
    Spec("max_compressed_bytes", 8388608, "largest compressed image, in bytes", when="start", low=1024, high=268435456),
    Spec(
        "action_type",
        "float64_multi_array",
        "what ~/action is",
        choices=("float64_multi_array", "twist_stamped", "joint_trajectory"),
    ),
    Spec("action_scale", (1.0,), "factors on the policy's numbers, which are in [-1, 1]; one for all, or one each"),
    Spec("action_offset", (0.0,), "added after that; one for all, or one each"),
    Spec("action_low", (-1.0,), "lowest command that is ever published, in its own unit; one for all, or one each"),
    Spec("action_high", (1.0,), "highest command that is ever published; one for all, or one each"),
    Spec(
        "twist_axes",
        ("linear.x", "angular.z"),
        "of twist_stamped: axis of each number, out of linear.x, .y, .z, angular.x, .y, .z",
    ),
    Spec("joint_names", ("",), "of joint_trajectory: joint of each number"),
    Spec(
        "joint_command",
        "positions",
        "of joint_trajectory: what the numbers are",
        choices=("positions", "velocities"),
    ),
    Spec("frame_id", "base_link", "frame_id of twist_stamped", when="start"),
    Spec(
        "when_unsafe",
        "zero",
        "command while it is not safe to move; zero stops velocities, and has to lie within the limits; hold repeats "
        "the last position",
        choices=("zero", "hold"),
    ),
    Spec(
        "use_reward",
        True,
        "true: the robot moves from an episode's first reward on; false: without any, and only camera, actor and "
        "~/enable stop it",
    ),
    Spec(
        "reward_timeout",
        0.5,
        "seconds without a reward, by the wall clock, or by which rewards lie behind images, by their stamps, after "
        "which the robot stops",
        low=0.02,
        high=3600.0,
    ),
    Spec(
        "reward_deadline",
        2.0,
        "deadline that is requested of the reward's publisher, in seconds; at least twice reward_node's image_timeout",
        low=0.02,
        high=7200.0,
    ),
    Spec(
        "warm_up_time",
        2.0,
        "seconds on end for which rewards of status WARMING_UP do not stop the robot; a window fills by moving",
        low=0.0,
        high=3600.0,
    ),
    Spec(
        "image_timeout",
        0.5,
        "seconds without an image or without an action, by the wall clock, after which the robot stops",
        low=0.02,
        high=3600.0,
    ),
    Spec("fault_timeout", 5.0, "seconds of standing still on end that end the episode", low=0.1, high=3600.0),
    Spec(
        "success_progress",
        0.95,
        "progress that, held for success_frames rewards, ends the episode; 0: never",
        when="always",
        low=0.0,
        high=1.0,
    ),
    Spec("success_frames", 5, "rewards on end above success_progress", when="always", low=1, high=100000),
    Spec(
        "time_limit",
        30.0,
        "longest episode, in seconds of the images' stamps; 0: none. Stamps that go back end it as a fault",
        when="always",
        low=0.0,
        high=86400.0,
    ),
    Spec(
        "start_enabled",
        False,
        "true: the robot moves as soon as the node is active, without ~/enable; for simulations",
    ),
    Spec("auto_restart", False, "begin the next episode after the end of one; false: wait for ~/enable", when="always"),
    Spec("reset_environment", "", "Trigger service that is called first before an episode; empty: none"),
    Spec("reset_reward", "reward_node/reset", "Trigger service that is called next; empty: none"),
    Spec("reset_timeout", 10.0, "seconds for each of the two; a refused call is repeated", low=0.1, high=3600.0),
    Spec(
        "noise_std",
        0.0,
        "deviation of the normal noise on the policy's numbers, for collecting data",
        when="always",
        low=0.0,
        high=10.0,
    ),
    Spec("record_dir", "", "folder for the transitions, as `v2r rl train --offline` reads them; empty: none"),
    Spec("record_gb", 8.0, "largest size of that folder; the oldest episodes give way", low=0.001, high=100000.0),
    Spec(
        "max_latency",
        0.25,
        "seconds from image stamp to action (p95) above which diagnostics warn",
        when="always",
        low=0.001,
        high=60.0,
    ),
    Spec("diagnostics_period", 1.0, "seconds between two messages on /diagnostics", when="start", low=0.1, high=60.0),
)

SIM_NODE = (
    Spec(
        "env",
        "metaworld:door-close-v3",
        "metaworld:TASK, dm_control:DOMAIN-TASK, gym:ID or gym:MODULE:ID",
        when="start",
    ),
    Spec("size", 128, "side of the images in pixels", when="start", low=16, high=2048),
    Spec("action_repeat", 1, "steps of the simulator for each action", when="start", low=1, high=100),
    Spec("horizon", 0, "steps of the simulator in an episode; 0: its own limit", when="start", low=0, high=10000000),
    Spec("seed", 0, "seed of the first episode; every reset counts it up by one", when="start", low=0, high=2000000000),
    Spec(
        "speed",
        1.0,
        "factor on real time; 0: as fast as the actions come, only with lockstep",
        when="start",
        low=0.0,
        high=1000.0,
    ),
    Spec(
        "lockstep",
        False,
        "publish the next image only after the action for the last one has come, and its reward where rewards come",
        when="start",
    ),
    Spec(
        "action_timeout",
        0.5,
        "seconds, by the wall clock, after which an action counts no more (zero takes its place), and after which "
        "lockstep goes on without a reward",
        when="start",
        low=0.01,
        high=3600.0,
    ),
    Spec(
        "simulated_time",
        True,
        "stamps are simulated time, which goes out on /clock; false: stamps of the node's clock, no /clock",
        when="start",
    ),
    Spec("frame_id", "camera_optical_frame", "frame_id of every header", when="start"),
)

RECORDER = (
    Spec("bag", "bag", "folder of the bag; must not exist", when="start"),
    Spec(
        "topics", ("image", "reward_node/reward", "reward_node/info", "/diagnostics"), "topics to record", when="start"
    ),
)

GAZEBO_RESET = (
    Spec(
        "seed",
        0,
        "seed of the first episode's place of the block; every reset counts it up by one",
        when="start",
        low=0,
        high=2000000000,
    ),
)
