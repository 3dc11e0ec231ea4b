"""Several cameras of a bag make one reward, as in the live node, and each has a progress of its own if wanted."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import (
    COMPRESSED,
    IMAGE_TOPIC,
    RAW,
    SECOND,
    START,
    STEP,
    clutter,
    episode_end,
    images,
    mirrored,
    raw,
    read_bag,
    square_frames,
    write_bag,
)
from toy_rewards import write_learned_bundle

from v2r_core.deploy.bundle import load_bundle, write_manifest
from v2r_core.deploy.folder import describe_files
from v2r_core.deploy.runtime import ProviderError
from v2r_core.deploy.stream import Scorer, Status
from v2r_core.label.bag_task import BagTask
from v2r_core.label.bags import label_bags
from v2r_core.label.cameras import MOST_CAMERAS, Camera, name_cameras
from v2r_core.label.rosbag import LabelledBag, label_bag
from v2r_core.label.set_writer import read_manifest
from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.video.video import VideoError
from v2r_core.video.writing import write_video

WRIST = "/wrist/image"
BOTH = (f"{IMAGE_TOPIC}=front", WRIST)
LABELS = "/reward_node"
ADDED = (f"{LABELS}/reward", f"{LABELS}/info", f"{LABELS}/progress/front", f"{LABELS}/progress/wrist")
QUARTER = STEP // 4


def label(bag: Path, out: Path, bundle: Path, reward: str | None = None, **options) -> LabelledBag:
    return label_bag(BagTask(bag, out, **{"image_topics": BOTH, **options}), load_bundle(bundle), reward)


def two(frames: list[np.ndarray], start: int = START, kind: str = RAW) -> list:
    """The task from in front, and mirrored, a quarter of a frame earlier."""
    return images(frames, start) + images(mirrored(frames), start - QUARTER, kind, WRIST)


def demonstrations(folder: Path) -> str:
    write_video(folder / "front.mp4", square_frames(), 30.0)
    write_video(folder / "wrist.mp4", mirrored(square_frames()), 30.0)
    return str(folder / "{camera}.mp4")


# --- names ---


@pytest.mark.parametrize(
    ("topics", "names"),
    [
        (["/left/image", "/right/image"], ["left", "right"]),
        (["/arm/left/image_raw", "/top/image_rect_color"], ["arm/left", "top"]),
        (["/left/image/compressed", "/right/image_raw/compressed"], ["left", "right"]),
        (["/camera", "/wrist/picture"], ["camera", "wrist/picture"]),
        (["/cam/image", "/cam/image_rect"], ["cam/image", "cam/image_rect"]),
        (["/left/image=l", "/right/image"], ["l", "right"]),
    ],
)
def test_cameras_are_called_as_the_live_node_calls_them(topics: list[str], names: list[str]) -> None:
    assert [camera.name for camera in name_cameras(topics)] == names
    assert [camera.topic for camera in name_cameras(topics)] == [topic.partition("=")[0] for topic in topics]


def test_one_camera_has_no_name() -> None:
    assert name_cameras(()) == (Camera("", None),)
    assert name_cameras(["/left/image"]) == (Camera("", "/left/image"),)


@pytest.mark.parametrize(
    ("topics", "text"),
    [
        (["/a/image", "/b/image", "/a/image"], "/a/image twice"),
        (["/a/image=one", "/a/image=two"], "/a/image twice"),
        (["/a/image=one", "/b/image=one"], "two cameras are called one"),
        (["/a-b/image", "/b/image"], "'a-b' cannot be the name of a camera.*give it one as in /a-b/image=left"),
        (["/" + "a" * 65, "/b/image"], "64 characters"),
        ([f"/c{number}/image" for number in range(MOST_CAMERAS + 1)], "17 topics; 16 at most"),
    ],
)
def test_names_that_no_camera_can_have(topics: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        name_cameras(topics)


# --- the labelled bag ---


@pytest.mark.parametrize("kind", [RAW, COMPRESSED])
def test_the_same_bag_and_one_reward_behind_each_image_of_the_first_camera(tmp_path, tiny_bundle, kind) -> None:
    bag = write_bag(tmp_path / "run", two(square_frames(), kind=kind) + clutter())
    done = label(bag, tmp_path / "labelled", tiny_bundle, camera_progress=True, goal=demonstrations(tmp_path))
    before, after = read_bag(bag), read_bag(tmp_path / "labelled")
    assert after.without(*ADDED).rows == before.rows
    assert after.without(*ADDED).topics == before.topics
    assert (done.topics, done.counts.images, done.messages) == ((IMAGE_TOPIC, WRIST), 40, 160)
    assert done.counts.statuses == {Status.OK: 39, Status.WARMING_UP: 1}
    rows = [row for row in after.rows if row[1] not in (f"{LABELS}/info",)]
    places = [place for place, row in enumerate(rows) if row[1] == IMAGE_TOPIC]
    expected = [IMAGE_TOPIC, ADDED[0], *ADDED[2:]]
    for place in places:
        assert [row[1] for row in rows[place : place + 4]] == expected
        assert len({row[0] for row in rows[place : place + 4]}) == 1
    (info,) = after.messages(f"{LABELS}/info")
    assert info.component_names == ["front", "wrist"]
    rewards = after.messages(f"{LABELS}/reward")
    assert all(each.component_names == ["front", "wrist"] for each in rewards)
    # The mean rule: the value is the mean of what the cameras say.
    np.testing.assert_allclose(
        [each.component_values.mean() for each in rewards], [each.value for each in rewards], atol=1e-5
    )
    assert after.topics[ADDED[2]][0] == "std_msgs/msg/Float64"


def test_without_being_asked_for_there_is_no_progress_of_each_camera(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", two(square_frames()))
    label(bag, tmp_path / "labelled", tiny_bundle)
    assert set(read_bag(tmp_path / "labelled").topics) == {IMAGE_TOPIC, WRIST, *ADDED[:2]}


def test_the_progress_of_a_camera_is_that_of_a_reward_with_it_alone(tmp_path: Path, tiny_bundle: Path) -> None:
    """The wrist stands still from the middle on, and shows something else at the end."""
    frames = square_frames()
    wrist = mirrored(frames)[:20] + [mirrored(frames)[19]] * 15
    wrist += [np.random.default_rng(1).integers(0, 256, frames[0].shape, dtype=np.uint8)] * 5
    goal = demonstrations(tmp_path)
    bag = write_bag(tmp_path / "run", images(frames) + images(wrist, START - QUARTER, topic=WRIST))
    label(bag, tmp_path / "both", tiny_bundle, camera_progress=True, goal=goal)
    both = read_bag(tmp_path / "both")
    for name, topic in (("front", IMAGE_TOPIC), ("wrist", WRIST)):
        alone = tmp_path / name
        label(bag, alone, tiny_bundle, image_topics=(topic,), goal=goal.replace("{camera}", name))
        expected = [message.progress for message in read_bag(alone).messages(f"{LABELS}/reward")]
        found = [message.data for message in both.messages(f"{LABELS}/progress/{name}")]
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    assert found[30] == pytest.approx(0.5, abs=0.1)
    assert np.isnan(found[-5:]).all()
    assert [message.data for message in both.messages(f"{LABELS}/progress/front")][-1] > 0.95


def test_stages_are_pursued_together(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", [*two(square_frames(60)), episode_end(START + 40 * STEP)])
    label(bag, tmp_path / "labelled", tiny_bundle, "uvd", camera_progress=True)
    contents = read_bag(tmp_path / "labelled")
    rewards = contents.messages(f"{LABELS}/reward")
    assert {each.episode for each in rewards} == {0, 1}
    assert {each.goal_id for each in rewards} == {"run, end of episode 0", "run, end of episode 1"}
    for name in ("front", "wrist"):
        found = np.array([message.data for message in contents.messages(f"{LABELS}/progress/{name}")])
        last = [index for index, (a, b) in enumerate(itertools.pairwise(rewards)) if a.episode != b.episode]
        assert len(last) == 1 and found[last[0]] == found[-1] == 1
        assert found[0] < 0.1


def test_an_image_is_paired_with_the_newest_one_that_had_come(tmp_path: Path, tiny_bundle: Path) -> None:
    """Not with the one whose stamp is nearest: a live node cannot wait for it either."""
    frames = square_frames()
    late = [(time + STEP // 2, *rest) for time, *rest in images(mirrored(frames), topic=WRIST)]
    bag = write_bag(tmp_path / "run", images(frames) + late)
    done = label(bag, tmp_path / "labelled", tiny_bundle, goal=demonstrations(tmp_path))
    assert done.counts.statuses == {Status.STALE_IMAGE: 1, Status.WARMING_UP: 1, Status.OK: 38}
    assert done.counts.problems[Status.STALE_IMAGE] == "image 0: camera 'wrist' has sent nothing yet; is it running?"
    rewards = read_bag(tmp_path / "labelled").messages(f"{LABELS}/reward")
    scorer = Scorer(load_bundle(tiny_bundle), cameras=2)
    scorer.set_goal(scorer.goal_from_frames([(frames[-1], mirrored(frames)[-1])], "end"))
    np.testing.assert_allclose(
        rewards[20].component_values,
        -np.linalg.norm(
            scorer.embed([(frames[20], mirrored(frames)[19])])[0] - scorer.embed([_end_of(tmp_path)])[0],
            axis=-1,
        ),
        atol=1e-4,
    )


def test_images_that_were_recorded_at_the_same_time_came_together(tmp_path: Path, tiny_bundle: Path) -> None:
    """As `v2r convert` writes them, the first camera first; at 5 a second those before them would be too old."""
    frames = square_frames()
    times = [START + number * SECOND // 5 for number in range(40)]
    rows = [
        (time, topic, RAW, raw(frame, time))
        for time, *views in zip(times, frames, mirrored(frames), strict=True)
        for topic, frame in zip((IMAGE_TOPIC, WRIST), views, strict=True)
    ]
    # A mark between the two ends the episode behind the first of them.
    rows.insert(41, episode_end(times[20]))
    bag = write_bag(tmp_path / "run", rows)
    done = label(bag, tmp_path / "labelled", tiny_bundle, goal=demonstrations(tmp_path))
    assert done.counts.statuses == {Status.STALE_IMAGE: 1, Status.WARMING_UP: 2, Status.OK: 37}
    rewards = read_bag(tmp_path / "labelled").messages(f"{LABELS}/reward")
    assert [each.episode for each in rewards] == [0] * 21 + [1] * 19
    assert rewards[20].status == Status.STALE_IMAGE
    np.testing.assert_allclose(rewards[-1].component_values, [0, 0], atol=0.05)


def _end_of(folder: Path) -> tuple[np.ndarray, ...]:
    from v2r_core.video.source import open_video

    found = []
    for name in ("front", "wrist"):
        with open_video(folder / f"{name}.mp4") as video:
            found.append(video[len(video) - 1])
    return tuple(found)


@pytest.mark.parametrize("skew", [0.1, 1.0])
def test_cameras_that_are_apart(tmp_path: Path, tiny_bundle: Path, skew: float) -> None:
    frames = square_frames()
    apart = [(t, topic, kind, raw(f, s)) for (t, topic, kind, _), f, s in _shifted(mirrored(frames), SECOND // 2)]
    bag = write_bag(tmp_path / "run", images(frames) + apart)
    if skew < 0.5:
        with pytest.raises(VideoError, match=r"'wrist': none of its 40 images .* 0\.1 s of one of 'front'.*0\.5\d* s"):
            label(bag, tmp_path / "labelled", tiny_bundle)
        assert not list(tmp_path.glob("labelled*"))
    else:
        done = label(bag, tmp_path / "labelled", tiny_bundle, max_camera_skew=skew)
        assert done.counts.statuses[Status.OK] >= 38


def _shifted(frames: list[np.ndarray], by: int) -> list:
    rows = images(frames, START - QUARTER, topic=WRIST)
    return [(row, frame, row[0] - by) for row, frame in zip(rows, frames, strict=True)]


def test_a_camera_without_messages(tmp_path: Path, tiny_bundle: Path) -> None:
    rows = images(square_frames()) + images(square_frames()[:1], START + 60 * SECOND, topic=WRIST)
    bag = write_bag(tmp_path / "run", rows)
    with pytest.raises(VideoError, match=r"'wrist': none of its 1 images"):
        label(bag, tmp_path / "labelled", tiny_bundle)


# --- what cannot be ---


def test_refusals(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_bag(tmp_path / "run", two(square_frames()))
    out = tmp_path / "labelled"
    with pytest.raises(VideoError, match=r"no topic '/top/image'; topics with images: /camera/image, /wrist/image"):
        label(bag, out, tiny_bundle, image_topics=(IMAGE_TOPIC, "/top/image"))
    with pytest.raises(ValueError, match="/camera/image twice"):
        label(bag, out, tiny_bundle, image_topics=(IMAGE_TOPIC, IMAGE_TOPIC))
    with pytest.raises(ValueError, match="--camera-progress: of one camera it is that of the reward"):
        label(bag, out, tiny_bundle, image_topics=(IMAGE_TOPIC,), camera_progress=True)
    with pytest.raises(ValueError, match=r"one file for 2 cameras; write \{camera\}.*\(front, wrist\)"):
        label(bag, out, tiny_bundle, goal=str(tmp_path / "goal.png"))
    with pytest.raises(FileNotFoundError, match=r"front\.png: no such goal image"):
        label(bag, out, tiny_bundle, goal=str(tmp_path / "{camera}.png"))
    viper = write_learned_bundle(tmp_path / "viper", "viper", None)
    with pytest.raises(ValueError, match="--camera-progress: the reward 'viper' compares with no goal"):
        label(bag, out, viper, camera_progress=True)
    assert not list(tmp_path.glob("labelled*"))


@pytest.mark.parametrize("form", ["image", "table", "saved", "bag"])
def test_goals_of_all_cameras(tmp_path: Path, tiny_bundle: Path, form: str) -> None:
    frames = square_frames()
    pictures = {"front": frames[-1], "wrist": mirrored(frames)[-1]}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "goals.csv").write_text("episode,goal\n*,{camera}.png\n")
    scorer = Scorer(load_bundle(tiny_bundle), cameras=2)
    scorer.goal_from_frames([tuple(pictures.values())], "saved").save(tmp_path / "saved.safetensors")
    bag = write_bag(
        tmp_path / "run", images(frames, topic="/front/image") + images(mirrored(frames), START - QUARTER, topic=WRIST)
    )
    goal = {
        "image": str(tmp_path / "{camera}.png"),
        "table": str(tmp_path / "goals.csv"),
        "saved": str(tmp_path / "saved.safetensors"),
        "bag": f"{bag}:/{{camera}}/image",
    }[form]
    label(bag, tmp_path / "labelled", tiny_bundle, image_topics=("/front/image", WRIST), goal=goal)
    rewards = read_bag(tmp_path / "labelled").messages(f"{LABELS}/reward")
    np.testing.assert_allclose(rewards[-1].component_values, [0, 0], atol=1e-5)
    assert rewards[0].value < -0.1


def test_the_goal_of_a_bundle_for_another_number_of_cameras(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    scorer = Scorer(bundle)
    scorer.goal_from_frames([square_frames()[-1]], "own").save(tiny_bundle / "goal.safetensors")
    files = describe_files(tiny_bundle, [*bundle.manifest.files, "goal.safetensors"])
    write_manifest(tiny_bundle, bundle.manifest.model_copy(update={"goal": "goal.safetensors", "files": files}))
    bag = write_bag(tmp_path / "run", two(square_frames()))
    with pytest.raises(ValueError, match="the goal of tiny is for another number of cameras than 2"):
        label(bag, tmp_path / "labelled", tiny_bundle)
    done = label(bag, tmp_path / "labelled", tiny_bundle, goal="last")
    assert done.counts.statuses[Status.OK] == 39


# --- many bags ---


def test_many_bags_with_two_cameras_follow_the_files_of_their_goal(tmp_path: Path, tiny_bundle: Path) -> None:
    for name in ("one", "two"):
        write_bag(tmp_path / "bags" / name, two(square_frames()))
    for name in ("front", "wrist"):
        Image.fromarray(square_frames()[-1]).save(tmp_path / f"{name}.png")
    like = BagTask(Path(), tmp_path / "out", BOTH, str(tmp_path / "{camera}.png"))

    def run():
        return label_bags((tmp_path / "bags",), like, LabellerOptions(tiny_bundle))

    done = run()
    assert (done.labelled, done.kept, done.failed) == (2, 0, {})
    assert (run().labelled, run().kept) == (0, 2)
    Image.fromarray(mirrored(square_frames())[-1]).save(tmp_path / "wrist.png")
    assert set(run().failed) == {"one", "two"}, "another goal: only with --force"
    assert {line.state for line in read_manifest(tmp_path / "out").values()} == {"done"}


def test_many_bags_run_where_they_are_told_to(tmp_path: Path, tiny_bundle: Path, monkeypatch) -> None:
    write_bag(tmp_path / "bags" / "one", images(square_frames()))
    asked = []
    real = Scorer.__init__

    def watch(self, *arguments, **named):
        asked.append(tuple(named.get("providers", ("auto",))))
        real(self, *arguments, **named)

    monkeypatch.setattr(Scorer, "__init__", watch)
    like = BagTask(Path(), tmp_path / "out")
    label_bags((tmp_path / "bags",), like, LabellerOptions(tiny_bundle, providers=("cpu",)))
    assert asked == [("cpu",), ("cpu",)]
    with pytest.raises(ProviderError):
        label_bags((tmp_path / "bags",), like, LabellerOptions(tiny_bundle, providers=("nonsense",)))
