"""The same training on a GPU: every method, every precision, and a run that goes on."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from accelerate.state import AcceleratorState

from v2r_core.methods import load_method
from v2r_core.training.log import read_metrics
from v2r_core.training.loop import train
from v2r_core.training.options import RunOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

METHODS = ("moco", "simclr", "simclrv2", "dino", "dinov2", "mae", "ijepa", "vjepa", "vqgan")


def losses(name, videos, run, **changes):
    precision = changes.pop("precision", "no")
    tiny = load_method(name).recipe_type.tiny()
    recipe = dataclasses.replace(tiny, batch_size=8, precision=precision)
    AcceleratorState._reset_state(reset_partial_state=True)  # one device and precision a process, else
    train(name, recipe, [videos], run, RunOptions(workers=0, log_every=1, **{"stop_after": 3, **changes}))
    return [line["loss"] for line in read_metrics(run)]


@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_the_losses_of_a_cpu(name, videos, tmp_path):
    on_cpu = losses(name, videos, tmp_path / "cpu", cpu=True)
    # Convolutions of a GPU are in TF32, and what is drawn on the device (MoCo's shuffling, dropped paths) differs.
    # MoCo's first loss is next to nothing: its queue is still noise.
    assert losses(name, videos, tmp_path / "gpu") == pytest.approx(on_cpu, rel=0.05, abs=0.05 if name == "moco" else 0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision(name, precision, videos, tmp_path):
    full = losses(name, videos, tmp_path / "full")
    mixed = losses(name, videos, tmp_path / "mixed", precision=precision, accumulate=2)
    assert all(math.isfinite(loss) for loss in mixed)
    if name not in ("moco", "simclr", "simclrv2", "dinov2"):  # their losses depend on how many samples are together
        assert mixed[0] == pytest.approx(full[0], rel=0.1)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_run_goes_on(precision, videos, tmp_path):
    whole = losses("simclr", videos, tmp_path / "whole", precision=precision, stop_after=4)
    losses("simclr", videos, tmp_path / "parts", precision=precision, stop_after=2)
    parts = losses("simclr", videos, tmp_path / "parts", precision=precision, stop_after=4, resume=True)
    assert parts == pytest.approx(whole, rel=1e-3)


def test_draws_on_the_device_go_on(videos, tmp_path, toy):
    from toy_method import ToyRecipe

    def run(folder, **changes):
        AcceleratorState._reset_state(reset_partial_state=True)
        train("toy", ToyRecipe.paper(), [videos], tmp_path / folder, RunOptions(workers=0, log_every=1, **changes))
        return [line["loss"] for line in read_metrics(tmp_path / folder)]

    run("parts", stop_after=4)
    assert run("parts", resume=True) == pytest.approx(run("whole"), rel=1e-4)
