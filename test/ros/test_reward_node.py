"""The node as a process: right answers, refused transitions, bad input, and a camera that comes and goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_harness import NodeUnderTest, make_graph
from PIL import Image as PillowImage
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from std_srvs.srv import Trigger
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_msgs.msg import Reward, RewardInfo
from v2r_msgs.srv import SetGoal
from v2r_ros.graph import ACTIVATE, CLEANUP, DEACTIVATE, GraphError
from v2r_ros.images import rgb_to_compressed, rgb_to_message

FRAMES = moving_square()
TIMEOUT = 0.5


@pytest.fixture
def node(tmp_path: Path, clip: Path) -> Iterator[NodeUnderTest]:
    """An active node with the tiny bundle and the square video as its goal."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    PillowImage.fromarray(FRAMES[-1]).save(tmp_path / "goal.png")
    with make_graph(tmp_path) as graph:
        parameters = {"goals_dir": str(tmp_path), "goal": clip.name, "image_timeout": TIMEOUT, "providers": ["cpu"]}
        under_test = NodeUnderTest(graph, model=str(bundle), diagnostics_period=0.2, **parameters)
        assert under_test.configure(), under_test.log()
        assert under_test.activate(), under_test.log()
        yield under_test
        assert graph.stop("reward_node") == {"reward_node": 0}


def set_goal(node: NodeUnderTest, **fields: object) -> SetGoal.Response:
    return node.graph.call(SetGoal, "/reward_node/set_goal", SetGoal.Request(**fields))


def test_every_frame_is_answered_with_its_own_header(node: NodeUnderTest) -> None:
    first = node.answer(FRAMES[0])
    assert first.status == Reward.STATUS_WARMING_UP
    assert first.header.frame_id == "camera"
    answers = [node.answer(frame) for frame in FRAMES[1:]]
    assert {a.status for a in answers} == {Reward.STATUS_OK}
    assert answers[-1].progress > 0.95
    assert 0 < answers[-1].latency.nanosec < 1_000_000_000
    assert answers[-1].latency.sec == 0
    assert answers[-1].inference_ms > 0
    assert answers[-1].goal_id == node.infos[-1].goal_id


def test_info_is_latched_and_complete(node: NodeUnderTest) -> None:
    node.wait(lambda: bool(node.infos))
    info = node.infos[-1]
    assert (info.model_name, info.provider, info.precision) == ("tiny", "CPUExecutionProvider", "fp32")
    assert len(info.model_sha256) == 64
    assert info.kind == RewardInfo.KIND_VALUE
    assert info.goal_id.startswith("square.mp4 ")
    assert math.isinf(info.reward_clip)
    assert info.uncertainty_threshold > 0


@pytest.mark.parametrize(
    "broken",
    [
        {"data": b""},
        {"width": 0},
        {"width": 4_000_000_000, "height": 4_000_000_000},
        {"step": 5},
        {"encoding": "yuv999"},
        {"encoding": ""},
    ],
    ids="-".join,
)
def test_a_bad_image_gets_a_status_and_the_node_goes_on(node: NodeUnderTest, broken: dict) -> None:
    answer = node.answer(FRAMES[0], **broken)
    assert answer.status == Reward.STATUS_BAD_IMAGE
    assert math.isnan(answer.reward) and math.isnan(answer.value) and math.isnan(answer.progress)
    assert node.answer(FRAMES[0]).status == Reward.STATUS_WARMING_UP


def test_odd_stamps(node: NodeUnderTest) -> None:
    now = time.time()
    assert node.answer(FRAMES[0], stamp=now + 100).status == Reward.STATUS_BAD_IMAGE
    assert node.answer(FRAMES[0], stamp=now).status == Reward.STATUS_WARMING_UP
    assert node.answer(FRAMES[1], stamp=now - 0.3).status == Reward.STATUS_BAD_IMAGE
    assert node.answer(FRAMES[1], stamp=now - 100).episode == 1
    zero = node.answer(FRAMES[2], stamp=0.0)
    assert zero.status in (Reward.STATUS_OK, Reward.STATUS_WARMING_UP)
    assert (zero.latency.sec, zero.latency.nanosec) == (0, 0)
    node.wait(lambda: "stamp 0" in node.log() and "future" in node.log())


