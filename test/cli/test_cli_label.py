"""`v2r label` from the command line to its summary."""

import json
import sys

import pytest
from recordings import START, STEP, clutter, images, mirrored, raw, read_bag, square_frames, write_bag

from v2r_core.cli.main import main
from v2r_core.deploy.bundle import load_bundle


@pytest.fixture
def run(tmp_path, tiny_bundle, capsys):
    def call(*words, bag=None):
        bag = bag or write_bag(tmp_path / "run", images(square_frames()) + clutter())
        code = main(["label", str(bag), "--out", str(tmp_path / "out"), "--model", str(tiny_bundle), *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_table(run, tmp_path):
    code, printed, errors = run()
    assert code == 0
    assert "Traceback" not in errors
    for text in ("120 messages", "40 on /camera/image, 64x48", "39 ok, 1 warming up", str(tmp_path / "out")):
        assert text in printed.replace("\n", "")
    assert len(read_bag(tmp_path / "out").messages("/reward_node/reward")) == 40


def test_json(run, tmp_path, tiny_bundle):
    rows = images(square_frames())
    rows[3] = (*rows[3][:3], raw(square_frames()[3], START + 3 * STEP, step=3))
    rows[5:] = images([frame.repeat(2, 0) for frame in square_frames()])[5:]
    code, printed, _ = run("--json", "--reward", "uvd", "--namespace", "/x", bag=write_bag(tmp_path / "run", rows))
    assert code == 0
    summary = json.loads(printed)
    assert summary["images"] == summary["labels"] == summary["messages"] == 40
    assert summary["status"] == {"ok": 38, "bad_image": 1, "warming_up": 1}
    assert summary["problems"]["bad_image"].startswith("image 3: step is 3")
    assert summary["image_sizes"] == ["64x48", "64x96"]
    assert (summary["episodes"], summary["resumed"], summary["reward"]) == (1, 0.0, "uvd")
    assert summary["model"]["sha256"] == load_bundle(tiny_bundle).sha256
    assert summary["images_per_s"] > 0


def test_two_cameras(run, tmp_path):
    rows = images(square_frames()) + images(mirrored(square_frames()), START - STEP // 2, topic="/wrist/image")
    bag = write_bag(tmp_path / "run", rows)
    topics = ["--image-topic", "/camera/image=front", "/wrist/image"]
    code, printed, _ = run(*topics, "--camera-progress", "--camera-rule", "min", bag=bag)
    assert code == 0
    text = printed.replace("\n", "")
    assert "40 on /camera/image, 64x48" in text
    assert "/wrist/image" in text
    contents = read_bag(tmp_path / "out")
    for camera in ("front", "wrist"):
        assert contents.messages(f"/reward_node/progress/{camera}")[-1].data == 1
    # The minimum, not the mean.
    rewards = contents.messages("/reward_node/reward")
    assert [each.value for each in rewards] == pytest.approx([each.component_values.max() for each in rewards])


def test_a_bag_that_was_taken_for_a_topic(tmp_path, capsys):
    bag = write_bag(tmp_path / "run", images(square_frames()))
    assert main(["label", "--out", str(tmp_path / "out"), "--image-topic", "/camera/image", str(bag)]) == 1
    assert f"--image-topic took {bag} for a topic; write it before --image-topic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gap", "0"], "--gap 0.0: seconds above 0"),
        (["--gap", "nan"], "--gap nan"),
        (["--image-topic", "/nothing"], "topics with images: /camera/image"),
        (["--episode-topic", "/nothing"], "topics: /camera/image, /notes, /probe"),
        (["--goal", "nothing.png"], "nothing.png: no such goal image"),
        (["--goal", "nothing.csv"], "nothing.csv: no such table"),
        (["--namespace", "x"], "a name like /reward_node"),
        (["--model", "nothing"], "nothing"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(run, tmp_path, words, text):
    code, printed, errors = run(*words)
    assert code == 1
    assert printed == ""
    assert errors.count("\n") == 1
    assert text in errors
    assert not list(tmp_path.glob("out*"))


def test_refuses_what_is_there_unless_forced(run, tmp_path):
    assert run()[0] == 0
    code, _, errors = run(bag=tmp_path / "run")
    assert code == 1
    assert "--force" in errors
    assert run("--force", bag=tmp_path / "run")[0] == 0


def test_needs_no_torch(tmp_path, tiny_bundle):
    import subprocess

    script = (
        "import sys; from v2r_core.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'rclpy'} & set(sys.modules); sys.exit(code)"
    )
    bag = write_bag(tmp_path / "run", images(square_frames()))
    words = ["label", bag, "--out", tmp_path / "out", "--model", tiny_bundle]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
