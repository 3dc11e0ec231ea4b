"""`v2r label` of videos, of folders of bags and of what it refuses, from the command line to the summary."""

import json
import shutil
import subprocess
import sys

import pytest
from clip_writer import write_video
from PIL import Image
from recordings import IMAGE_TOPIC, clutter, episode_end, images, read_bag, square_frames, write_bag

from v2r_core.cli.label import Label
from v2r_core.cli.label_report import cost
from v2r_core.cli.main import main
from v2r_core.label import video_sources
from v2r_core.label.set_writer import read_manifest


@pytest.fixture
def run(tmp_path, tiny_bundle, capsys):
    def call(*words):
        code = main(["label", "--out", str(tmp_path / "out"), "--model", str(tiny_bundle), *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in ("1.mp4", "2.mp4", "sub/3.mp4"):
        write_video(folder / name, count=20)
    return folder


@pytest.fixture
def bags(tmp_path):
    folder = tmp_path / "bags"
    for name in ("run1", "day2/run2"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bag(folder / name, [*images(square_frames()), *clutter()])
    return folder


def test_folders_are_looked_through_once(run, videos, monkeypatch):
    searched = []
    plain = video_sources._Search.folder
    monkeypatch.setattr(
        video_sources._Search, "folder", lambda self, path: (searched.append(path.name), plain(self, path))[1]
    )
    assert run(videos)[0] == 0
    assert searched == ["videos", "sub"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_folder_of_videos(run, videos, tmp_path, workers):
    code, printed, errors = run(videos, "--workers", workers, "--overlay")
    assert (code, errors) == (0, "")
    text = " ".join(printed.split())
    for words in ("3 found in", "3 labelled, 0 were done, 0 failed", "60: 57 ok, 3 warming up", "frames/s per worker"):
        assert words in text
    assert "1,000 h of video" in text
    assert "core-hours" in text
    assert len(list((tmp_path / "out" / "overlays").rglob("*.mp4"))) == 3
    code, printed, _ = run(videos)
    assert code == 0
    assert "0 labelled, 3 were done" in " ".join(printed.split())


def test_json_and_failures(run, videos, tmp_path):
    (videos / "bad.mp4").touch()
    (tmp_path / "goals.csv").write_text("video,goal\n*,last\nnowhere.mp4,last\n")
    code, printed, _ = run(videos, "--json", "--reward", "uvd", "--goal", tmp_path / "goals.csv")
    assert code == 1
    summary = json.loads(printed)
    assert (summary["videos"], summary["labelled"], list(summary["failed"])) == (4, 3, ["bad.mp4"])
    assert summary["status"] == {"ok": 57, "warming_up": 3}
    assert (summary["reward"], summary["unused_goals"]) == ("uvd", ["nowhere.mp4"])
    spent = summary["cost"]
    assert spent["fps"] == pytest.approx(30)
    assert spent["core_hours_per_1000_h"] == pytest.approx(1000 * 30 / spent["frames_per_core_s"])
    code, printed, _ = run(videos, "--reward", "uvd", "--goal", tmp_path / "goals.csv")
    assert code == 1
    for words in ("1 failed; they are tried again", "bad.mp4", "nothing was labelled", "nowhere.mp4"):
        assert words in " ".join(printed.split())


def test_cost():
    found = cost(frames=3600, video_seconds=120.0, wall=40.0, busy=60.0, cpu=72.0)
    assert found == {
        "frames_per_s": 90.0,
        "frames_per_s_per_worker": 60.0,
        "frames_per_core_s": 50.0,
        "fps": 30.0,
        "core_hours_per_1000_h": pytest.approx(600),
        "worker_hours_per_1000_h": pytest.approx(500),
    }
    assert set(cost(0, 0.0, 1.0, 0.0, 0.0).values()) == {None}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_folder_of_bags(run, bags, tmp_path, tiny_bundle, workers):
    """Each is what it becomes alone."""
    code, printed, _ = run(bags, "--workers", workers, "--json", "--image-topic", IMAGE_TOPIC)
    assert code == 0
    summary = json.loads(printed)
    assert (summary["bags"], summary["labelled"], summary["images"]) == (2, 2, 80)
    assert summary["status"] == {"ok": 78, "warming_up": 2}
    alone = ["label", str(bags / "day2" / "run2"), "--out", str(tmp_path / "run2"), "--model", str(tiny_bundle)]
    assert main(alone) == 0
    assert read_bag(tmp_path / "out" / "day2" / "run2") == read_bag(tmp_path / "run2")
    assert len(read_bag(tmp_path / "out" / "run1").messages("/reward_node/reward")) == 40
    code, printed, _ = run(bags, "--image-topic", IMAGE_TOPIC)
    assert code == 0
    assert "0 labelled, 2 were done" in " ".join(printed.split())


@pytest.mark.parametrize("top", ["loose", "bags"])
def test_loose_files_are_bags_of_their_own(run, bags, tmp_path, top):
    loose = bags / "loose"
    loose.mkdir()
    for name in ("1", "2"):
        write_bag(tmp_path / name, [*images(square_frames()), *clutter()])
        (tmp_path / name / f"{name}.mcap").rename(loose / f"{name}.mcap")
    write_bag(loose / "2", images(square_frames()[:20]))  # and a bag that is called like one of them
    source = loose if top == "loose" else bags
    code, printed, _ = run(source)
    assert code == 0
    assert "files 2, each taken for a bag of its own" in " ".join(printed.split())
    out = tmp_path / "out" / ("." if top == "loose" else "loose")
    found = {name: len(read_bag(out / name).messages("/reward_node/reward")) for name in ("1", "2", "2.mcap")}
    assert found == {"1": 40, "2": 20, "2.mcap": 40}
    code, printed, _ = run(source, "--json")
    summary = json.loads(printed)
    assert (summary["kept"], summary["files"]) == (3 if top == "loose" else 5, 2)
    assert set(read_manifest(tmp_path / "out")) >= ({"1", "2", "2.mcap"} if top == "loose" else {"loose/1", "run1"})
    shutil.rmtree(out / "1")
    code, printed, _ = run(source, "--json")
    assert json.loads(printed)["labelled"] == 1


def test_no_bag_lies_in_another_one(run, tmp_path):
    folder = tmp_path / "bags"
    for number, file in enumerate((folder / "day.mcap", folder / "day" / "two.mcap")):
        bag = write_bag(tmp_path / f"written{number}", images(square_frames()))
        file.parent.mkdir(exist_ok=True)
        next(bag.glob("*.mcap")).rename(file)
    code, printed, _ = run(folder, "--json")
    assert (code, json.loads(printed)["labelled"]) == (0, 2)
    made = {str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("metadata.yaml")}
    assert made == {"day.mcap", "day/two"}


def test_bags_that_fail_or_change(run, bags, tmp_path):
    write_bag(bags / "empty", clutter())
    code, printed, _ = run(bags, "--json")
    assert code == 1
    assert list(json.loads(printed)["failed"]) == ["empty"]
    assert not (tmp_path / "out" / "empty").exists()
    code, printed, _ = run(bags, "--json", "--goal", "last")
    summary = json.loads(printed)
    assert sorted(summary["failed"]) == ["day2/run2", "empty", "run1"]
    assert "--force" in summary["failed"]["run1"]
    code, printed, _ = run(bags, "--json")
    assert json.loads(printed)["kept"] == 2, "a run that was refused changes nothing"
    code, printed, _ = run(bags, "--json", "--goal", "last", "--force")
    summary = json.loads(printed)
    assert (summary["labelled"], list(summary["failed"])) == (2, ["empty"])


def test_a_bag_that_was_complete_before_it_could_be_said(run, bags, tmp_path):
    """Killed between the bag's own name and the line of the manifest."""
    run(bags)
    path = tmp_path / "out" / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"begun"' in line))
    code, printed, _ = run(bags, "--json")
    assert (code, json.loads(printed)["kept"]) == (0, 2)


def test_goals_of_a_table_of_bags(run, bags, tmp_path):
    """Another picture under the same name is another goal."""
    frames = square_frames()
    Image.fromarray(frames[0]).save(tmp_path / "goal.png")
    (tmp_path / "goals.csv").write_text("episode,goal\n0,goal.png\n")
    assert run(bags, "--goal", tmp_path / "goals.csv")[0] == 0
    code, printed, _ = run(bags, "--goal", tmp_path / "goals.csv", "--json")
    assert (code, json.loads(printed)["kept"]) == (0, 2)
    Image.fromarray(frames[30]).save(tmp_path / "goal.png")
    code, printed, _ = run(bags, "--goal", tmp_path / "goals.csv", "--json")
    assert sorted(json.loads(printed)["failed"]) == ["day2/run2", "run1"]
    code, printed, _ = run(bags, "--goal", tmp_path / "goals.csv", "--json", "--force")
    assert json.loads(printed)["labelled"] == 2


def test_a_part_of_the_bags_joins_what_there_is(run, bags):
    run(bags)
    code, printed, errors = run(bags / "day2", "--json")
    assert (code, errors) == (0, "")
    assert (json.loads(printed)["bags"], json.loads(printed)["kept"]) == (1, 1)


def test_a_bag_that_goes_away_fails_alone(run, bags, monkeypatch):
    from v2r_core.label import bags as module

    def measure(path):
        if path.name == "run1":
            raise FileNotFoundError(f"{path}: gone")
        return 1, 1

    monkeypatch.setattr(module, "measure", measure)
    code, printed, _ = run(bags, "--json")
    summary = json.loads(printed)
    assert (code, summary["labelled"]) == (1, 1)
    assert summary["failed"]["run1"].endswith("run1: gone")


def test_names_are_printed_as_they_are(run, tmp_path):
    """What looks like markup would vanish from the summary, or end it with an error after hours of work."""
    folder = tmp_path / "videos" / "x["
    folder.mkdir(parents=True)
    (folder / "b].mp4").touch()
    (folder / "[red]:smile:.mp4").touch()
    write_video(tmp_path / "videos" / "good.mp4", count=20)
    code, printed, errors = run(tmp_path / "videos")
    assert (code, errors) == (1, "")
    for name in ("x[/b].mp4", "x[/[red]:smile:.mp4"):
        assert name in "".join(printed.split())


def test_ctrl_c(run, videos, monkeypatch):
    from v2r_core.cli import label_videos

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_videos, "label_videos", interrupted)
    code, printed, errors = run(videos)
    assert (code, printed) == (130, "")
    assert errors == "v2r label: interrupted; the same command goes on from here\n"


def test_ray_that_takes_the_videos_for_an_address(run, videos):
    code, _, errors = run("--ray", videos)
    assert code == 1
    assert f"write --ray local {videos}" in errors


def test_bags_among_videos_are_videos(run, bags, videos, tmp_path):
    code, printed, _ = run(bags, videos, "--json")
    assert code == 0
    assert json.loads(printed)["videos"] == 5
    assert (tmp_path / "out" / "labels" / "bags" / "day2" / "run2.parquet").is_file()


REFUSED = [
    ("bag", ["--workers", "2"], "--workers means nothing for a rosbag"),
    ("bag", ["--ray"], "--ray means nothing for a rosbag"),
    ("bag", ["--overlay"], "--overlay means nothing for a rosbag"),
    ("bag", ["--camera", "top"], "--camera means nothing for a rosbag"),
    ("bags", ["--ray", "auto"], "--ray means nothing for a folder of rosbags"),
    ("videos", ["--image-topic", "/a"], "--image-topic means nothing for videos"),
    ("videos", ["--episode-topic", "/a"], "--episode-topic means nothing for videos"),
    ("videos", ["--gap", "3"], "--gap means nothing for videos"),
    ("videos", ["--namespace", "/a"], "--namespace means nothing for videos"),
    ("videos", ["--camera", "top"], "--camera means nothing for videos; leave it away (it is for a LeRobotDataset)"),
    ("videos", ["--camera-progress"], "--camera-progress means nothing for videos"),
    ("dataset", ["--camera-rule", "min"], "--camera-rule means nothing for a LeRobotDataset"),
    ("bags", ["--camera-progress"], "--camera-progress: of one camera it is that of the reward"),
    ("bag", ["--max-camera-skew", "0"], "--max-camera-skew 0.0: seconds above 0"),
    ("bags", ["--image-topic", "/a", "/a"], "--image-topic: /a twice"),
    ("videos", ["--replace-reward"], "--replace-reward means nothing for videos"),
    ("dataset", ["--overlay"], "--overlay means nothing for a LeRobotDataset"),
    ("dataset", ["--gap", "3"], "--gap means nothing for a LeRobotDataset"),
    ("videos", ["--workers", "-1"], "--workers -1: 0 or more"),
    ("videos", ["--threads", "-1"], "--threads -1: 0 (all cores) or more"),
    ("videos", ["--goal", "nothing.png"], "nothing.png: no such goal"),
    ("bags", ["--goal", "nothing.png"], "nothing.png: no such goal"),
    ("bags", ["--goal", "nothing.csv"], "nothing.csv: no such table"),
    ("videos", ["--model", "nothing"], "nothing"),
    ("nothing", [], "nothing: no such file"),
]


@pytest.mark.parametrize(("source", "words", "text"), REFUSED)
def test_refusals_are_one_line_and_leave_nothing(run, videos, bags, tmp_path, source, words, text):
    (tmp_path / "dataset" / "meta").mkdir(parents=True)
    (tmp_path / "dataset" / "meta" / "info.json").write_text("{}")
    code, printed, errors = run(bags / "run1" if source == "bag" else tmp_path / source, *words)
    assert (code, printed) == (1, "")
    assert errors.count("\n") == 1
    assert text in errors
    assert not list(tmp_path.glob("out*"))


def test_ray_with_and_without_an_address():
    def address(*words):
        return Label.parse(["videos", "--out", "out", *words]).ray_address()

    assert address() is None
    assert address("--ray") == ""
    assert address("--ray", "--overlay") == ""
    assert address("--ray", "local") == ""
    assert address("--ray", "auto") == "auto"
    assert address("--ray=ray://head:10001") == "ray://head:10001"


def test_what_is_not_there_is_asked_for_by_name(run, videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, errors = run(videos, "--ray")
    assert code == 1
    assert "pip install -e '.[cluster]'" in errors
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, errors = run(videos)
    assert code == 1
    assert "pip install -e '.[label]'" in errors


def test_videos_need_no_torch(tmp_path, videos, tiny_bundle):
    script = (
        "import sys; from v2r_core.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'rclpy', 'ray', 'rosbags'} & set(sys.modules), sys.modules; sys.exit(code)"
    )
    words = ["label", videos, "--out", tmp_path / "out", "--model", tiny_bundle]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_marks_end_episodes_in_all_bags(run, tmp_path):
    frames = images(square_frames())
    write_bag(tmp_path / "bags" / "run1", [*frames, episode_end(frames[20][0] + 1)])
    code, printed, _ = run(tmp_path / "bags", "--json")
    assert (code, json.loads(printed)["episodes"]) == (0, 2)


def test_an_episode_that_fails(run, tmp_path):
    """The copy is there then: the same command would not try again."""
    from lerobot_data import square_frames, write_dataset

    from v2r_core.label.lerobot_tables import FileLimits

    folder = write_dataset(tmp_path / "pick", (5, 5), square_frames, limits=FileLimits(3, 1e-6, 1e-6))
    sorted(folder.rglob("*.mp4"))[1].unlink()
    code, printed, _ = run(folder)
    assert code == 1
    assert "1 failed; their frames have the status internal_error" in " ".join(printed.split())
    assert "tried again" not in printed


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_dataset(run, tmp_path, workers):
    from lerobot_data import LENGTHS, TOP, square_frames, write_dataset

    write_dataset(tmp_path / "pick", frames=square_frames)
    code, printed, errors = run(tmp_path / "pick", "--workers", workers, "--camera", TOP, "--json")
    assert (code, errors) == (0, "")
    summary = json.loads(printed)
    assert (summary["episodes"], summary["frames"]) == (len(LENGTHS), sum(LENGTHS))
    assert summary["camera"] == TOP
    assert "v2r.reward" in summary["features"]
    assert (tmp_path / "out" / "meta" / "v2r_labels.json").is_file()
    code, printed, errors = run(tmp_path / "pick")
    assert code == 1
    assert "--force" in errors
    code, printed, _ = run(tmp_path / "pick", "--force")
    assert code == 0
    assert f"{len(LENGTHS)} episodes, {sum(LENGTHS)} frames" in " ".join(printed.split())