def test_a_camera_that_stops_is_reported_and_may_come_back(node: NodeUnderTest) -> None:
    node.answer(FRAMES[0])
    node.answer(FRAMES[1])
    count = len(node.rewards)
    node.wait(lambda: len(node.rewards) >= count + 2, what="two stale messages")
    stale = node.rewards[-1]
    assert stale.status == Reward.STATUS_STALE_IMAGE
    assert math.isnan(stale.reward) and math.isnan(stale.progress)
    assert stale.header == node.rewards[count - 1].header
    node.wait(lambda: node.diagnostics[-1].status[0].level == DiagnosticStatus.ERROR)
    assert "no image" in node.diagnostics[-1].status[0].message
    back = node.answer(FRAMES[2])
    assert back.status == Reward.STATUS_WARMING_UP
    assert math.isfinite(back.value)
    assert node.answer(FRAMES[3]).status == Reward.STATUS_OK


def test_goal_services(node: NodeUnderTest, tmp_path: Path) -> None:
    Response = SetGoal.Response
    refused = {
        Response.RESULT_PATH_NOT_ALLOWED: {"source": SetGoal.Request.FROM_FILE, "uri": "../../etc/passwd"},
        Response.RESULT_NOT_FOUND: {"source": SetGoal.Request.FROM_FILE, "uri": "missing.png"},
        Response.RESULT_INVALID_IMAGE: {"source": SetGoal.Request.FROM_IMAGE},
        Response.RESULT_INVALID_REQUEST: {"source": 77},
    }
    for result, fields in refused.items():
        response = set_goal(node, **fields)
        assert response.result == result, response
        assert response.message
        assert response.goal_id.startswith("square.mp4 ")
    assert set_goal(node, source=SetGoal.Request.FROM_VIDEO_SUBGOALS, uri="square.mp4").result == (
        Response.RESULT_INVALID_REQUEST
    )
    assert set_goal(node, source=SetGoal.Request.FROM_FILE, uri="goal.png", camera="left").result == (
        Response.RESULT_INVALID_REQUEST
    )
    assert set_goal(node, source=SetGoal.Request.FROM_CURRENT_FRAME).result == Response.RESULT_NOT_FOUND
    assert node.answer(FRAMES[0]).goal_id.startswith("square.mp4 ")

    response = set_goal(node, source=SetGoal.Request.FROM_CURRENT_FRAME, reset_episode=True)
    assert response.result == Response.RESULT_SUCCESS, response
    current = response.goal_id
    assert current.startswith("current_frame ")
    assert response.initial_distance == pytest.approx(0.0, abs=1e-5)
    answer = node.answer(FRAMES[0])
    assert (answer.goal_id, answer.episode) == (current, 1)
    assert answer.value == pytest.approx(0.0, abs=1e-5)
    assert math.isnan(answer.progress)

    response = set_goal(node, source=SetGoal.Request.FROM_FILE, uri="goal.png")
    assert response.result == Response.RESULT_SUCCESS
    answer = node.answer(FRAMES[0])
    assert (answer.goal_id, answer.episode, answer.status) == (response.goal_id, 1, Reward.STATUS_WARMING_UP)
    assert response.goal_id.startswith("goal.png ")
    assert response.initial_distance > 0.1
    response = set_goal(node, source=SetGoal.Request.FROM_IMAGE, image=rgb_to_compressed(FRAMES[0]))
    assert response.result == Response.RESULT_SUCCESS
    node.wait(lambda: node.infos[-1].goal_source == "image")


def test_goal_image_topic(node: NodeUnderTest) -> None:
    from sensor_msgs.msg import Image

    from v2r_ros import qos

    publisher = node.graph.node.create_publisher(Image, "/reward_node/goal_image", qos.latched())
    publisher.publish(rgb_to_message(FRAMES[0]))
    node.wait(lambda: bool(node.infos) and node.infos[-1].goal_id.startswith("goal_image "))
    assert node.answer(FRAMES[0]).goal_id == node.infos[-1].goal_id


def test_reset_begins_an_episode(node: NodeUnderTest) -> None:
    node.answer(FRAMES[0])
    response = node.graph.call(Trigger, "/reward_node/reset", Trigger.Request())
    assert response.success
    answer = node.answer(FRAMES[1])
    assert answer.episode == 1
    assert answer.status == Reward.STATUS_WARMING_UP


def test_parameters_at_run_time(node: NodeUnderTest) -> None:
    def change(name: str, **value: object) -> bool:
        parameter = Parameter(name=name, value=ParameterValue(**value))
        request = SetParameters.Request(parameters=[parameter])
        return node.graph.call(SetParameters, "/reward_node/set_parameters", request).results[0].successful

    double, text = ParameterType.PARAMETER_DOUBLE, ParameterType.PARAMETER_STRING
    assert not change("model", type=text, string_value="elsewhere")
    assert not change("reward_scale", type=double, double_value=-1.0)
    assert change("reward_scale", type=double, double_value=10.0)
    node.answer(FRAMES[0])
    answer = node.answer(FRAMES[1])
    assert answer.reward == pytest.approx(10.0 * answer.raw_reward, rel=1e-5)
    node.wait(lambda: node.infos[-1].reward_scale == 10.0, what="the new scale in the description")


