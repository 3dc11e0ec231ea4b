"""The goal thread: what waits is bounded, what comes too late sets nothing, and it ends when it is to."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState
from node_harness import NodeUnderTest, make_graph
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from synthetic_video import moving_square
from tiny_bundle import write_tiny_bundle

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer
from v2r_core.video.resize import Frame
from v2r_core.video.writing import write_video
from v2r_msgs.srv import SetGoal
from v2r_ros import parameters, qos
from v2r_ros.goal_server import GoalServer
from v2r_ros.graph import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE
from v2r_ros.images import message_to_rgb, rgb_to_compressed, rgb_to_message
from v2r_ros.scoring import Images, MessageScorer

FRAMES = moving_square()
SECOND = 1_000_000_000
Request, Response = SetGoal.Request, SetGoal.Response


class Served:
    """A goal server in this process, whose decoding waits until it may go on."""

    def __init__(self, node: LifecycleNode, bundle: Path, cameras: int) -> None:
        self.may_decode = threading.Event()
        self.decoding = threading.Event()
        self.decoded: list[Image] = []
        self.changes: list[str] = []
        self.newest: Images = (None,) * cameras
        self.age = 0.0
        self._bundle, self._cameras = load_bundle(bundle), cameras
        arguments = (node, Path(), self._decode, lambda: (self.newest, self.age), lambda: self.changes.append(""))
        self.server = GoalServer(*arguments)

    def _decode(self, message: Image) -> Frame:
        self.decoding.set()
        assert self.may_decode.wait(10)
        self.decoded.append(message)
        return message_to_rgb(message, 1 << 20)

    def holder(self) -> MessageScorer:
        names = ["left", "right"] if self._cameras == 2 else [""]
        scorer = Scorer(self._bundle, providers=["cpu"], cameras=self._cameras)
        return MessageScorer(scorer, self._decode, cameras=names, max_skew=0.1)

    def current(self) -> Response:
        return self.server._answer(Request(source=Request.FROM_CURRENT_FRAME), Response())


def participants() -> int:
    """How many of them this process has: each has a thread of that name."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("dds.ev") for name in names)


@pytest.fixture
def serve(tiny_bundle: Path) -> Iterator[Callable[[int], Served]]:
    before = participants()
    context = rclpy.Context()
    rclpy.init(context=context)
    made: list[tuple[Served, LifecycleNode]] = []

    def start(cameras: int = 1) -> Served:
        names = ["left", "right"] if cameras == 2 else [""]
        override = [rclpy.Parameter("cameras", value=names)]
        node = LifecycleNode("goal_server", context=context, parameter_overrides=override)
        parameters.declare(node, parameters.REWARD_NODE)
        made.append((Served(node, tiny_bundle, cameras), node))
        return made[-1][0]

    yield start
    while made:
        served, node = made.pop()
        served.may_decode.set()
        served.server.close()
        node.destroy_node()
        del served, node
    # A lifecycle node holds itself, and its participant would go at some later moment, in the middle of another test.
    # Fast DDS can lock up where one goes while another one of the same process works.
    gc.collect()
    rclpy.shutdown(context=context)
    assert participants() == before


def stamped(frame: np.ndarray, seconds: float) -> Image:
    message = rgb_to_message(frame)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(int(seconds * SECOND), SECOND)
    return message


def test_of_goal_images_only_the_newest_one_waits(serve: Callable[..., Served]) -> None:
    served = serve()
    holder = served.holder()
    served.server.begin(holder)
    served.server._on_goal_image(stamped(FRAMES[0], 0))
    assert served.decoding.wait(5)
    for number in range(1, 40):
        served.server._on_goal_image(stamped(FRAMES[number], number))
    served.may_decode.set()
    deadline = time.monotonic() + 5
    while len(served.changes) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    served.server._on_goal_image(stamped(FRAMES[7], 7))
    while len(served.changes) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [message.header.stamp.sec for message in served.decoded] == [0, 39, 7]


@pytest.mark.parametrize("again", [False, True], ids=["cleaned up", "configured again"])
def test_a_goal_that_is_ready_after_a_cleanup_sets_nothing(serve: Callable[..., Served], again: bool) -> None:
    served = serve()
    old, new = served.holder(), served.holder()
    served.server.begin(old)
    served.newest = (stamped(FRAMES[0], 1),)
    answers: list[Response] = []
    thread = threading.Thread(target=lambda: answers.append(served.current()))
    thread.start()
    assert served.decoding.wait(5)
    served.server.end()
    if again:
        served.server.begin(new)
    served.may_decode.set()
    thread.join(5)
    (answer,) = answers
    assert answer.result == Response.RESULT_WRONG_STATE
    assert "cleaned up" in answer.message
    assert (answer.goal_id, served.changes) == ("", [])
    assert old.scorer.goal is None and new.scorer.goal is None


def test_a_cleanup_does_not_wait_for_an_inference_that_hangs(serve: Callable[..., Served]) -> None:
    served = serve()
    holder = served.holder()
    served.server.begin(holder)
    served.newest = (stamped(FRAMES[0], 1),)
    served.may_decode.set()
    setting = threading.Thread(target=served.current)
    ending = threading.Thread(target=served.server.end)
    with holder._lock:  # what the inference would hold
        setting.start()
        deadline = time.monotonic() + 5
        while not served.server._swap.locked() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert served.server._swap.locked()
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
    setting.join(5)


def test_an_old_frame_is_not_the_current_one(serve: Callable[..., Served]) -> None:
    served = serve()
    served.may_decode.set()
    served.server.begin(served.holder())
    served.newest, served.age = (stamped(FRAMES[0], 1),), 3.2
    answer = served.current()
    assert answer.result == Response.RESULT_NOT_FOUND
    assert "3.2 s old" in answer.message and "image_timeout is 1 s" in answer.message
    served.age = 0.9
    assert served.current().result == Response.RESULT_SUCCESS


