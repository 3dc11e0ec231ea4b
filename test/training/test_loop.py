"""The loop: a resumed run equals an uninterrupted one bit for bit, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.methods.runs import read_run
from v2r_core.training import checkpoint
from v2r_core.training.checkpoint import list_checkpoints, load_run_encoder
from v2r_core.training.log import read_metrics
from v2r_core.training.loop import TrainingError, train
from v2r_core.training.options import RunOptions
from v2r_core.video.clips import ClipDataset
from v2r_core.video.footage import find_videos

HERE = Path(__file__).parent


def options(**changes):
    return RunOptions(**{"workers": 0, "save_every": 3, "log_every": 1, "cpu": True, **changes})


@pytest.fixture
def recipe(toy):
    from toy_method import ToyRecipe

    return ToyRecipe.paper()


def weights(run):
    return load_file(checkpoint.latest_checkpoint(run) / "method.safetensors")


def assert_same_run(first, second):
    losses = [[(line["step"], line["loss"]) for line in read_metrics(run)] for run in (first, second)]
    assert losses[0] == losses[1]
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_a_stopped_and_resumed_run_is_the_same_bit_for_bit(videos, recipe, tmp_path):
    train("toy", recipe, [videos], tmp_path / "whole", options())
    train("toy", recipe, [videos], tmp_path / "parts", options(stop_after=4))
    train("toy", recipe, [videos], tmp_path / "parts", options(resume=True, workers=1))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert len(read_metrics(tmp_path / "whole")) == 10


def test_a_killed_and_resumed_run_is_the_same_bit_for_bit(videos, recipe, tmp_path):
    train("toy", recipe, [videos], tmp_path / "whole", options())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from v2r_core.methods import METHODS; METHODS['toy'] = 'toy_method:Toy'\n"
        "from toy_method import ToyRecipe; from v2r_core.training.loop import train\n"
        "from v2r_core.training.options import RunOptions\n"
        "import dataclasses, toy_method\n"
        "loss = toy_method.Toy.loss\n"
        "def dying(self, batch, step):\n"
        "    import os\n"
        "    return os.kill(os.getpid(), 9) if step == 8 else loss(self, batch, step)\n"
        "toy_method.Toy.loss = dying\n"
        "train('toy', ToyRecipe.paper(), [sys.argv[2]], sys.argv[3],"
        " RunOptions(workers=0, save_every=3, log_every=1, cpu=True))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(HERE), str(videos), str(tmp_path / "killed")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert checkpoint.step_of(checkpoint.latest_checkpoint(tmp_path / "killed")) == 6
    assert len(read_metrics(tmp_path / "killed")) == 8
    train("toy", recipe, [videos], tmp_path / "killed", options(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_accumulated_batches_are_averaged(videos, recipe, tmp_path):
    run = train("toy", recipe, [videos], tmp_path / "run", options(accumulate=2, stop_after=2))
    assert [line["step"] for line in read_metrics(run)] == [1, 2]


def test_batch_that_does_not_divide(videos, recipe, tmp_path):
    with pytest.raises(ValueError, match="batch_size 8 is no multiple of 1 processes x 3"):
        train("toy", recipe, [videos], tmp_path / "run", options(accumulate=3))


def test_too_few_examples(videos, tmp_path, toy):
    from toy_method import ToyRecipe

    with pytest.raises(ValueError, match="40 examples make no batch of 64"):
        train("toy", ToyRecipe(epochs=1, batch_size=64), [videos], tmp_path / "run", options())


def test_nan_loss_names_the_step_and_the_files_and_leaves_a_dump(videos, tmp_path, toy):
    from toy_method import ToyRecipe

    poisoned = ToyRecipe(epochs=2, batch_size=8, poison_step=5)
    with pytest.raises(TrainingError, match=r"step 5: the loss is nan .* on .*\.mp4"):
        train("toy", poisoned, [videos], tmp_path / "run", options())
    (dump,) = (tmp_path / "run").glob("not-finite-*")
    assert json.loads((dump / "batch.json").read_text())["step"] == 5
    assert load_file(dump / "batch.safetensors")["views.0"].shape == (8, 3, 16, 16)
    assert checkpoint.step_of(checkpoint.latest_checkpoint(tmp_path / "run")) == 3


@pytest.mark.parametrize("victim", ["optimizer.safetensors", "rng-0.safetensors", "method.safetensors"])
def test_a_full_disk_leaves_the_previous_checkpoint(victim, videos, recipe, tmp_path, monkeypatch):
    train("toy", recipe, [videos], tmp_path / "run", options(stop_after=3))
    before = weights(tmp_path / "run")
    save = checkpoint.save_tensors

    def full(tensors, file, metadata=None):
        if file.name == victim:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, file, metadata)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        train("toy", recipe, [videos], tmp_path / "run", options(resume=True))
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    for key, value in weights(tmp_path / "run").items():
        assert torch.equal(value, before[key])


def test_a_run_is_not_overwritten(videos, recipe, tmp_path):
    train("toy", recipe, [videos], tmp_path / "run", options(stop_after=1))
    with pytest.raises(ValueError, match="go on with --resume"):
        train("toy", recipe, [videos], tmp_path / "run", options())


def test_another_method_or_recipe_does_not_resume(videos, recipe, tmp_path, monkeypatch):
    from toy_method import ToyRecipe

    from v2r_core.methods import METHODS

    train("toy", recipe, [videos], tmp_path / "run", options(stop_after=1))
    with pytest.raises(CheckpointError, match=r"compat was official, now it is paper"):
        train(
            "toy", ToyRecipe(epochs=2, batch_size=8, compat="paper"), [videos], tmp_path / "run", options(resume=True)
        )
    monkeypatch.setitem(METHODS, "other", "toy_method:Toy")
    with pytest.raises(CheckpointError, match="holds a run of toy, other asked for"):
        train("other", recipe, [videos], tmp_path / "run", options(resume=True))


def test_a_foreign_checkpoint_is_named_by_its_keys(videos, recipe, tmp_path):
    run = train("toy", recipe, [videos], tmp_path / "run", options(stop_after=1))
    file = checkpoint.latest_checkpoint(run) / "method.safetensors"
    from safetensors.torch import save_file

    save_file({"encoder_q.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"missing memory.*not expected encoder_q\.conv1\.weight"):
        load_run_encoder(run)


def test_the_encoder_of_a_run(videos, recipe, tmp_path):
    run = train("toy", recipe, [videos], tmp_path / "run", options())
    encoder = load_run_encoder(run)
    assert encoder(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)).shape == (2, 4)
    assert "10 steps" in encoder.weights.source
    assert read_run(run)["sources"]
    assert len(list_checkpoints(run)) == 2


def test_skipped_videos_are_on_record(videos, recipe, tmp_path):
    (videos / "broken.mp4").write_bytes(b"no video")
    run = train("toy", recipe, [videos], tmp_path / "run", options(stop_after=1))
    ((name, reason),) = read_run(run)["skipped"]
    assert "broken.mp4" in name and reason


def test_nothing_to_resume(videos, recipe, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train("toy", recipe, [videos], tmp_path / "run", options(resume=True))


def test_examples_of_the_data(videos):
    from toy_method import Toy, ToyRecipe

    assert len(ClipDataset(find_videos([videos]), Toy.data(ToyRecipe.paper()))) == 40


def test_two_processes_train_the_same_network(videos, tmp_path):
    """Two gloo processes: one run, one log, a random state for each process, and the batch shared out."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from v2r_core.methods import METHODS; METHODS['toy'] = 'toy_method:Toy'\n"
        "from toy_method import ToyRecipe, Toy; from v2r_core.training.loop import train\n"
        "from v2r_core.training.options import RunOptions\n"
        "import torch, os, json\n"
        "after, seen = Toy.after_step, []\n"
        "def noting(self, step):\n"
        "    after(self, step); seen.append(float(sum(p.sum() for p in self.online.parameters())))\n"
        "Toy.after_step = noting\n"
        "options = RunOptions(workers=0, log_every=1, cpu=True)\n"
        "train('toy', ToyRecipe.paper(), [sys.argv[2]], sys.argv[3] + '/run', options)\n"
        "open(sys.argv[3] + '/seen-' + os.environ['RANK'], 'w').write(json.dumps(seen))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    launched = subprocess.run(
        [*launcher, str(program), str(HERE), str(videos), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr.decode()[-3000:]
    sums = [json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in range(2)]
    assert len(sums[0]) == 10
    assert sums[0] == sums[1]
    saved = checkpoint.latest_checkpoint(tmp_path / "run")
    assert {file.name for file in saved.glob("rng-*")} == {"rng-0.safetensors", "rng-1.safetensors"}
    assert read_run(tmp_path / "run")["processes"] == 2


def test_a_signal_to_the_whole_group_ends_with_a_checkpoint(videos, tmp_path):
    """As a terminal or a cluster sends it: workers get it, too."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, os, signal; sys.path.insert(0, sys.argv[1])\n"
        "from v2r_core.methods import METHODS; METHODS['toy'] = 'toy_method:Toy'\n"
        "from toy_method import ToyRecipe, Toy; from v2r_core.training.loop import train\n"
        "from v2r_core.training.options import RunOptions\n"
        "after = Toy.after_step\n"
        "Toy.after_step = lambda self, step: (after(self, step), step == 4 and os.killpg(0, signal.SIGTERM))\n"
        "recipe = ToyRecipe(epochs=100, batch_size=8)\n"
        "train('toy', recipe, [sys.argv[2]], sys.argv[3], RunOptions(workers=2, log_every=1, cpu=True))\n"
    )
    stopped = subprocess.run(
        [sys.executable, str(program), str(HERE), str(videos), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=100,
    )
    assert stopped.returncode == 0, stopped.stderr.decode()[-2000:]
    assert b"go on with --resume" in stopped.stderr
    assert checkpoint.step_of(checkpoint.latest_checkpoint(tmp_path / "run")) == 5