def test_deactivate_cleanup_and_again(node: NodeUnderTest) -> None:
    node.answer(FRAMES[0])
    assert node.graph.transition("/reward_node", DEACTIVATE)
    count = len(node.rewards)
    node.send(FRAMES[1])
    seen = len(node.diagnostics)
    node.wait(lambda: len(node.diagnostics) > seen + 2)
    assert len(node.rewards) == count
    assert node.graph.transition("/reward_node", CLEANUP)
    assert set_goal(node, source=SetGoal.Request.FROM_CURRENT_FRAME).result == SetGoal.Response.RESULT_WRONG_STATE
    assert node.configure()
    assert node.activate()
    answer = node.answer(FRAMES[0])
    assert answer.status == Reward.STATUS_WARMING_UP
    assert answer.frame_count == 1


def test_diagnostics_tell_rate_model_and_goal(node: NodeUnderTest) -> None:
    for frame in FRAMES[:5]:
        node.answer(frame)
    seen = len(node.diagnostics)
    node.wait(lambda: len(node.diagnostics) > seen)
    (status,) = node.diagnostics[-1].status
    values = {pair.key: pair.value for pair in status.values}
    assert values["state"] == "active"
    assert values["provider"] == "CPUExecutionProvider"
    assert values["goal"].startswith("square.mp4 ")
    assert int(values["frames answered"]) >= 5
    assert float(values["latency p95 [s]"]) < 1.0


def test_overlay_is_there_when_somebody_looks(node: NodeUnderTest) -> None:
    from sensor_msgs.msg import Image

    pictures: list[Image] = []
    node.graph.node.create_subscription(Image, "/reward_node/overlay", pictures.append, 1)
    deadline = time.monotonic() + 10
    while not pictures and time.monotonic() < deadline:
        node.answer(FRAMES[3])
    assert pictures[-1].height > pictures[-1].width * FRAMES[0].shape[0] / FRAMES[0].shape[1]
    assert np.frombuffer(pictures[-1].data, np.uint8).max() > 200


def corner(node: NodeUnderTest, pictures: list, frame: np.ndarray) -> np.ndarray:
    """The upper right corner of the overlay of that frame, where the picture of the subgoal is: (60, 80, 3)."""
    for _ in range(20):
        header = node.answer(frame).header
        try:
            node.wait(lambda header=header: any(each.header == header for each in pictures), 1.0)
            break
        except GraphError:
            continue
    (picture,) = [each for each in pictures if each.header == header]
    whole = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)
    return whole[20:80, -100:-20].astype(int)


def test_the_overlay_shows_what_is_pursued(node: NodeUnderTest) -> None:
    """The last frame of the demonstration, then the image that becomes the goal, then the frame that does."""
    from sensor_msgs.msg import Image

    pictures: list[Image] = []
    node.graph.node.create_subscription(Image, "/reward_node/overlay", pictures.append, 100)
    white, black, grey = (np.full_like(FRAMES[0], level) for level in (255, 0, 128))

    def pictured(frame: np.ndarray) -> np.ndarray:
        wide = PillowImage.fromarray(frame).resize((106, 80))
        return np.asarray(wide)[10:70, 16:96].astype(int)

    # The video is compressed, and the goal's frame around the picture lies outside what is compared.
    assert np.abs(corner(node, pictures, black) - pictured(FRAMES[-1])).mean() < 6
    done = set_goal(node, source=SetGoal.Request.FROM_IMAGE, image=rgb_to_compressed(white))
    assert done.result == SetGoal.Response.RESULT_SUCCESS
    assert (corner(node, pictures, black) > 250).all()
    node.answer(grey)
    assert set_goal(node, source=SetGoal.Request.FROM_CURRENT_FRAME).result == SetGoal.Response.RESULT_SUCCESS
    assert (np.abs(corner(node, pictures, black) - 128) < 3).all()


def refusal(tmp_path: Path, **parameters: object) -> str:
    """Configures a node that must refuse, and returns its log; it must be alive, and end well."""
    with make_graph(tmp_path) as graph:
        node = NodeUnderTest(graph, providers=["cpu"], **parameters)
        assert not node.configure()
        assert not node.activate()
        assert node.process.poll() is None
        assert graph.stop("reward_node") == {"reward_node": 0}
        return node.log()