@pytest.mark.parametrize(("second", "word"), [(None, "sent nothing"), (5.0, "4.000 s apart")])
def test_frames_of_several_cameras_are_of_one_moment(
    serve: Callable[..., Served], second: float | None, word: str
) -> None:
    served = serve(2)
    served.may_decode.set()
    served.server.begin(served.holder())
    served.newest = (stamped(FRAMES[0], 1), None if second is None else stamped(FRAMES[0], second))
    answer = served.current()
    assert answer.result == Response.RESULT_NOT_FOUND
    assert "'right'" in answer.message and word in answer.message
    served.newest = (stamped(FRAMES[0], 1), stamped(FRAMES[0], 1.05))
    assert served.current().result == Response.RESULT_SUCCESS


def test_goals_have_ids_of_their_own(serve: Callable[..., Served]) -> None:
    served = serve()
    served.may_decode.set()
    served.server.begin(served.holder())
    ids = []
    for number in (0, 9, 0):
        served.newest = (stamped(FRAMES[number], number),)
        ids.append(served.current().goal_id)
    assert ids[0] == ids[2] != ids[1]
    assert all(each.startswith("current_frame ") for each in ids)


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[NodeUnderTest]:
    """A node that is not configured yet, without a goal."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with make_graph(tmp_path) as graph:
        yield NodeUnderTest(graph, model=str(bundle), providers=["cpu"], goals_dir=str(tmp_path))


def test_a_goal_image_that_was_sent_before_comes_into_force_when_the_node_is_configured(idle: NodeUnderTest) -> None:
    publisher = idle.graph.node.create_publisher(Image, "/reward_node/goal_image", qos.latched())
    publisher.publish(rgb_to_message(FRAMES[-1]))
    time.sleep(1.0)  # long enough for it to arrive, were anybody listening
    for _ in range(2):
        seen = len(idle.infos)
        assert idle.configure(), idle.log()
        idle.wait(lambda seen=seen: any(info.goal_source == "goal_image" for info in idle.infos[seen:]))
        assert idle.graph.transition("/reward_node", CLEANUP)
    assert "refused" not in idle.log()


def test_the_frame_from_before_a_pause_is_not_the_current_one(idle: NodeUnderTest) -> None:
    def current() -> Response:
        return idle.graph.call(SetGoal, "/reward_node/set_goal", Request(source=Request.FROM_CURRENT_FRAME))

    assert idle.configure() and idle.activate(), idle.log()
    idle.answer(FRAMES[0])
    assert current().result == Response.RESULT_SUCCESS
    for transitions in ((DEACTIVATE,), (CLEANUP, CONFIGURE), (ACTIVATE,)):
        assert all(idle.graph.transition("/reward_node", each) for each in transitions)
        answer = current()
        assert (answer.result, "activate" in answer.message) == (Response.RESULT_NOT_FOUND, True), transitions


def test_a_saved_goal_is_one_file_for_all_cameras(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    pair = Scorer(load_bundle(bundle), providers=["cpu"], cameras=2)
    pair.goal_from_video(list(zip(FRAMES, FRAMES[::-1], strict=True)), "pair").save(tmp_path / "pair.safetensors")
    with make_graph(tmp_path) as graph:
        options = {"cameras": ["left", "right"], "goals_dir": str(tmp_path), "goal": "pair.safetensors"}
        node = NodeUnderTest(graph, model=str(bundle), providers=["cpu"], **options)
        assert node.configure(), node.log()
        request = Request(source=Request.FROM_FILE, uri="pair.safetensors")
        assert graph.call(SetGoal, "/reward_node/set_goal", request).result == Response.RESULT_SUCCESS
        picture = Request(source=Request.FROM_IMAGE, image=rgb_to_compressed(FRAMES[0]))
        assert graph.call(SetGoal, "/reward_node/set_goal", picture).result == Response.RESULT_INVALID_REQUEST


@pytest.mark.parametrize(("way", "number"), [("service", signal.SIGINT), ("parameter", signal.SIGTERM)])
def test_a_signal_ends_the_node_in_the_middle_of_a_demonstration(tmp_path: Path, way: str, number: int) -> None:
    """The shipped encoder, so that the 3000 frames take many seconds."""
    write_video(tmp_path / "long.mp4", [np.roll(FRAMES[0], number, axis=1) for number in range(3000)], 30.0)
    options = {"goals_dir": str(tmp_path), "reward": "uvd", "providers": ["cpu"]}
    with make_graph(tmp_path) as graph:
        if way == "service":
            node = NodeUnderTest(graph, **options)
            assert node.configure(), node.log()
            client = graph._client(SetGoal, "/reward_node/set_goal", 10.0)
            future = client.call_async(Request(source=Request.FROM_VIDEO_SUBGOALS, uri="long.mp4"))
        else:
            node = NodeUnderTest(graph, goal="long.mp4", **options)
            graph._client(SetGoal, "/reward_node/set_goal", 10.0)
            request = ChangeState.Request()
            request.transition.id = CONFIGURE
            future = graph._client(ChangeState, "/reward_node/change_state", 10.0).call_async(request)
        begun = time.monotonic()
        node.wait(lambda: time.monotonic() - begun > 2.0)
        assert not future.done()
        told = time.monotonic()
        node.process.send_signal(number)
        assert node.process.wait(30) == 0, node.log()
        assert time.monotonic() - told < 10.0  # all frames would take half a minute
        assert "in force" not in node.log() and "Traceback" not in node.log()
