"""A run whose loss was lost goes on as the error says: with other rates or another precision, and nothing else."""

import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from v2r_core.cli.main import main
from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.methods import METHODS, load_method
from v2r_core.methods.runs import read_run
from v2r_core.training.adjusting import ADJUSTABLE, advice
from v2r_core.training.checkpoint import list_checkpoints
from v2r_core.training.log import read_metrics
from v2r_core.training.loop import TrainingError, train
from v2r_core.training.options import RunOptions


def options(**changes):
    return RunOptions(**{"workers": 0, "save_every": 3, "log_every": 1, "cpu": True, **changes})


def recipe(**changes):
    from toy_method import ToyRecipe

    return ToyRecipe(**{"epochs": 2, "batch_size": 8, **changes})


@pytest.fixture
def other_precision():
    """A process has one precision; called, it has forgotten it."""
    yield AcceleratorState._reset_state
    AcceleratorState._reset_state()


@pytest.fixture
def lost_above(monkeypatch):
    """The toy's loss is lost in step 5 where the learning rate is above 0.2."""
    import toy_method

    loss = toy_method.Toy.loss

    def poisoned(self, batch, step):
        outcome = loss(self, batch, step)
        if step == 5 and self.recipe.lr > 0.2:
            outcome.loss = outcome.loss * float("nan")
        return outcome

    monkeypatch.setattr(toy_method.Toy, "loss", poisoned)


def test_the_advice_works_as_written(videos, lost_above, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "toy", "--data", str(videos), "--out", str(run), "--workers", "0", "--cpu"]
    words += ["--save-every", "3", "--log-every", "1"]
    assert main([*words, "--lr", "0.5"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "Lower the learning rate" in error
    assert "go on with --resume --adjust; what may change then is --lr, --precision" in error
    assert main([*words, "--lr", "0.1", "--resume", "--adjust"]) == 0
    assert "from step 3 on lr is 0.1, it was 0.5" in capsys.readouterr().err
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 11))
    rates = [(0.5 if step < 3 else 0.1) * (1 - step / 10) for step in range(10)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    record = read_run(run)
    assert record["recipe"]["lr"] == 0.1
    assert record["changes"] == [{"step": 3, "field": "lr", "before": 0.5, "now": 0.1}]


def test_every_change_is_on_record(videos, other_precision, tmp_path):
    run = tmp_path / "run"
    train("toy", recipe(), [videos], run, options(stop_after=2))
    other_precision()
    train("toy", recipe(precision="bf16"), [videos], run, options(stop_after=4, resume=True, adjust=True))
    train("toy", recipe(precision="bf16"), [videos], run, options(stop_after=5, resume=True, adjust=True))
    train("toy", recipe(precision="bf16", lr=0.01), [videos], run, options(resume=True, adjust=True))
    assert [(change["step"], change["field"]) for change in read_run(run)["changes"]] == [(2, "precision"), (5, "lr")]
    assert read_run(run)["recipe"] == vars(recipe(precision="bf16", lr=0.01))
    assert len(read_metrics(run)) == 10


def test_a_forgotten_option_changes_nothing(videos, tmp_path):
    run = tmp_path / "run"
    train("toy", recipe(lr=0.01), [videos], run, options(stop_after=2))
    with pytest.raises(CheckpointError, match=r"recipe\.lr was 0\.01, now it is .*started with"):
        train("toy", recipe(), [videos], run, options(resume=True))
    assert read_run(run)["recipe"]["lr"] == 0.01


def test_nothing_else_may_change(videos, tmp_path):
    run = tmp_path / "run"
    train("toy", recipe(), [videos], run, options(stop_after=2))
    before = (run / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"recipe\.poison_step was -1, now it is 99"):
        train("toy", recipe(lr=0.01, poison_step=99), [videos], run, options(resume=True, adjust=True))
    with pytest.raises(CheckpointError, match=r"epochs was 2, now it is 3"):
        train("toy", recipe(lr=0.01, epochs=3), [videos], run, options(resume=True, adjust=True))
    assert (run / "run.json").read_bytes() == before


def test_no_checkpoint_of_broken_weights(videos, monkeypatch, tmp_path):
    """The gradient is lost before the loss is: what would be saved then could never go on."""
    import toy_method

    def overflow(self, step):
        if step == 4 and self.recipe.lr > 0.2:
            self.online[3].weight.data[0] = float("inf")

    monkeypatch.setattr(toy_method.Toy, "after_step", overflow)
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"step 5: weights are not finite: online\.3\.weight; no checkpoint .*--lr"):
        train("toy", recipe(lr=0.5), [videos], run, options(save_every=1, keep=1))
    (kept,) = list_checkpoints(run)
    assert kept.name == "step-00000004"
    assert all(torch.isfinite(value).all() for value in load_file(kept / "method.safetensors").values())
    train("toy", recipe(lr=0.1), [videos], run, options(resume=True, adjust=True))
    assert len(read_metrics(run)) == 10


def test_a_checkpoint_that_was_removed_is_passed_over(videos, tmp_path):
    """The last thing that the error advises, for weights that are finite and yet lost."""
    run = tmp_path / "run"
    train("toy", recipe(lr=0.5), [videos], run, options(stop_after=6))
    newest = list_checkpoints(run)[-1]
    assert newest.name == "step-00000006"
    shutil.rmtree(newest)
    train("toy", recipe(lr=0.1), [videos], run, options(resume=True, adjust=True))
    assert read_run(run)["changes"] == [{"step": 3, "field": "lr", "before": 0.5, "now": 0.1}]
    assert read_metrics(run)[3]["lr"] == pytest.approx(0.1 * 0.7)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "toy"])
def test_every_method_has_what_the_advice_names(name):
    """Its learning rate, under whichever name, and the precision; and they are options of the command."""
    told = advice(load_method(name).recipe_type)
    assert "--precision" in told
    assert any(f"--{rate}," in told for rate in ("lr", "base-lr"))
    assert all("lr" in field or "warmup" in field or field == "precision" for field in ADJUSTABLE)