def test_a_flipped_byte_in_the_bundle_refuses_configuration(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    graph = bundle / "encoder.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    log = refusal(tmp_path, model=str(bundle))
    assert "encoder.fp32.onnx" in log
    assert "sha256" in log


def test_a_bundle_with_a_missing_file_refuses_configuration(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    (bundle / "encoder.fp32.onnx").unlink()
    assert "missing" in refusal(tmp_path, model=str(bundle))


def test_a_model_that_computes_something_else_refuses_configuration(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", factor=1.5)
    assert "self-check failed" in refusal(tmp_path, model=str(bundle))


def test_a_goal_outside_the_folder_refuses_configuration(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "goals").mkdir()
    log = refusal(tmp_path, model=str(bundle), goals_dir=str(tmp_path / "goals"), goal="../bundle/README.md")
    assert "outside" in log


@pytest.mark.parametrize(("name", "value"), [("image_timeout", -1.0), ("threads", 1000), ("reward", "magic")])
def test_a_parameter_out_of_range_ends_the_start_with_a_reason(tmp_path: Path, name: str, value: object) -> None:
    with make_graph(tmp_path) as graph:
        process = graph.start("v2r_ros.reward_node", {name: value})
        assert process.wait(timeout=20) == 1
        assert name in graph.log("reward_node")
        assert "Traceback" not in graph.log("reward_node")


def test_compressed_images(tmp_path: Path, clip: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with make_graph(tmp_path) as graph:
        node = NodeUnderTest(
            graph, model=str(bundle), goals_dir=str(tmp_path), goal=clip.name, image_transport="compressed"
        )
        assert node.configure() and node.activate(), node.log()

        def answered(data: object, status: int) -> None:
            message = rgb_to_compressed(FRAMES[0])
            message.data = data(message.data)
            message.header.stamp = graph.node.get_clock().now().to_msg()
            node.compressed_camera.publish(message)
            node.wait(lambda: bool(node.rewards) and node.rewards[-1].header.stamp == message.header.stamp)
            assert node.rewards[-1].status == status

        answered(lambda data: data, Reward.STATUS_WARMING_UP)
        answered(lambda data: data[: len(data) // 2], Reward.STATUS_BAD_IMAGE)
        answered(lambda data: data, Reward.STATUS_OK)


def test_no_torch_in_the_process(node: NodeUnderTest) -> None:
    node.answer(FRAMES[0])
    mapped = Path(f"/proc/{node.process.pid}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped


def test_two_cameras(tmp_path: Path, clip: Path) -> None:
    from sensor_msgs.msg import Image

    bundle = write_tiny_bundle(tmp_path / "bundle")
    for camera in ("left", "right"):
        (tmp_path / f"demo_{camera}.mp4").write_bytes(clip.read_bytes())
    with make_graph(tmp_path) as graph:
        options = {"goals_dir": str(tmp_path), "goal": "demo_{camera}.mp4", "cameras": ["left", "right"]}
        node = NodeUnderTest(graph, model=str(bundle), camera_rule="min", **options)
        cameras = [graph.node.create_publisher(Image, f"/{name}/image", 10) for name in ("right", "left")]
        assert node.configure(), node.log()
        assert graph.transition("/reward_node", ACTIVATE)
        node.wait(lambda: all(camera.get_subscription_count() for camera in cameras))

        def moment(frame: np.ndarray) -> Reward:
            message = rgb_to_message(frame)
            message.header.stamp = graph.node.get_clock().now().to_msg()
            seen = len(node.rewards)
            cameras[0].publish(message)
            time.sleep(0.05)  # two topics keep no order between them
            cameras[1].publish(message)
            node.wait(lambda: any(r.header == message.header for r in node.rewards[seen:]))
            return node.rewards[-1]

        answers = [moment(frame) for frame in FRAMES[::4]]
        assert {a.status for a in answers[1:]} == {Reward.STATUS_OK}
        assert answers[-1].component_names == ["left", "right"]
        assert node.infos[-1].component_names == ["left", "right"]
        assert set_goal(node, source=SetGoal.Request.FROM_CURRENT_FRAME).result == SetGoal.Response.RESULT_SUCCESS
        one_image = set_goal(node, source=SetGoal.Request.FROM_IMAGE, image=rgb_to_compressed(FRAMES[0]))
        assert one_image.result == SetGoal.Response.RESULT_INVALID_REQUEST
        one_file = set_goal(node, source=SetGoal.Request.FROM_FILE, uri="demo_left.mp4")
        assert "{camera}" in one_file.message
